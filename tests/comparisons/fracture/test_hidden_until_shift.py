"""Hidden until shift: losses under change are zero where nothing changes, and the correlation finds what is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.fracture.hidden_until_shift import (
    ShiftPoint,
    disturbed_weights,
    hidden_until_shift,
    losses_under_change,
)
from sparse_lens.errors import ConfigError

TASK = "single_double_quote"


@pytest.fixture(scope="module")
def bridge() -> Any:
    return ModelPair.open().open_model("dense_matched")


def points(lost: np.ndarray, fracture: np.ndarray, loss: np.ndarray) -> list[ShiftPoint]:
    rows = zip(fracture, loss, lost, strict=True)
    return [ShiftPoint(str(i), float(f), float(b), float(c)) for i, (f, b, c) in enumerate(rows)]


def test_a_planted_dependence_is_found_and_noise_is_not() -> None:
    """What is lost follows fracture exactly, or not at all; the loss before anything changed is noise in both."""
    generator = np.random.default_rng(0)
    fracture, loss, noise = generator.random((3, 30))
    found = hidden_until_shift(points(fracture**2, fracture, loss))
    assert found["fracture_with_lost"].value == pytest.approx(1) and (found["fracture_with_lost"].lo or 0) > 0.9
    assert found["fracture_with_lost_given_loss"].value == pytest.approx(1)
    nothing = hidden_until_shift(points(noise, fracture, loss))["fracture_with_lost"]
    assert nothing.lo is not None and nothing.hi is not None and nothing.lo < 0 < nothing.hi and nothing.null == 0


def test_what_the_loss_explains_is_taken_out() -> None:
    """Fracture and loss of accuracy both follow the loss: the plain correlation is large, the partial one is not."""
    generator = np.random.default_rng(1)
    loss, *noise = generator.standard_normal((3, 300))
    found = hidden_until_shift(points(loss + noise[0], loss + noise[1], loss))
    assert (found["fracture_with_lost"].value or 0) > 0.4
    assert found["fracture_with_lost_given_loss"].value == pytest.approx(0, abs=0.1)
    # a witness for partial rank correlation: residuals of ranks
    ranks = [np.argsort(np.argsort(values)) for values in (loss + noise[1], loss + noise[0], loss)]
    left, right = (values - np.polyval(np.polyfit(ranks[2], values, 1), ranks[2]) for values in ranks[:2])
    assert found["fracture_with_lost_given_loss"].value == pytest.approx(np.corrcoef(left, right)[0, 1], abs=1e-9)


def test_few_or_equal_models_are_not_measurable() -> None:
    """Four models, and models of one fracture."""
    some = np.arange(4.0)
    assert "4 models" in str(hidden_until_shift(points(some, some, some))["fracture_with_lost"].reason)
    equal = hidden_until_shift(points(np.arange(6.0), np.ones(6), np.arange(6.0)))
    assert not equal["fracture_with_lost"].measurable


def test_a_partial_correlation_of_few_models_has_no_interval() -> None:
    """Its resamples, where two columns are often ordered alike, would exclude 0 in most draws of nothing; from twelve on they do
    so as seldom as they should."""
    excluded = 0
    for seed in range(60):
        fracture, loss, lost = np.random.default_rng(seed).standard_normal((3, 14))
        few, enough = (hidden_until_shift(points(lost[:n], fracture[:n], loss[:n])) for n in (11, 14))
        assert few["fracture_with_lost_given_loss"].lo is None and few["fracture_with_lost"].lo is not None
        partial = enough["fracture_with_lost_given_loss"]
        assert partial.lo is not None and partial.hi is not None
        excluded += not partial.lo <= 0 <= partial.hi
    assert excluded <= 8
    ordered = np.arange(20.0)
    alike = hidden_until_shift(points(np.random.default_rng(0).random(20), ordered, 2 * ordered))
    assert "order models alike" in str(alike["fracture_with_lost_given_loss"].reason)


def test_noise_is_gone_afterwards_and_keeps_zeros() -> None:
    """Multiplied weights: zeros stay, also by an exception the model gets its own weights back."""
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, 0] = 0
    before = model.weight.detach().clone()
    with pytest.raises(KeyError), disturbed_weights(model, 0.5):
        assert model.weight[0, 0] == 0 and not torch.equal(model.weight, before)
        raise KeyError
    assert torch.equal(model.weight, before)


def test_more_noise_costs_the_shipped_model_more(bridge: Any) -> None:
    """Hardly any noise costs nothing; much costs accuracy; a shift is measured beside it."""
    little, much = (losses_under_change(bridge, [TASK], n_pairs=16, draws=2, noise=noise) for noise in (1e-4, 1.5))
    assert little["loss_rise_by_noise"].value == pytest.approx(0, abs=1e-2)
    assert little["accuracy_lost_to_noise"].value == pytest.approx(0, abs=0.05)
    assert (much["loss_rise_by_noise"].value or 0) > 0.2
    for name in ("accuracy", "accuracy_lost_to_shift", "loss_rise_by_shift"):
        assert little[name].value == much[name].value
    with pytest.raises(ConfigError):
        losses_under_change(bridge, [], n_pairs=4)
