"""`compare`: circuit sizes of a weight-sparse model, dense neurons and SAE latents, on one axis, with their controls."""

from __future__ import annotations

import importlib.metadata
import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from sparse_lens.circuits import SearchConfig
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.circuit_sizes import (
    HELDOUT_PAIRS,
    Setting,
    column_results,
    common_target,
    nonsense_circuit,
    prepare_setting,
    search_column,
)
from sparse_lens.comparisons.columns import Column, open_columns
from sparse_lens.comparisons.head_patching import pairs_of_one_layout, patch_task
from sparse_lens.comparisons.jobs import single_threaded
from sparse_lens.comparisons.pair import ROLES, ModelPair, model_facts
from sparse_lens.comparisons.summary import summarize
from sparse_lens.comparisons.verdict import verdict
from sparse_lens.errors import ConfigError
from sparse_lens.results import exact, to_frame
from sparse_lens.tasks import available_tasks, get_task

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Comparison:
    """The measured comparison: nested results in `metrics` (the content of `metrics.json`)."""

    metrics: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """Tidy table: one row for each number of each task and column."""
        tasks = {name: task["columns"] for name, task in self.metrics["tasks"].items()}
        return to_frame(tasks, ("task", "column"))


def compare(
    pair: ModelPair | str = "python",
    *,
    tasks: Sequence[str] | None = None,
    seeds: int = 1,
    config: SearchConfig | None = None,
    command: str = "sparse_lens.compare(...)",
    progress: bool = True,
    workers: int = 2,
) -> Comparison:
    """Compare the circuits of a pair's columns on `tasks` (default: those the pair names), with `seeds` search seeds.

    Every column gets the same effort (`config`), target, ablation and controls; columns run side by side on `workers` threads.
    Raises `UnknownNameError` for an unknown pair or task.
    """
    pair = ModelPair.open(pair) if isinstance(pair, str) else pair
    config = config or SearchConfig()
    names = list(tasks or pair.default_tasks or available_tasks())
    for name in names:
        get_task(name)
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    with single_threaded():
        columns = open_columns(pair, progress=progress)
        settings = {name: _settings(columns, name, config, workers) for name in names}
        targets = {name: common_target(settings[name]) for name in names}
        models = _models(pair, columns)
        patching = _patching(columns, settings)
        found = _run_columns(columns, settings, targets, config, seeds, workers, progress)
    results = {name: _task_entry(name, settings[name], targets[name], found[name], config) for name in names}
    metrics = {
        "schema": SCHEMA,
        "command": command,
        "versions": _versions(),
        "effort": _effort(config, seeds),
        "models": models,
        "tasks": results,
        "summary": summarize(results, seeds),
        "patching": patching,
    }
    return Comparison(metrics | {"verdict": verdict(metrics)})


def _settings(columns: Sequence[Column], task: str, config: SearchConfig, workers: int) -> list[Setting]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda column: prepare_setting(column, task, config, seed=0), columns))


def _run_columns(
    columns: Sequence[Column],
    settings: Mapping[str, Sequence[Setting]],
    targets: Mapping[str, float],
    config: SearchConfig,
    seeds: int,
    workers: int,
    progress: bool,
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
            nonsense = {
                target: [nonsense_circuit(column, target, config, seed=seed, on_step=on_step) for seed in range(seeds)]
                for target in controls
            }
            for name in settings:
                setting, target = settings[name][index], targets[name]
                repeated = range(seeds) if setting.passes else ()
                circuits = [search_column(setting, target, config, seed=seed, on_step=on_step) for seed in repeated]
                controlled = nonsense[control_of[target]] if setting.passes else []
                found[name][column.name] = column_results(setting, circuits, controlled)

        order = sorted(range(len(columns)), key=lambda i: -columns[i].space.n_nodes)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in as_completed([pool.submit(run, index) for index in order]):
                    future.result()
            except BaseException:  # Ctrl-C above all: the other columns would go on for minutes
                stop.set()
                raise
    return {name: {column.name: found[name][column.name] for column in columns} for name in found}


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


def _task_entry(
    name: str, settings: Sequence[Setting], target: float, columns: dict[str, Any], config: SearchConfig
) -> dict[str, Any]:
    task = get_task(name)
    pair = task.sample(settings[0].column.bridge.tokenizer, 1, seed=0, split="search").pairs[0]
    failed = [setting.column.name for setting in settings if not setting.passes]
    return {
        "target_loss": exact(target, n=config.evaluation_pairs),
        "answers": [pair.target, pair.distractor],
        "description": task.description,
        "measurable": not failed,
        "failed_gate": failed,
        "columns": columns,
    }


def _models(pair: ModelPair, columns: Sequence[Column]) -> dict[str, Any]:
    by_role = {column.role: column.bridge for column in columns}
    facts = {role: model_facts(by_role[role], pair.windows["heldout"]) for role in ROLES}
    return {role: {"name": pair.model_name(role), **facts[role]} for role in ROLES}


def _patching(columns: Sequence[Column], settings: Mapping[str, Sequence[Setting]]) -> dict[str, Any] | None:
    """TransformerLens' patching for the sparse and the dense models, on one task that all of them do.

    Of these the one whose prompts differ in the fewest tokens: there a position means the same in clean and corrupt prompts.
    """
    done = [name for name, of_task in settings.items() if all(setting.passes for setting in of_task)]
    if not done:
        return None
    chosen = [column for column in columns if not column.space.has_dictionaries]
    tokenizer = chosen[0].bridge.tokenizer

    def differing(name: str) -> int:
        batch = pairs_of_one_layout(get_task(name), tokenizer, 1, seed=0)
        return int((batch.clean != batch.corrupt).sum())

    task = min(done, key=differing)
    return {"task": task, "models": {column.role: patch_task(column.bridge, task).to_plain() for column in chosen}}


def _effort(config: SearchConfig, seeds: int) -> dict[str, Any]:
    fields = config.model_dump(mode="json")
    return fields | {
        "search_seeds": seeds,
        "masks_per_search": config.masks,
        "ablation": "mean over the pretraining distribution",
        "accuracy_gate": ACCURACY_GATE,
        "heldout_pairs": HELDOUT_PAIRS,
        "target_rule": "max(0.15, 1.15 * the worst column's full-model loss)",
        "nonsense_rule": "one search per column and target; targets within 2 % share it at the least of them",
    }


def _versions() -> dict[str, str]:
    packages = ("sparse-lens", "torch", "transformer-lens", "transformers", "numpy")
    return {"python": platform.python_version(), "machine": platform.machine()} | {
        name: importlib.metadata.version(name) for name in packages
    }
