"""All circuit searches of a comparison: columns side by side, each with its nonsense control, and what is done already kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sparse_lens.circuits import Circuit, SearchConfig
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.comparisons.circuit_sizes import Setting, column_results, nonsense_circuit, search_column
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.jobs import Job, keep_record, read_record
from sparse_lens.results import from_plain, to_plain


def search_columns(
    columns: Sequence[Column],
    settings: Mapping[str, Sequence[Setting]],
    targets: Mapping[str, float],
    config: SearchConfig,
    *,
    seeds: int,
    workers: int,
    progress: bool,
    cache: Path | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Results by task and column; a column's searches run one after the other, the widest columns first."""
    control_of = _control_targets([targets[name] for name in settings if any(setting.passes for setting in settings[name])])
    controls = sorted(set(control_of.values()))
    searches = sum(sum(s.passes for s in settings[name]) for name in settings) + len(controls) * len(columns)
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in settings}
    stop = threading.Event()
    with tqdm(total=searches * seeds * config.masks * config.steps, desc="circuits", disable=not progress) as bar:

        def on_step() -> None:
            if stop.is_set():
                raise CancelledError
            bar.update()

        def run(index: int) -> None:
            column = columns[index]

            @lru_cache
            def nonsense(target: float) -> list[Circuit]:
                return [nonsense_circuit(column, target, config, seed=seed, on_step=on_step) for seed in range(seeds)]

            for name in settings:
                setting, target = settings[name][index], targets[name]
                cell = _cell(setting, target, control_of.get(target, target), config, seeds)
                kept = None if cache is None else read_record(cache, cell)
                if kept is None:
                    repeated = range(seeds) if setting.passes else ()
                    circuits = [search_column(setting, target, config, seed=seed, on_step=on_step) for seed in repeated]
                    controlled = nonsense(control_of[target]) if setting.passes else []
                    kept = column_results(setting, circuits, controlled)
                    if cache is not None:
                        keep_record(cache, cell, to_plain(kept))
                found[name][column.name] = from_plain(kept)

        order = sorted(range(len(columns)), key=lambda i: -columns[i].space.n_nodes)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in as_completed([pool.submit(run, index) for index in order]):
                    future.result()
            except BaseException:  # Ctrl-C above all: the other columns would go on for minutes
                stop.set()
                raise
    return {name: {column.name: found[name][column.name] for column in columns} for name in found}


def _cell(setting: Setting, target: float, control: float, config: SearchConfig, seeds: int) -> Job:
    """What one task's numbers in one column depend on: the job is never sent, its fingerprint names their record."""
    column, problem = setting.column, setting.problem
    digest = hashlib.sha256(json.dumps(column.space.signature()).encode())
    for part in (problem.search_prompts, problem.evaluation_prompts, setting.heldout):
        digest.update(part.tokens.numpy().tobytes())
    for means in column.ablation.means.values():
        digest.update(means.latents.numpy().tobytes())
    settings = {"target": target, "nonsense_target": control, "seeds": seeds, "effort": config.model_dump(mode="json")}
    place = {"column": column.name, "task": problem.task}
    name, depends = f"{problem.task} in {column.name}", [model_fingerprint(column.bridge), digest.hexdigest()]
    return Job(name, "sparse_lens.comparisons.comparison:compare", place | settings, depends)


def _control_targets(targets: Sequence[float]) -> dict[float, float]:
    """The target of the nonsense search for each task's target: the nonsense search depends on nothing else of the task.

    Targets within 2 % share the search at the least of them, which meets them all. All columns get the same.
    """
    shared: dict[float, float] = {}
    least = 0.0
    for target in sorted(set(targets)):
        least = least if target <= 1.02 * least else target
        shared[target] = least
    return shared
