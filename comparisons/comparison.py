"""`compare`: circuit sizes of a weight-sparse model, dense neurons and SAE latents, on one axis, with their controls."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_lens.circuits import SearchConfig
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.circuit_sizes import (
    HELDOUT_PAIRS,
    Setting,
    common_target,
    prepare_setting,
)
from sparse_lens.comparisons.column_searches import search_columns
from sparse_lens.comparisons.columns import Column, open_columns
from sparse_lens.comparisons.head_patching import pairs_of_one_layout, patch_task
from sparse_lens.comparisons.jobs import single_threaded
from sparse_lens.comparisons.pair import ROLES, ModelPair, model_facts
from sparse_lens.comparisons.shipped.cards import bits_per_byte
from sparse_lens.comparisons.summary import summarize
from sparse_lens.comparisons.verdict import verdict
from sparse_lens.data import load_tokenizer
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.results import exact, from_plain, scaled, to_frame
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

    def full_frame(self) -> pd.DataFrame:
        """Tidy table of the full comparison: one row for each number, told apart by section, name, column, place and metric.

        Sections are the headline, against controls (a column is "this over that"), matching (of losses), edge parts, rows and
        frontier (a name is a row, a place a layer and dictionary seed; on the frontier a column is a dictionary), couplings (a name
        is a task, a place a boundary; the hybrids' losses have neither) and curves (a name is a task, a place a training seed
        beyond the first, a search seed and a target; the model's accuracy stands without a target).
        Raises `DataError` for a comparison without its full part.
        """
        import pandas as pd

        if not (full := from_plain(self.metrics.get("full") or {})):
            raise DataError("this is no full comparison; make one with sparse_lens.comparisons.full.compare_fully")
        widths: dict[str, dict[str, Any]] = {}
        for dictionary, content in full.get("frontier", {}).items():
            for row, places in content["rows"].items():
                widths.setdefault(row, {})[dictionary] = places
        couplings = full.get("couplings") or {"losses": {}, "steering": {}}
        parts = {
            "headline": to_frame({"": full["headline"]}, ("name", "column")),
            "against controls": to_frame({"": full["against_controls"]}, ("name", "column")),
            "matching": to_frame({"": full["matching"]}, ("name", "column")),
            "edge parts": to_frame({"": full["edge_parts"]}, ("name", "column")),
            "rows": to_frame(full["rows"], ("name", "column", "place")),
            "frontier": to_frame(widths, ("name", "column", "place")),
            "couplings": to_frame({"": {"": couplings["losses"]}, **_effects(couplings["steering"])}, ("name", "place")),
            "curves": to_frame(_by_place(full), ("name", "column", "place")),
        }
        table = pd.concat([frame.assign(section=section) for section, frame in parts.items()], ignore_index=True)
        return table.fillna({"column": "", "place": ""})


def _effects(steering: Mapping[str, Any]) -> dict[str, Any]:
    return {task: {boundary: found["results"] for boundary, found in of.items()} for task, of in steering.items()}


def _by_place(full: Mapping[str, Any]) -> dict[str, Any]:
    """Results of the curves' points by task, column, and training seed, search seed and target, and the accuracy of each search."""
    found: dict[str, Any] = {}
    for run, by_task in {"": full["curves"], **full.get("further_training_seeds", {})}.items():
        which = f"training seed {run}, " if run else ""
        for task, columns in by_task.items():
            for column, curves in columns.items():
                places = found.setdefault(task, {}).setdefault(column, {})
                for curve in curves:
                    seed = f"{which}seed {curve['seed']}"
                    places[seed] = {"accuracy": curve["accuracy"]}
                    for point in curve["points"]:
                        places[f"{seed}, target {point['target']}"] = {**point["results"], **_counts(point)}
    return found


def _counts(point: Mapping[str, Any]) -> dict[str, Any]:
    """A circuit's nodes by site, and its edges by level and kind."""
    edges = {f"{level}_edges_{kind}": count for level, kinds in point["edges"].items() for kind, count in kinds.items()}
    return edges | {f"nodes_at_{site}": count for site, count in point["sites"].items()}


def compare(
    pair: ModelPair | str = "python",
    *,
    tasks: Sequence[str] | None = None,
    seeds: int = 1,
    config: SearchConfig | None = None,
    command: str = "sparse_lens.compare(...)",
    progress: bool = True,
    workers: int = 2,
    cache: str | Path | None = None,
) -> Comparison:
    """Compare the circuits of a pair's columns on `tasks` (default: those the pair names), with `seeds` search seeds.

    Every column gets the same effort (`config`), target, ablation and controls; columns run side by side on `workers` threads.
    What is done is kept in the folder `cache`, column by column and task by task, and not done again.
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
        columns = open_columns(pair)
        unspelled = _unspelled(pair, columns, names)
        settings = {name: _settings(columns, name, config, workers) for name in names if name not in unspelled}
        targets = {name: common_target(of_task) for name, of_task in settings.items()}
        models = _models(pair, columns)
        patching = _patching(columns, settings)
        kept = None if cache is None else Path(cache)
        found = search_columns(columns, settings, targets, config, seeds=seeds, workers=workers, progress=progress, cache=kept)
    results = {name: _task_entry(name, settings[name], targets[name], found[name], config) for name in settings}
    results |= {name: {"measurable": False, "failed_gate": [], "reason": why, "columns": {}} for name, why in unspelled.items()}
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


def _unspelled(pair: ModelPair, columns: Sequence[Column], tasks: Sequence[str]) -> dict[str, str]:
    """Why a task cannot be asked of all models: one with a tokenizer of its own spells an answer in several tokens."""
    found: dict[str, str] = {}
    for column in columns:
        for name in tasks if not pair.shares_tokens(column.role) else ():
            try:
                get_task(name).sample(column.bridge.tokenizer, 1, seed=0, split="search")
            except DataError as error:
                found.setdefault(name, f"{pair.model_name(column.role)}: {error}")
    return found


def _settings(columns: Sequence[Column], task: str, config: SearchConfig, workers: int) -> list[Setting]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda column: prepare_setting(column, task, config, seed=0), columns))


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
    return {role: {"name": pair.model_name(role), **_facts(pair, role, by_role[role])} for role in ROLES}


def _facts(pair: ModelPair, role: str, bridge: Any) -> dict[str, Any]:
    """A model's facts, and its loss by the byte: what can be compared where tokens cannot."""
    heldout = pair.windows_of(role)["heldout"]
    facts = model_facts(bridge, heldout)
    factor = bits_per_byte(1.0, heldout, load_tokenizer(pair.model_folder(role)))
    facts["bits_per_byte"] = scaled(facts["loss"], factor)
    return {**facts, "shares_tokens": pair.shares_tokens(role)}


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
