"""Factors of a ratio of edges, from counts by hand."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve, CurvePoint
from sparse_lens.comparisons.full.edge_parts import edge_parts
from sparse_lens.results import exact, not_measurable

SPECS = [ColumnSpec("sparse_neurons", "sparse"), ColumnSpec("dense_matched_neurons", "dense_matched")]


def curve(
    column: str, pairs: int, expected: float, edges: int, searched: int | None, *, reached: bool = True, search_reached: bool = True
) -> list[dict[str, Any]]:
    results = {"possible_pairs": exact(pairs), "expected_edges": exact(expected), "structural_edges": exact(edges)}
    if searched is None:
        results |= {"searched_edges": not_measurable("not searched")}
    else:
        results |= {
            "searched_edges": exact(searched),
            "searched_reached": exact(search_reached),
            "functional_edges": exact(searched / 2),
        }
        results |= {"searched_total_bits": exact(100 * searched)}
    return [CircuitCurve(column, "t", 0, exact(1.0), (CurvePoint(0.5, reached, results, {}, {}),)).to_plain()]


def parts_of(dense: list[dict[str, Any]], sparse: list[dict[str, Any]], **further: Any) -> dict[str, Any]:
    curves = {task: {"dense_matched_neurons": dense, "sparse_neurons": sparse} for task in "abc"}
    found = edge_parts(
        curves, SPECS, [0.5], {seed: {t: dict(zip(curves[t], of, strict=True)) for t in curves} for seed, of in further.items()}
    )
    assert list(found) == ["dense_matched_neurons"]
    return {name.partition("_at_")[0]: result for name, result in found["dense_matched_neurons"].items()}


SPARSE = curve("s", 100, 10.0, 20, 10)


def test_the_factors_multiply_to_the_structural_ratio() -> None:
    """Four times the pairs, five times the density, half of chance's surplus; the search keeps four times as many edges."""
    parts = {name: result.value for name, result in parts_of(curve("d", 400, 200.0, 200, 40), SPARSE).items()}
    assert parts == pytest.approx(
        {
            "pairs": 4.0,
            "density": 5.0,
            "remainder": 0.5,
            "structural": 10.0,
            "searched": 4.0,
            "functional": 4.0,
            "searched_bits": 4.0,
        }
    )


def test_a_search_of_edges_that_failed_is_no_number() -> None:
    parts = parts_of(curve("d", 400, 200.0, 200, 190, search_reached=False), SPARSE)
    assert parts["structural"].value == pytest.approx(10.0) and parts["functional"].measurable
    assert not parts["searched"].measurable and not parts["searched_bits"].measurable and parts["searched"].n == 0


def test_further_training_seeds_count_as_much() -> None:
    """Ten and forty times as many structural edges: twenty times."""
    parts = parts_of(curve("d", 400, 200.0, 200, 40), SPARSE, one=(curve("d", 400, 200.0, 800, 40), SPARSE))
    assert parts["structural"].value == pytest.approx(20.0) and parts["structural"].seeds == 2


def test_unsearched_unreached_and_unpriced_points_are_left_out() -> None:
    unsearched, unreached = curve("d", 400, 200.0, 200, None), curve("d", 400, 200.0, 200, 40, reached=False)
    assert {name for name, found in parts_of(unsearched, SPARSE).items() if found.measurable} == {
        *("pairs", "density", "remainder", "structural")
    }
    mixed = [CircuitCurve("d", "t", 0, exact(1.0), (CurvePoint(0.5, True, {"nodes": exact(3)}, {}, {}),)).to_plain()]
    for nothing in (unreached, mixed):
        assert not any(found.measurable for found in parts_of(nothing, SPARSE).values())
    assert edge_parts({task: {"sparse_neurons": SPARSE} for task in "abc"}, SPECS, [0.5]) == {}
