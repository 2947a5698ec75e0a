"""Circuits of many tasks in many models, at converged effort: found one by one, each kept as JSON as soon as it is there.

A record is one task in one model: what the model does on it, and, for each search seed, the nodes, the edges between them, the
edges after an edge search, and the verdict of the circuit's card. All models of a task share one target, as in a comparison.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sparse_lens.circuits import Circuit, SearchConfig, count_edges, evaluate_circuit, node_space
from sparse_lens.circuits.edges.search import edge_problem
from sparse_lens.circuits.search.effort import converge, size_of
from sparse_lens.circuits.search.growing import Find, growing_edge_search, growing_search
from sparse_lens.circuits.search.problems import default_windows, search_problem
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.circuits.trust import CircuitCard
from sparse_lens.comparisons.circuit_sizes import NONSENSE_TASK, Setting, common_target, prepare_setting
from sparse_lens.comparisons.columns import Column
from sparse_lens.files import new_file
from sparse_lens.hooks import load
from sparse_lens.results import exact, not_measurable
from sparse_lens.tasks import AnyTask, available_tasks, get_task

MODELS = ("python-sparse", "python-dense-matched", "python-dense")
"""The shipped pair's models: weight-sparse, dense of the same loss, dense of the same shape and tokens."""

SEEDS = (0, 1, 2)

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is searched: models (shipped names or folders), tasks, seeds, the single effort, and how often it may be doubled."""

    models: Sequence[str] = MODELS
    tasks: Sequence[str] = tuple(available_tasks())
    seeds: Sequence[int] = SEEDS
    config: SearchConfig = field(default_factory=SearchConfig)
    max_doublings: int = 3

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The models, opened, with the means that stand in for ablated nodes."""
        return {name: _open(name) for name in self.models}

    def settings(self, task: str) -> dict[str, Setting]:
        """What every model does on a task, before any search."""
        return {name: prepare_setting(column, task, self.config, seed=0) for name, column in self.columns.items()}


def _open(name: str) -> Column:
    bridge = load(name)
    return Column(name, name, bridge, node_space(bridge), default_windows(bridge))


def record_path(folder: Path, model: str, task: str) -> Path:
    """Where the record of a task in a model is kept."""
    return folder / Path(model).name / f"{task}.json"


def fill_records(folder: Path, plan: Plan, only: Sequence[str] | None = None) -> None:
    """Find every circuit of `plan` that `folder` has none of yet, for the models in `only` (default: all).

    It goes on where it stopped. All models of the plan are opened, since the target of a task depends on all of them. A record of
    another fingerprint (other weights, prompts or search settings) is made anew.
    """
    for task in plan.tasks:
        settings = plan.settings(task)
        target = common_target(list(settings.values()))
        for model in only or plan.models:
            path = record_path(folder, model, task)
            record = _started(path, settings[model], target, plan)
            for seed in plan.seeds if settings[model].passes else ():
                if str(seed) not in record["seeds"]:
                    nonsense = _nonsense(folder, plan, model, target, seed)
                    record["seeds"][str(seed)] = _cell(settings[model], target, plan, seed, nonsense)
                    _write(path, record)
            _write(path, record)


def fingerprint(setting: Setting, target: float, plan: Plan) -> str:
    """Of everything a record's numbers depend on but the code: weights, prompts, target, and the settings of the search."""
    prompts = setting.problem.search_prompts, setting.problem.evaluation_prompts, setting.heldout
    facts = [model_fingerprint(setting.column.bridge), f"{target:.4f}", plan.config.model_dump_json(), str(plan.max_doublings)]
    digest = hashlib.sha256("\n".join(facts).encode())
    for part in prompts:
        digest.update(part.tokens.numpy().tobytes())
    return digest.hexdigest()[:16]


def read_record(path: Path) -> Record | None:
    """A kept record, None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _started(path: Path, setting: Setting, target: float, plan: Plan) -> Record:
    """The record that is there, or a new one without circuits."""
    made = fingerprint(setting, target, plan)
    kept = read_record(path)
    if kept is not None and kept["fingerprint"] == made:
        return kept
    return {
        "model": Path(setting.column.name).name,
        "task": setting.problem.task,
        "fingerprint": made,
        "target": target,
        "accuracy": setting.accuracy.to_json(),
        "full_loss": setting.full_loss.to_json(),
        "seeds": {},
    }


def _write(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as staging:
        staging.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _cell(setting: Setting, target: float, plan: Plan, seed: int, nonsense: Record) -> Record:
    """One seed: sizes at converged effort, and the verdict of a quick card beside the nonsense control."""
    started, column = time.perf_counter(), setting.column
    task = get_task(setting.problem.task)
    nodes = _nodes(column, task, target, plan, seed)
    between = sum(count_edges(column.space, nodes.mask, setting.problem.graph).values())
    problem = edge_problem(column.bridge, nodes, task, plan.config, seed=seed)
    edges = _converged(growing_edge_search(problem, nodes, target, seed=seed, progress=True), plan)
    card = _with_nonsense(evaluate_circuit(column.bridge, nodes, task, seed=seed, progress=False), nonsense)
    return {
        "nodes": nodes.n_nodes,
        "reached": nodes.reached,
        "loss": round(nodes.loss, 5),
        "edges_between_nodes": between,
        "edges": size_of(edges),
        "edges_reached": edges.reached,
        "edges_loss": round(edges.loss, 5),
        "nodes_with_edges": edges.n_nodes,
        "convergence": {"nodes": nodes.search["convergence"], "edges": edges.search["convergence"]},
        "nonsense": nonsense,
        "sufficiency": card.heldout.sufficiency.to_json(),
        "necessity": card.heldout.necessity.to_json(),
        "verdict": card.verdict_lines,
        "seconds": round(time.perf_counter() - started),
    }


def _nodes(column: Column, task: AnyTask, target: float, plan: Plan, seed: int) -> Circuit:
    problem = search_problem(column.bridge, column.space, column.ablation, task, plan.config, seed=seed)
    return _converged(growing_search(problem, target, seed=seed, progress=True), plan)


def _converged(find: Find, plan: Plan) -> Circuit:
    return converge(find, plan.config, max_doublings=plan.max_doublings).circuits[0]


def _nonsense(folder: Path, plan: Plan, model: str, target: float, seed: int) -> Record:
    """The nonsense task's circuit at a target and seed, found once for all tasks that have this target."""
    path = record_path(folder, model, f"{NONSENSE_TASK}@{target:.4f}")
    settled = [model_fingerprint(plan.columns[model].bridge), plan.config.model_dump_json(), plan.max_doublings]
    made = hashlib.sha256(json.dumps(settled).encode()).hexdigest()[:16]
    kept = read_record(path)
    record = kept if kept is not None and kept["fingerprint"] == made else {"fingerprint": made, "target": target, "seeds": {}}
    if str(seed) not in record["seeds"]:
        found = _nodes(plan.columns[model], get_task(NONSENSE_TASK), target, plan, seed)
        facts = {"nodes": found.n_nodes, "reached": found.reached, "loss": round(found.loss, 5)}
        record["seeds"][str(seed)] = facts | {"convergence": found.search["convergence"]}
        _write(path, record)
    return {name: record["seeds"][str(seed)][name] for name in ("nodes", "reached", "loss")}


def _with_nonsense(card: CircuitCard, nonsense: Record) -> CircuitCard:
    """The card with the control that a quick one lacks."""
    if nonsense["reached"]:
        ratio = exact(nonsense["nodes"] / max(card.nodes, 1))
        found = {"nonsense_nodes": exact(nonsense["nodes"]), "nonsense_ratio": ratio}
    else:
        missing = not_measurable(f"not fitted to the target; best loss {nonsense['loss']:.3g}")
        found = {"nonsense_nodes": missing, "nonsense_ratio": missing}
    found["nonsense_loss"] = exact(nonsense["loss"])
    controls = dict(card.measures.get("controls", {})) | found
    return replace(card, measures=dict(card.measures) | {"controls": controls})
