"""Matching of losses: within the tolerance, between two widths, and too far apart."""

from __future__ import annotations

import json
import math

import pytest

from sparse_lens.comparisons.curves.loss_matching import match_losses
from sparse_lens.errors import ConfigError
from sparse_lens.results import Result, exact, not_measurable


def loss(value: float, n: int = 64) -> Result:
    return exact(value, n=n)


def test_within_the_tolerance_a_model_is_taken_as_it_is() -> None:
    found = match_losses(loss(2.0), {"w48": loss(2.2), "w56": loss(2.04), "w64": loss(1.97)})
    assert found.how == "matched" and found.weights == {"w64": 1.0} and found.difference.value == pytest.approx(-0.03)
    own = Result(120.0, 100.0, 140.0, n=3)
    assert found.value({"w48": exact(1), "w56": exact(2), "w64": own}) is own
    assert (
        match_losses(loss(2.0), {"edge": loss(2.05)}).comparable and not match_losses(loss(2.0), {"edge": loss(2.0501)}).comparable
    )


def test_between_two_widths_a_quantity_is_interpolated() -> None:
    """A power law of the loss is found exactly at the target; the nearest on each side are used."""
    losses = {"w32": loss(3.0), "w48": loss(2.2), "w64": loss(1.9), "w96": loss(1.0)}
    found = match_losses(loss(2.0), losses)
    assert found.how == "interpolated" and found.weights == pytest.approx({"w48": 1 / 3, "w64": 2 / 3})
    sizes = {name: exact(math.exp(-3 * (result.value or 0))) for name, result in losses.items()}
    assert found.value(sizes).value == pytest.approx(math.exp(-6.0))
    assert found.value({name: exact((result.value or 0) - 3) for name, result in losses.items()}).value == pytest.approx(-1.0)
    hidden = sizes | {"w48": not_measurable("gate")}
    assert not found.value(hidden).measurable and "w48" in (found.value(hidden).reason or "")
    assert json.loads(json.dumps(found.to_plain()))["how"] == "interpolated"


def test_too_far_apart_is_said() -> None:
    match = match_losses(loss(2.0), {"a": loss(2.3), "b": loss(2.2)})
    assert match.how == "too far apart" and not match.comparable
    result = match.value({"a": exact(1), "b": exact(2)})
    assert not result.measurable and "0.2 nats" in (result.reason or "") and "b" in (result.reason or "")
    assert not match.weights and match.difference.value == pytest.approx(0.2)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="no candidate"):
        match_losses(loss(2.0), {})
    with pytest.raises(ConfigError, match="same files"):
        match_losses(loss(2.0), {"a": loss(2.0, n=32)})
    with pytest.raises(ConfigError, match="not measurable"):
        match_losses(loss(2.0), {"a": not_measurable("no windows", n=64)})
