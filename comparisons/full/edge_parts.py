"""Where does a ratio of edges come from: pairs of nodes, density of the matrices, or circuits joined oftener than by chance?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve, CurvePoint
from sparse_lens.comparisons.curves.edge_levels import decompose
from sparse_lens.comparisons.full.hierarchical import hierarchical_ratio
from sparse_lens.comparisons.full.plan import BASE
from sparse_lens.results import Result, not_measurable

PARTS = ("pairs", "density", "remainder", "structural", "searched", "functional", "searched_bits")

_COUNTS = {"searched": "searched_edges", "functional": "functional_edges", "searched_bits": "searched_total_bits"}
"""Ratios of one number, by its name in a point."""

_NAMES = {"pairs": "pairs", "density": "density", "remainder": "remainder", "structural": "total"}
"""What `decompose` calls the others."""

Curves = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def edge_parts(
    curves: Curves, specs: Sequence[ColumnSpec], targets: Sequence[float], further: Mapping[str, Curves] | None = None
) -> dict[str, dict[str, Result]]:
    """By column, ratios of its edges to the sparse neurons', `<part>_at_<target>`: geometric means over tasks and training seeds.

    `pairs * density * remainder = structural`, task by task (`decompose`): the pairs of nodes that could be joined, the density of
    their matrices, and how much oftener than by chance the circuit's own nodes are joined. `searched` and `functional` are ratios
    of the other two levels of edges, `searched_bits` of the bits of circuits of searched edges: where both columns have them, so
    that the tasks may be fewer. All are of the first search seed, which these edges are searched with; a task counts where both
    circuits reached the target, and for the searched ones where their search did, too.
    """
    runs = {run: _first_curves(found) for run, found in ({"0": curves} | dict(further or {})).items()}
    return {
        spec.name: {f"{part}_at_{target:g}": _ratio(runs, spec.name, part, target) for target in targets for part in PARTS}
        for spec in specs
        if spec.name != BASE and any(spec.name in columns for columns in curves.values())
    }


def _first_curves(curves: Curves) -> dict[str, dict[str, CircuitCurve]]:
    """By task and column the curve of the first search seed."""
    return {task: {name: CircuitCurve.from_plain(of[0]) for name, of in columns.items()} for task, columns in curves.items()}


def _ratio(runs: Mapping[str, Mapping[str, Mapping[str, CircuitCurve]]], column: str, part: str, target: float) -> Result:
    found: dict[str, dict[str, list[float]]] = {}
    for run, curves in runs.items():
        for task, columns in curves.items():
            first, second = (_point(columns.get(name), target) for name in (column, BASE))
            value = _log_ratio(first.results, second.results, part) if first and second else None
            found.setdefault(run, {})[task] = [] if value is None else [math.exp(value)]
    return hierarchical_ratio(found)


def _point(curve: CircuitCurve | None, target: float) -> CurvePoint | None:
    return next((point for point in curve.points if point.target == target and point.reached), None) if curve else None


def _log_ratio(first: Mapping[str, Result], second: Mapping[str, Result], part: str) -> float | None:
    """The logarithm of one ratio; none where it has no number on both sides: a basis without edges, a search that failed."""
    sides = (first, second)
    if part not in _COUNTS:
        counted = all("possible_pairs" in side for side in sides)
        without = [{**side, "searched_edges": not_measurable("compared apart")} for side in sides]
        return decompose(without[0], without[1])[_NAMES[part]].value if counted else None
    if part.startswith("searched") and not all(
        side["searched_reached"].value if "searched_reached" in side else 0 for side in sides
    ):
        return None
    values = [side[_COUNTS[part]].value if _COUNTS[part] in side else None for side in sides]
    return math.log(values[0] / values[1]) if values[0] and values[1] else None
