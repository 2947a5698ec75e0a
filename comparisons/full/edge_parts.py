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
from sparse_lens.results import Result

PARTS = ("pairs", "density", "remainder", "search", "total")


def edge_parts(
    curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], specs: Sequence[ColumnSpec], targets: Sequence[float]
) -> dict[str, dict[str, Result]]:
    """By column, the factors of its ratio of edges to the sparse neurons', `<part>_at_<target>`: geometric means over tasks.

    `pairs * density * remainder (* search) = total` on every task and search seed that has them all (`decompose`): the pairs of
    nodes that could be joined, the density of their matrices, how much oftener than by chance the circuit's own nodes are joined,
    and what a search of edges changes. All are of the first search seed, which single edges are searched with; a task counts where
    both circuits reached the target.
    """
    opened = {task: {n: [CircuitCurve.from_plain(r) for r in of] for n, of in columns.items()} for task, columns in curves.items()}
    return {
        spec.name: {f"{part}_at_{target:g}": _factor(opened, spec.name, part, target) for target in targets for part in PARTS}
        for spec in specs
        if spec.name != BASE and any(spec.name in columns for columns in curves.values())
    }


def _factor(curves: Mapping[str, Mapping[str, Sequence[CircuitCurve]]], column: str, part: str, target: float) -> Result:
    factors: dict[str, list[float]] = {}
    for task, columns in curves.items():
        found = _parts(*(_point(columns[name][0], target) if columns.get(name) else None for name in (column, BASE)))
        value = found[part].value if part in found else None
        factors[task] = [] if value is None else [math.exp(value)]
    return hierarchical_ratio({"0": factors})


def _point(curve: CircuitCurve, target: float) -> CurvePoint | None:
    return next((point for point in curve.points if point.target == target and point.reached), None)


def _parts(*points: CurvePoint | None) -> dict[str, Result]:
    """The logarithms of the factors; none for a missing point, or for a basis in which edges are not counted."""
    results = [point.results for point in points if point is not None and "possible_pairs" in point.results]
    return decompose(*results) if len(results) == 2 else {}
