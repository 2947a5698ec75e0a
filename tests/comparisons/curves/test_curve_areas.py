"""Curves of known form: bits at a divergence, and the area between two of them."""

from __future__ import annotations

import json
import math

import pytest

from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve, CurvePoint
from sparse_lens.comparisons.curves.curve_areas import Frontier, area_between, frontier, size_at
from sparse_lens.errors import ConfigError
from sparse_lens.results import Result, exact, not_measurable


def curve(points: list[tuple[float, float]], column: str = "a") -> CircuitCurve:
    made = [
        CurvePoint(kl, True, {"kl_heldout": Result(kl, kl / 2, 2 * kl, n=9), "total_bits": exact(size)}, {}, {})
        for kl, size in points
    ]
    return CircuitCurve(column, "task", 0, exact(1.0), tuple(made), facts={"targets": [kl for kl, _ in points]})


def test_a_power_law_is_read_exactly() -> None:
    found = curve([(kl, 100 * kl**-1.5) for kl in (0.25, 0.5, 1.0, 2.0)])
    for kl in (0.25, 0.3, 0.9, 1.7, 2.0):
        assert size_at(found, kl).value == pytest.approx(100 * kl**-1.5)
    for kl in (0.2, 2.1):
        outside = size_at(found, kl)
        assert not outside.measurable and "0.25 to 2" in (outside.reason or "")


def test_points_that_others_beat_are_left_out() -> None:
    """A point of more KL and more bits says nothing; nor does one that was not measured."""
    made = curve([(1.0, 50.0), (0.5, 80.0), (0.7, 90.0), (2.0, 50.0)])
    hidden = CurvePoint(3.0, False, {"kl_heldout": not_measurable("x"), "total_bits": exact(1.0)}, {}, {})
    made = CircuitCurve("a", "task", 0, exact(1.0), (*made.points, hidden))
    assert frontier(made) == Frontier((0.5, 1.0), (80.0, 50.0))
    with pytest.raises(ConfigError, match="have no 'edges'"):
        frontier(made, size="edges")
    some = [CurvePoint(kl, True, {"kl_heldout": exact(kl), "edges": exact(9.0 / kl)}, {}, {}) for kl in (1.0, 3.0)]
    some.append(CurvePoint(2.0, True, {"kl_heldout": exact(2.0)}, {}, {}))
    assert frontier(CircuitCurve("a", "task", 0, exact(1.0), tuple(some)), size="edges") == Frontier((1.0, 3.0), (9.0, 3.0))


def test_a_circuit_that_meets_a_divergence_meets_all_above_it() -> None:
    """The cheapest point is the strictest: it stands for looser divergences, as far as there are points at all."""
    made = curve([(0.3, 40.0), (0.6, 70.0), (1.2, 60.0)])
    assert [size_at(made, kl).value for kl in (0.3, 0.5, 1.0, 1.2)] == pytest.approx([40.0] * 4)
    assert not size_at(made, 1.3).measurable and not size_at(made, 0.2).measurable


def test_the_area_goes_as_far_as_the_curves_say_something() -> None:
    """A curve whose strictest circuit is its cheapest is flat to its loosest point, and has an area."""
    flat, other = curve([(0.5, 40.0), (2.0, 60.0)]), curve([(0.5, 80.0), (2.0, 80.0)])
    found = area_between(other, flat)
    assert found["kl_high"].value == 2.0 and found["mean_log_ratio"].value == pytest.approx(math.log(2))


def test_area_between_shifted_curves() -> None:
    """A curve of twice the bits lies log 2 above, whatever the points; the range is what both have."""
    first = curve([(kl, 200 / kl) for kl in (0.25, 1.0, 4.0)])
    second = curve([(kl, 100 / kl) for kl in (0.5, 0.8, 8.0)])
    found = area_between(first, second)
    assert found["mean_log_ratio"].value == pytest.approx(math.log(2))
    assert (found["kl_low"].value, found["kl_high"].value) == (0.5, 4.0)
    assert found["area"].value == pytest.approx(math.log(2) * math.log(8))
    back = area_between(second, first)
    assert back["area"].value == pytest.approx(-(found["area"].value or 0))
    assert area_between(first, first)["area"].value == 0


def test_area_of_crossing_curves_by_sums() -> None:
    """Against a fine sum; and nothing is said of curves that share no KL."""
    first, second = curve([(0.1, 900.0), (0.6, 200.0), (3.0, 20.0)]), curve([(0.2, 500.0), (2.0, 150.0), (2.5, 10.0)])
    steps, low, high = 2_000, math.log(0.2), math.log(2.5)
    one, other, total = frontier(first), frontier(second), 0.0
    for step in range(steps):
        kl = math.exp(low + (high - low) * (step + 0.5) / steps)
        total += math.log((size_at(one, kl).value or 0) / (size_at(other, kl).value or 1)) * (high - low) / steps
    assert area_between(first, second)["area"].value == pytest.approx(total, rel=1e-3)
    apart = area_between(curve([(0.1, 9.0), (0.2, 8.0)]), curve([(1.0, 5.0), (2.0, 4.0)]))
    assert not apart["area"].measurable and not apart["mean_log_ratio"].measurable
    assert not area_between(curve([]), second)["area"].measurable


def test_curves_are_plain_json_and_back() -> None:
    made = curve([(1.0, 50.0), (0.5, 80.0)])
    record = json.loads(json.dumps(made.to_plain()))
    assert CircuitCurve.from_plain(record) == made
    frame = made.to_frame()
    assert set(frame["metric"]) == {"kl_heldout", "total_bits"} and len(frame) == 4 and set(frame["seed"]) == {0}
    with pytest.raises(ValueError, match="schema"):
        CircuitCurve.from_plain(record | {"schema": 99})
