"""The headline of the full comparison: how many times the bits does a column need, at equal divergence from its own model?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve
from sparse_lens.comparisons.curves.curve_areas import size_at
from sparse_lens.comparisons.full.hierarchical import hierarchical_ratio
from sparse_lens.comparisons.full.plan import BASE
from sparse_lens.results import Result, not_measurable

DIVERGENCES = (1.0, 0.5, 0.3)
"""Nats at which sizes are compared, on held-out templates."""

ELSEWHERE = {"rephrased": ("kl_rephrased", (1.0, 0.5)), "natural": ("kl_natural", (3.0,))}
"""Where else, and at how many nats: on shifted prompts, and on real files, which no circuit of a task was searched for."""

SIZES = {"bits": "total_bits", "nodes": "nodes", "edges": "structural_edges"}
"""What is compared, by its name in a curve's points."""

OTHER_BITS = {"bits_once": "total_once_bits", "bits_without_dictionaries": "total_without_dictionary_bits"}
"""The same by other counts: no number twice, and dictionaries for nothing. Between these a reader's own rule will lie."""

MATCHED, TWIN = "dense_matched_neurons", "dense_neurons"
FIRST_TRAINING = "dense_matched_first_training"
"""`MATCHED` by its first training seed alone: what columns with one training seed are to be held against."""

BEST_BASIS = "dense_matched_best_basis"
BASES = (MATCHED, "dense_matched_components", "dense_matched_singular_vectors")
"""The bases of the loss-matched model of which `BEST_BASIS` takes, task by task, the one with the smallest circuit."""

INTERPOLATED = "dense_interpolated_neurons"
"""The dense model of the sparse one's loss, read off between the matched one and the twin where neither has that loss itself."""

Curves = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Records of curves by task and column, one for each search seed."""

OneOf = Callable[[Sequence[float | None]], float | None]
"""One size from those of several columns; None is a size that is not measurable."""


def headline(
    curves: Curves,
    specs: Sequence[ColumnSpec],
    further: Mapping[str, Curves] | None = None,
    widths: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Result]]:
    """By column, the ratio of its sizes to the sparse neurons': geometric means over tasks, hierarchical bootstrap intervals.

    `further` are the curves of other training seeds, by seed, of the columns that have them.

    `BEST_BASIS` stands beside them where more than one of `BASES` does: a choice after the fact that favours the dense model, in
    nodes alone, as bits have no number where channels are mixed; of the search seeds that all of them have, of the first training.
    `INTERPOLATED` does where `widths` are given, the shares of columns whose losses lie on either side of the sparse model's:
    sizes of the same task and search seed are interpolated between their logarithms, of the first training.
    A name is `<size>_ratio_at_<kl>`, and, of `ELSEWHERE`, `<size>_ratio_at_<kl>_<where>`; those of `OTHER_BITS` are of held-out
    templates alone. A ratio compares the same task and
    search seed; a column with fewer seeds is compared on those. Tasks in which either side is gated out or whose curve does not
    reach the divergence do not count.
    """
    runs = {run: _opened(found) for run, found in ({"0": curves} | dict(further or {})).items()}
    searched = {name for columns in curves.values() for name in columns}
    columns = {spec.name: [spec.name] for spec in specs if spec.name != BASE and spec.name in searched}
    sizes = (*SIZES, *OTHER_BITS)
    asked: dict[str, tuple[Mapping[str, Opened], Sequence[str], Sequence[str], OneOf]] = {
        column: (runs, of, sizes, _least) for column, of in columns.items()
    }
    first = {"0": runs["0"]}
    if further and MATCHED in columns:
        asked[FIRST_TRAINING] = (first, [MATCHED], sizes, _least)
    if len(bases := [name for name in BASES if name in columns]) > 1:
        asked[BEST_BASIS] = (first, bases, ("nodes",), _least)
    if widths and set(widths) <= set(columns):
        asked[INTERPOLATED] = (first, list(widths), sizes, _between(list(widths.values())))
    return {column: _ratios_of(of_runs, of, BASE, sizes, one) for column, (of_runs, of, sizes, one) in asked.items()}


def ratios_to(curves: Curves, base: str) -> dict[str, dict[str, Result]]:
    """By column, the ratio of its sizes to those of the column `base`, as in `headline`, for curves of one training seed."""
    opened = _opened(curves)
    names = list(dict.fromkeys(name for columns in curves.values() for name in columns if name != base))
    return {name: _ratios_of({"0": opened}, [name], base, (*SIZES, *OTHER_BITS)) for name in names}


def against_controls(
    curves: Curves, pairs: Sequence[tuple[str, str]], further: Mapping[str, Curves] | None = None
) -> dict[tuple[str, str], dict[str, Result]]:
    """For pairs of a column and its control, the ratio of their bits and nodes, as in `headline`; pairs without curves left out."""
    runs = {run: _opened(found) for run, found in ({"0": curves} | dict(further or {})).items()}
    searched = {name for columns in curves.values() for name in columns}
    return {
        (column, control): _ratios_of(runs, [column], control, ("bits", "nodes"))
        for column, control in pairs
        if {column, control} <= searched
    }


def _least(found: Sequence[float | None]) -> float | None:
    return min((value for value in found if value is not None), default=None)


def _between(shares: Sequence[float]) -> OneOf:
    def one(found: Sequence[float | None]) -> float | None:
        there = [value for value in found if value]
        if len(there) < len(found):
            return None
        return math.exp(sum(share * math.log(value) for share, value in zip(shares, there, strict=True)))

    return one


def _ratios_of(
    runs: Mapping[str, Opened], columns: Sequence[str], base: str, sizes: Sequence[str], one_of: OneOf = _least
) -> dict[str, Result]:
    found = {}
    for size in sizes:
        elsewhere = {} if size in OTHER_BITS else ELSEWHERE
        for where, (at, divergences) in ({"": ("kl_heldout", DIVERGENCES)} | elsewhere).items():
            for kl in divergences:

                def read(curve: CircuitCurve, kl: float = kl, at: str = at, size: str = size) -> Result:
                    if size in OTHER_BITS and not any(OTHER_BITS[size] in point.results for point in curve.points):
                        return not_measurable("bits are not counted in this basis")
                    return size_at(curve, kl, at=at, size=(SIZES | OTHER_BITS)[size])

                name = f"{size}_ratio_at_{kl:g}" + (f"_{where}" if where else "")
                found[name] = hierarchical_ratio({run: _ratios(of, columns, base, read, one_of) for run, of in runs.items()})
    return found


Opened = dict[str, dict[str, list[CircuitCurve]]]


def _opened(curves: Curves) -> Opened:
    return {task: {name: [CircuitCurve.from_plain(r) for r in of] for name, of in c.items()} for task, c in curves.items()}


def _ratios(
    curves: Opened, columns: Sequence[str], base_column: str, size: Callable[[CircuitCurve], Result], one_of: OneOf
) -> dict[str, list[float]]:
    """By task, the ratio for each search seed that all sides have."""
    ratios: dict[str, list[float]] = {}
    for task, by_column in curves.items():
        ratios[task] = []
        for *sides, below in zip(*(by_column.get(name, ()) for name in (*columns, base_column)), strict=False):
            above = one_of([size(side).value or None for side in sides])
            if above and (base := size(below).value):
                ratios[task].append(above / base)
    return ratios
