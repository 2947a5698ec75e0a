"""The headline of the full comparison: how many times the bits does a column need, at equal divergence from its own model?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve
from sparse_lens.comparisons.curves.curve_areas import size_at
from sparse_lens.comparisons.full.hierarchical import hierarchical_ratio
from sparse_lens.results import Result

BASE = "sparse_neurons"
DIVERGENCES = (1.0, 0.5, 0.3)
"""Nats at which sizes are compared, on held-out templates."""

SIZES = {"bits": "total_bits", "nodes": "nodes", "edges": "structural_edges"}
"""What is compared, by its name in a curve's points."""

Curves = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Records of curves by task and column, one for each search seed."""


def headline(
    curves: Curves, specs: Sequence[ColumnSpec], further: Mapping[str, Curves] | None = None
) -> dict[str, dict[str, Result]]:
    """By column, the ratio of its sizes to the sparse neurons': geometric means over tasks, hierarchical bootstrap intervals.

    `further` are the curves of other training seeds, by seed, of the columns that have them.

    A name is `<size>_ratio_at_<kl>`. A ratio compares the same task and search seed; a column with fewer seeds is compared on
    those. Tasks in which either side is gated out or whose curve does not reach the divergence do not count.
    """
    runs = {run: _opened(found) for run, found in ({"0": curves} | dict(further or {})).items()}
    return {
        spec.name: {
            f"{size}_ratio_at_{kl:g}": _ratio(runs, spec.name, lambda curve, kl=kl, name=name: size_at(curve, kl, size=name))
            for size, name in SIZES.items()
            for kl in DIVERGENCES
        }
        for spec in specs
        if spec.name != BASE
    }


Opened = dict[str, dict[str, list[CircuitCurve]]]


def _opened(curves: Curves) -> Opened:
    return {task: {name: [CircuitCurve.from_plain(r) for r in of] for name, of in c.items()} for task, c in curves.items()}


def _ratio(runs: Mapping[str, Opened], column: str, size: Callable[[CircuitCurve], Result]) -> Result:
    return hierarchical_ratio({run: _ratios(curves, column, size) for run, curves in runs.items()})


def _ratios(curves: Opened, column: str, size: Callable[[CircuitCurve], Result]) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {}
    for task, columns in curves.items():
        pairs = zip(columns.get(column, ()), columns.get(BASE, ()), strict=False)
        sizes = [(size(above).value, size(below).value) for above, below in pairs]
        ratios[task] = [above / below for above, below in sizes if above and below]
    return ratios
