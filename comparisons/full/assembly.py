"""From the records of all cells to the part `full` of a comparison's metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.full.edge_parts import edge_parts
from sparse_lens.comparisons.full.full_columns import Wanted
from sparse_lens.comparisons.full.full_verdict import CAVEATS, controls_of, left_out, undistinguished, unmatched
from sparse_lens.comparisons.full.headline import (
    BEST_BASIS,
    FIRST_TRAINING,
    INTERPOLATED,
    MATCHED,
    TWIN,
    against_controls,
    headline,
)
from sparse_lens.comparisons.full.matching import ModelLosses, bracketing_widths, interpolated_match, match_to_base
from sparse_lens.comparisons.full.plan import FullPlan
from sparse_lens.comparisons.jobs import Job, Record
from sparse_lens.comparisons.rows.stability import circuit_overlap
from sparse_lens.dictionaries import load_saelens
from sparse_lens.results import Result, from_plain

Cells = Sequence[tuple[Job, Record]]

_APART = ("map", "per_label", "per_window")
"""What a row's record has beside its numbers."""


def assemble(
    plan: FullPlan,
    specs: Sequence[ColumnSpec],
    trained: Sequence[Record],
    *,
    curves: Cells,
    rows: Cells,
    further: Mapping[str, Cells] | None = None,
    capability: Mapping[str, Cells] | None = None,
    other_tokens: Collection[str] = (),
    frontier: tuple[Mapping[ColumnSpec, Wanted], Cells] | None = None,
    absent_parts: Sequence[str] = (),
) -> dict[str, Any]:
    """The part `full` of the metrics from the cells' records.

    `further` and `capability` are the curves and the losses of other training seeds, by seed; `other_tokens` names columns whose
    models read other tokens than the sparse one; `absent_parts` are sentences about what the pair cannot have.
    """
    by_task = _by_task(curves)
    again = {seed: _by_task(found) for seed, found in (further or {}).items()}
    parts = _by_row(rows)
    by_row = parts["rows"] | {"overlap": _overlaps(by_task)}
    losses = _losses(parts, plan)
    dense = [name for name in (MATCHED, TWIN) if name not in other_tokens]
    widths = bracketing_widths(losses, dense)
    summary = headline(by_task, specs, again, widths)
    against = against_controls(by_task, [(column, control) for column, control, _ in controls_of(plan.kinds)], again)
    matching = match_to_base(
        losses,
        _same_losses(plan, summary),
        other_tokens=other_tokens,
        further={seed: _losses(_by_row(found), plan) for seed, found in (capability or {}).items()},
    )
    if INTERPOLATED in summary:
        matching[INTERPOLATED] = interpolated_match(widths)
    return {
        "schema": 2,
        "columns": {spec.name: _about(spec, {record["folder"]: record["hash"] for record in trained}) for spec in specs},
        "dictionaries": [dict(record) for record in trained],
        "targets": list(plan.targets),
        "curves": _without_nodes(by_task),
        "further_training_seeds": {seed: _without_nodes(found) for seed, found in again.items()},
        "rows": by_row,
        "maps": parts["map"],
        "frontier": _frontier(*frontier, parts["rows"], trained, plan) if frontier else {},
        "headline": summary,
        "matching": matching,
        "edge_parts": edge_parts(by_task, specs, plan.edge_targets, again),
        "against_controls": {f"{column} over {control}": ratios for (column, control), ratios in against.items()},
        "undistinguished": undistinguished(summary, by_row, parts["per_label"], specs, plan.kinds, against),
        "unmatched": unmatched({column: match for column, match in matching.items() if column in summary}),
        "left_out": [*absent_parts, *left_out({"": by_task} | again, by_row, specs)],
        "caveats": list(CAVEATS),
    }


def _losses(parts: Mapping[str, ByPlace], plan: FullPlan) -> dict[str, ModelLosses]:
    """Losses of every column's model; with no error nodes in any circuit it is the model without the errors that counts."""
    windows = parts["per_window"].get("capability", {})
    models = {column: places["model"] for column, places in parts["rows"].get("capability", {}).items()}
    found = {column: ModelLosses(results, windows.get(column, {}).get("model", {})) for column, results in models.items()}
    dictionaries = f"dense_{plan.kinds[0]}"
    if dictionaries in found:
        found[f"{dictionaries}_errors_ablated"] = found[dictionaries].without_errors()
    return found


def _same_losses(plan: FullPlan, summary: Mapping[str, Any]) -> dict[str, str]:
    """Columns whose model is another's, with that one."""
    dictionaries = f"dense_{plan.kinds[0]}"
    same = {f"{dictionaries}_errors_kept": dictionaries, BEST_BASIS: MATCHED, FIRST_TRAINING: MATCHED}
    return {column: of for column, of in same.items() if column in summary}


ByPlace = dict[str, dict[str, dict[str, Any]]]
"""By row, column and place."""


def _by_row(rows: Cells) -> dict[str, ByPlace]:
    """Under `rows` the numbers of all rows, and what some have beside them: `map`, `per_label`, `per_window`."""
    found: dict[str, ByPlace] = {"rows": {}, **{part: {} for part in _APART}}
    for job, record in rows:
        row, column, place = _place(job)
        numbers = from_plain({name: value for name, value in record.items() if name not in _APART})
        found["rows"].setdefault(row, {}).setdefault(column, {})[place] = numbers
        for part in _APART:
            if part in record:
                found[part].setdefault(row, {}).setdefault(column, {})[place] = record[part]
    return found


def _by_task(curves: Cells) -> dict[str, dict[str, list[Record]]]:
    """Records of curves by task and column, in the order of their search seeds."""
    found: dict[str, dict[str, list[Record]]] = {}
    for job, record in curves:
        found.setdefault(job.arguments["task"], {}).setdefault(job.arguments["column"]["name"], []).append(record)
    return found


def _place(job: Job) -> tuple[str, str, str]:
    """Row, column, and layer and seed, of a cell that is no curve."""
    arguments = job.arguments
    if "second" in arguments:
        return "correspondence", arguments["second"]["name"], f"layer {arguments['layer']}"
    if "row" in arguments:
        seed = f", seed {arguments['seed']}" if len(arguments["column"]["dictionaries"]) > 1 else ""
        return arguments["row"], arguments["column"]["name"], f"layer {arguments['layer']}{seed}"
    if "others" in arguments:
        return "stability", arguments["column"]["name"], f"layer {arguments['layer']}"
    return "capability", arguments["column"]["name"], "model"


def _overlaps(by_task: Mapping[str, Mapping[str, Sequence[Record]]]) -> dict[str, dict[str, dict[str, Result]]]:
    """By column and task, the overlap of the circuits that the search seeds found at each target.

    Columns with one search seed are left out, and those whose dictionaries change with the seed: their nodes are not the same.
    """
    found: dict[str, dict[str, dict[str, Result]]] = {}
    for task, columns in by_task.items():
        for column, records in columns.items():
            same_nodes = len({tuple(record["facts"].get("dictionaries", ())) for record in records}) == 1
            if len(records) > 1 and same_nodes and all(record["points"] for record in records):
                sizes = records[0]["facts"]["sites"]
                found.setdefault(column, {})[task] = {
                    f"jaccard_at_{points[0]['target']:g}": circuit_overlap([_mask(point["kept"], sizes) for point in points])
                    for points in zip(*(record["points"] for record in records), strict=True)
                }
    return found


def _mask(kept: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> Bool[Tensor, " node"]:
    """A circuit's mask from the indices of its nodes at each site."""
    parts = []
    for name, size in sizes.items():
        parts.append(torch.zeros(size, dtype=torch.bool))
        parts[-1][list(kept.get(name, ()))] = True
    return torch.cat(parts)


def _without_nodes(by_task: Mapping[str, Mapping[str, Sequence[Record]]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The same curves without the indices of kept nodes, which only the overlaps need."""
    return {
        task: {
            column: [
                {**record, "points": [{k: v for k, v in point.items() if k != "kept"} for point in record["points"]]}
                for record in records
            ]
            for column, records in columns.items()
        }
        for task, columns in by_task.items()
    }


def _frontier(
    specs: Mapping[ColumnSpec, Wanted], cells: Cells, rows: Mapping[str, ByPlace], trained: Sequence[Record], plan: FullPlan
) -> dict[str, dict[str, Any]]:
    """By dictionary, its size and its rows; that of the column, with its first seed, among them."""
    further = _by_row(cells)["rows"]
    found = {
        spec.name: {"d_sae": wanted.d_sae, "k": wanted.k, "rows": {row: columns[spec.name] for row, columns in further.items()}}
        for spec, wanted in specs.items()
    }
    kind = plan.kinds[0]
    own = {row: _first_seed(rows.get(row, {}).get(f"dense_{kind}", {})) for row in further}
    if any(own.values()):
        size = next(int(record["d_sae"]) for record in trained if record["kind"] == kind)  # the columns' own ones are the first
        found[f"{kind} {size} k{plan.k}"] = {"d_sae": size, "k": plan.k, "rows": own}
    return found


def _first_seed(places: Mapping[str, Any]) -> dict[str, Any]:
    return {place: results for place, results in places.items() if ", seed " not in place or place.endswith(", seed 0")}


def _about(spec: ColumnSpec, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What a column is; `dictionaries` has the hashes of its dictionaries by seed and layer."""
    return {"model": spec.model, "basis": spec.basis, "control": spec.control, "shuffled": spec.shuffled} | {
        "dictionary_seeds": len(spec.dictionaries),
        "dictionaries": [[hashes.get(folder) or load_saelens(folder).hash for folder in folders] for folders in spec.dictionaries],
        "error_mode": spec.error_mode,
    }
