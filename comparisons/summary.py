"""The comparison in a few numbers: ratios of circuit sizes, as geometric means over tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_lens.results import Result, exact, geometric_mean, not_measurable

BASE = "sparse_neurons"
_OTHERS = {"": "dense_matched_neurons", "_dense": "dense_neurons", "_sae": "dense_sae"}


def summarize(tasks: Mapping[str, Mapping[str, Any]], seeds: int) -> dict[str, Result]:
    """Ratios over `sparse_neurons`: plain names for `dense_matched_neurons`, `_dense` for the wide twin, `_sae` for latents.

    `site_edge_ratio_geomean` leaves out embedding and unembedding edges, which grow with the number of tokens in the prompts. A
    task counts where both columns reached the target. The edge ratio is the product of three: of the pairs of nodes that could be
    joined (`edge_ratio_pairs`), of the density of their matrices (`edge_ratio_density`), and what is left, how much oftener than by
    chance the circuit's own nodes are joined (`edge_ratio_remainder`): only that is about circuits.
    """
    summary = {"tasks_measurable": exact(sum(bool(task["measurable"]) for task in tasks.values()), n=len(tasks))}
    for suffix, column in _OTHERS.items():
        summary[f"node_ratio_geomean{suffix}"] = _ratio(tasks, column, _nodes, seeds)
        if column != "dense_sae":
            summary[f"edge_ratio_geomean{suffix}"] = _ratio(tasks, column, _edges, seeds)
            summary[f"site_edge_ratio_geomean{suffix}"] = _ratio(tasks, column, _site_edges, seeds)
            for part, size in _PARTS.items():
                summary[f"edge_ratio_{part}{suffix}"] = _ratio(tasks, column, size, seeds)
    return summary


def _nodes(column: Mapping[str, Any]) -> float | None:
    return column["nodes"].value


def _edges(column: Mapping[str, Any]) -> float | None:
    return column["edges"].value


def _site_edges(column: Mapping[str, Any]) -> float | None:
    kinds = column["edges_by_kind"]
    return sum(kinds[kind].value for kind in ("q", "k", "v", "output", "mlp_in", "mlp_out")) if kinds else None


def _pairs(column: Mapping[str, Any]) -> float | None:
    return column["possible_pairs"].value


def _density(column: Mapping[str, Any]) -> float | None:
    pairs = _pairs(column)
    return column["expected_edges"].value / pairs if pairs else None


def _remainder(column: Mapping[str, Any]) -> float | None:
    edges = _edges(column)
    return edges / column["expected_edges"].value if edges is not None and _density(column) else None


_PARTS = {"pairs": _pairs, "density": _density, "remainder": _remainder}


def _ratio(tasks: Mapping[str, Mapping[str, Any]], column: str, size: Any, seeds: int) -> Result:
    ratios = []
    for task in tasks.values():
        columns = task["columns"]
        if column not in columns or not (columns[column]["reached"] and columns[BASE]["reached"]):
            continue
        above, below = size(columns[column]), size(columns[BASE])
        if above and below:
            ratios.append(above / below)
    if len(ratios) < 2:
        return not_measurable(f"{len(ratios)} task(s) with circuits in both {column} and {BASE}; a mean needs two", n=len(ratios))
    return geometric_mean(np.array(ratios), seeds=seeds)
