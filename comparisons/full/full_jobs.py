"""The cells of the full comparison as jobs: curves, rows, matchings and stability."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sparse_lens.comparisons.column_specs import OWN_UNITS, ColumnSpec, fingerprints
from sparse_lens.comparisons.concepts.pair_labels import labels_read
from sparse_lens.comparisons.curves.circuit_curve import SCHEMA, edge_starts
from sparse_lens.comparisons.full.cells import ACTIVATION, ROWS, WEIGHTS
from sparse_lens.comparisons.full.full_columns import MATCHED, shape_of
from sparse_lens.comparisons.full.plan import BASE, FullPlan
from sparse_lens.comparisons.jobs import Job
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.reading import files_read

_CELLS = "sparse_lens.comparisons.full.cells"

_ROWS = "rows 2"
"""Raised when what all rows and matchings compute changes, so that older records are not taken for theirs."""

_CHANGED = {"probes": "FMS on token-ambiguous positions"}
"""What a row gives beside what it gave at first: its older records are computed anew."""

FRONTIER_ROWS = ("reconstruction", ACTIVATION, "concepts", "superposition")


def grouped_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec], tasks: Sequence[str]) -> dict[str, list[Job]]:
    """All curves and rows of the columns, by group; the shortest last, so that no worker waits long for another.

    `curves` and `rows` are of the pair itself, `curves 1` and `losses 1` of its first further training seed, and so on.
    """
    makers = (stability_jobs, correspondence_jobs, row_jobs, capability_jobs)
    return {
        "curves": curve_jobs(pair, plan, specs, tasks),
        **{f"curves {seed}": jobs for seed, jobs in further_jobs(pair, plan, specs, tasks).items()},
        "rows": [job for make in makers for job in make(pair, plan, specs)],
        **{f"losses {seed}": jobs for seed, jobs in further_capability(pair, plan, specs).items()},
    }


def curve_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec], tasks: Sequence[str]) -> list[Job]:
    """One job for every task, column and search seed (only the main columns get more than the first); upper lines have no curve."""
    settings = {
        "targets": list(plan.targets),
        "also_traced": sorted({*edge_starts(plan.edge_targets)} - {*plan.targets}),
        "n_windows": plan.curve_windows,
        "n_pairs": plan.curve_pairs,
        "config": plan.config.model_dump(mode="json"),
    }
    jobs = []
    for spec in specs:
        if spec.basis == "supervised":
            continue
        depends = [*fingerprints(pair, spec), f"curve schema {SCHEMA}"]
        for task in tasks:
            main = spec.name in plan.main_columns
            for seed in range(plan.seeds if main else 1):
                single = main and seed == 0
                edges = {"edge_targets": plan.edge_targets, "functional_targets": plan.functional_targets}
                place = {"column": spec.to_plain(), "task": task, "seed": seed}
                place |= {name: list(targets) if single else [] for name, targets in edges.items()}
                name = f"curve {task} in {spec.name}, seed {seed}"
                jobs.append(Job(name, f"{_CELLS}:curve_cell", _for(pair) | place | settings, depends))
    return jobs


def further_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec], tasks: Sequence[str]) -> dict[str, list[Job]]:
    """Curves of the pair's further training seeds, by seed: neurons of the sparse and the loss-matched model, one search seed."""
    neurons = _neurons_of_matched_loss(specs)
    seeds = pair.training_seeds()[1 : plan.training_seeds]
    return {str(number): curve_jobs(again, replace(plan, seeds=1), neurons, tasks) for number, again in enumerate(seeds, 1)}


def further_capability(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec]) -> dict[str, list[Job]]:
    """The losses of the same models, by training seed."""
    seeds = pair.training_seeds()[1 : plan.training_seeds]
    return {str(number): capability_jobs(of, plan, _neurons_of_matched_loss(specs)) for number, of in enumerate(seeds, 1)}


def _neurons_of_matched_loss(specs: Sequence[ColumnSpec]) -> list[ColumnSpec]:
    return [spec for spec in specs if spec.name in (BASE, f"{MATCHED}_neurons")]


def _measured(specs: Iterable[ColumnSpec]) -> list[ColumnSpec]:
    """Columns whose units and model are no other column's."""
    return [spec for spec in specs if spec.error_mode == "scored"]


def capability_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec]) -> list[Job]:
    """One job a column."""
    jobs = []
    for spec in _measured(specs):
        where = _for(pair) | {"column": spec.to_plain(), "tokens": plan.row_tokens}
        depends = fingerprints(pair, spec) + (list(labels_read(pair.address)) if spec.basis == "supervised" else [])
        jobs.append(Job(f"capability {spec.name}", f"{_CELLS}:capability_cell", where, depends))
    return jobs


def row_jobs(pair: ModelPair, plan: FullPlan, specs: Iterable[ColumnSpec], rows: Sequence[str] = tuple(ROWS)) -> list[Job]:
    """One job for every row, layer, column with MLP units of its own, and dictionary seed."""
    jobs, files = [], [files_read(pair)]
    for spec in _measured(specs):
        if spec.basis not in OWN_UNITS:
            continue
        reads = [*fingerprints(pair, spec), *labels_read(pair.address), _ROWS]
        for layer in plan.layers(shape_of(pair.address, spec.model).layers):
            for row in rows:
                depends = [*reads, *([_CHANGED[row]] if row in _CHANGED else []), *(files if row == ACTIVATION else [])]
                if row == WEIGHTS and spec.basis != "neurons":
                    continue
                for seed in range(max(1, len(spec.dictionaries))):
                    place = {"column": spec.to_plain(), "row": row, "layer": layer, "seed": seed, "tokens": plan.row_tokens}
                    name = f"{row} {spec.name}, layer {layer}, seed {seed}"
                    jobs.append(Job(name, f"{_CELLS}:row_cell", _for(pair) | place, depends))
    return jobs


def correspondence_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec]) -> list[Job]:
    """The sparse model's neurons matched with the units of every column that has its own, layer by layer.

    Where a column's model reads other tokens than the pair's, or has another depth, there is nothing to match: such columns are
    left out, and `left_out` names them.
    """
    base = next(spec for spec in specs if spec.name == BASE)
    layers = shape_of(pair.address, base.model).layers
    jobs = []
    for spec in _measured(specs):
        own = spec.basis in OWN_UNITS and spec.basis != "supervised" and spec is not base
        alike = spec.model not in pair.record or pair.shares_tokens(spec.model)
        if own and alike and shape_of(pair.address, spec.model).layers == layers:
            depends = [*fingerprints(pair, base), *fingerprints(pair, spec), *labels_read(pair.address), _ROWS]
            for layer in plan.layers(layers):
                place = {"first": base.to_plain(), "second": spec.to_plain(), "layer": layer, "tokens": plan.row_tokens}
                name = f"correspondence {spec.name}, layer {layer}"
                jobs.append(Job(name, f"{_CELLS}:correspondence_cell", _for(pair) | place, depends))
    return jobs


def stability_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec]) -> list[Job]:
    """One job for every layer of a column that has several dictionary seeds, or models of several training seeds."""
    again = pair.training_seeds()[1 : plan.training_seeds]
    jobs = []
    for spec in _measured(specs):
        others = again if spec in _neurons_of_matched_loss(specs) else []
        if not others and len(spec.dictionaries) < 2:
            continue
        depends = [*(part for of in (pair, *others) for part in fingerprints(of, spec)), _ROWS]
        for layer in plan.layers(shape_of(pair.address, spec.model).layers):
            place = {"column": spec.to_plain(), "layer": layer, "others": [of.address for of in others], "tokens": plan.row_tokens}
            name = f"stability {spec.name}, layer {layer}"
            jobs.append(Job(name, f"{_CELLS}:stability_cell", _for(pair) | place, depends))
    return jobs


def _for(pair: ModelPair) -> dict[str, Any]:
    return {"pair": pair.address}
