"""Factors of a ratio of edges, from counts by hand."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve, CurvePoint
from sparse_lens.comparisons.full.edge_parts import edge_parts
from sparse_lens.results import exact, not_measurable

SPECS = [ColumnSpec("sparse_neurons", "sparse"), ColumnSpec("dense_matched_neurons", "dense_matched")]


def curve(column: str, pairs: int, expected: float, edges: int, searched: int | None, reached: bool = True) -> list[dict[str, Any]]:
    results = {"possible_pairs": exact(pairs), "expected_edges": exact(expected), "structural_edges": exact(edges)}
    results |= {"searched_edges": not_measurable("not searched") if searched is None else exact(searched)}
    return [CircuitCurve(column, "t", 0, exact(1.0), (CurvePoint(0.5, reached, results, {}, {}),)).to_plain()]


def test_the_factors_multiply_to_the_whole() -> None:
    """Four times the pairs, five times the density, half of chance's surplus, a search that keeps a fifth against a half."""
    dense, sparse = curve("d", 400, 200.0, 200, 40), curve("s", 100, 10.0, 20, 10)
    found = edge_parts({task: {"dense_matched_neurons": dense, "sparse_neurons": sparse} for task in "abc"}, SPECS, [0.5])
    parts = {name.partition("_at_")[0]: result.value for name, result in found["dense_matched_neurons"].items()}
    assert parts == pytest.approx({"pairs": 4.0, "density": 5.0, "remainder": 0.5, "search": 0.4, "total": 4.0})
    assert list(found) == ["dense_matched_neurons"]


def test_unsearched_unreached_and_unpriced_points_are_left_out() -> None:
    sparse, unreached = curve("s", 100, 10.0, 20, 10), curve("d", 400, 200.0, 200, None, reached=False)
    assert edge_parts({task: {"sparse_neurons": sparse} for task in "abc"}, SPECS, [0.5]) == {}
    found = edge_parts({task: {"dense_matched_neurons": unreached, "sparse_neurons": sparse} for task in "abc"}, SPECS, [0.5])
    assert found["dense_matched_neurons"]["pairs_at_0.5"].n == 0
    mixed = [CircuitCurve("d", "t", 0, exact(1.0), (CurvePoint(0.5, True, {"nodes": exact(3)}, {}, {}),)).to_plain()]
    found = edge_parts({task: {"dense_matched_neurons": mixed, "sparse_neurons": sparse} for task in "abc"}, SPECS, [0.5])
    assert not any(result.measurable for result in found["dense_matched_neurons"].values())
