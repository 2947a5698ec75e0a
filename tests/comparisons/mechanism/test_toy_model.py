"""The toy model's closed forms against its own loss, its readings on hand-made weights, and its projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate

from sparse_lens.comparisons.mechanism import toy_model, toy_reading
from sparse_lens.comparisons.mechanism.toy_phases import held_out_losses
from sparse_lens.comparisons.mechanism.toy_training import ToyCells, ToyConfig, largest_entries
from sparse_lens.comparisons.rows.sparsity_measures import dimensionality
from sparse_lens.errors import ConfigError
from sparse_lens.kernels import projection_mask

IMPORTANCE = torch.tensor([[1.0, 0.5, 0.25, 0.125]])


def cells(activity: float) -> ToyCells:
    return ToyCells(torch.tensor([activity]), IMPORTANCE, torch.tensor([8]))


@pytest.mark.parametrize("activity", [1.0, 0.3, 0.05])
def test_closed_forms_are_the_losses_of_the_models_they_describe(activity: float) -> None:
    """Nothing, and the two most important features alone: on evenly spread draws."""
    importance = IMPORTANCE[0].double().numpy()
    mean = torch.full((1, 4), activity / 2)
    nothing = held_out_losses(torch.zeros(1, 2, 4), mean, cells(activity))
    assert float(nothing) == pytest.approx(toy_model.loss_of_nothing(importance, activity), rel=0.01)
    alone = torch.tensor([[[1.0, 0, 0, 0], [0, -1.0, 0, 0]]])
    kept = held_out_losses(alone, mean * torch.tensor([0.0, 0, 1, 1]), cells(activity))
    assert float(kept) == pytest.approx(toy_model.loss_of_monosemantic(importance, activity, 2), rel=0.01)


@pytest.mark.parametrize("activity", [1.0, 0.3])
def test_antipodal_pairs(activity: float) -> None:
    """Two of them, where both features of one are active on enough of the draws."""
    pairs = torch.tensor([[[1.0, -1, 0, 0], [0, 0, 1, -1]]])
    found = held_out_losses(pairs, torch.zeros(1, 4), cells(activity))
    assert float(found) == pytest.approx(toy_model.loss_of_antipodal_pairs(IMPORTANCE[0].double().numpy(), activity), rel=0.04)


def test_an_antipodal_pair_by_quadrature() -> None:
    """The closed form's 1/6, integrated."""

    def error(y: float, x: float) -> float:
        return (x - max(0.0, x - y)) ** 2

    found, _ = integrate.dblquad(error, 0, 1, 0, 1)
    assert found == pytest.approx(1 / 6, abs=1e-6)


def test_draws_are_active_as_often_as_said_and_even_when_active() -> None:
    """Both moments of a feature at three activities."""
    uniform = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0))
    activity = torch.tensor([1.0, 0.2, 0.02])
    x = toy_model.draw_features(uniform, activity).double()
    assert torch.allclose((x > 0).double().mean((1, 2)), activity.double(), atol=5e-3)
    variances = torch.tensor([toy_model.feature_variance(p) for p in (1.0, 0.2, 0.02)], dtype=torch.float64)
    assert torch.allclose(x.flatten(1).var(1), variances, rtol=0.06)


def test_readings_of_hand_made_models() -> None:
    """One feature a neuron, two pairs, nothing: features per neuron, dimensionality, psi, and what is dropped."""
    alone = [[1.0, 0, 0, 0], [0, 1, 0, 0]]
    pairs = [[1.0, -1, 0, 0], [0, 0, 1, -1]]
    least = [[0.0, 0, 1, 0], [0, 0, 0, 1]]
    W = torch.tensor([alone, pairs, [[0.0] * 4] * 2, least])
    found = toy_reading.read_cells(W, IMPORTANCE.expand(4, 4))
    assert found["nonzeros"].tolist() == [2, 4, 0, 2] and found["represented"].tolist() == [2, 4, 0, 2]
    assert found["features_per_neuron"].tolist()[:2] == [1, 2] and found["features_per_neuron"][2].isnan()
    assert found["neurons_per_feature"].tolist()[:2] == [1, 1] and found["shared_neurons"].tolist()[:2] == [0, 1]
    assert found["dimensionality"].tolist()[:2] == [1, 0.5] and found["dimensionality"][2].isnan()
    assert torch.allclose(found["psi"][[0, 1, 3]], torch.tensor([1.0, 2, 1]).double()) and found["psi"][2].isnan()
    assert found["dropped_importance"].tolist() == pytest.approx([0.2, 0, 1, 0.8])
    assert found["importance_order"][0] == 1 and found["importance_order"][3] == 0 and found["importance_order"][1].isnan()


def test_readings_of_a_random_model() -> None:
    """Dimensionality as for one matrix; a rotation moves what depends on neurons, and nothing else."""
    W = 3 * torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    importance = torch.ones(2, 7)
    before, after = (toy_reading.read_cells(weights, importance) for weights in (W, toy_reading.rotated(W, seed=4)))
    expected = [float(dimensionality(one.T)[one.square().sum(0) >= 0.5].mean()) for one in W]
    assert before["dimensionality"].tolist() == pytest.approx(expected)
    for name in ("dimensionality", "psi", "represented"):
        assert torch.allclose(before[name], after[name])
    assert not torch.allclose(before["features_per_neuron"], after["features_per_neuron"])
    moved = toy_reading.shuffled(W, seed=0)
    assert torch.equal(moved.flatten(1).sort().values, W.flatten(1).sort().values) and not torch.equal(moved, W)


def test_the_projection_is_the_kernels() -> None:
    """The same entries as for one matrix at a time, at every budget."""
    W = torch.randn(22, 4, 5, generator=torch.Generator().manual_seed(2))
    kept = torch.arange(22)
    masks = largest_entries(W, kept)
    for one, k, mask in zip(W, kept.tolist(), masks, strict=True):
        assert torch.equal(mask, projection_mask(one, k))


def test_bad_cells() -> None:
    """An activity of zero, a negative budget or importance, and sizes of nothing are refused."""
    one, budget = torch.tensor([0.5]), torch.tensor([3])
    with pytest.raises(ConfigError, match="probability above 0"):
        ToyCells(torch.tensor([0.0]), IMPORTANCE, budget)
    with pytest.raises(ConfigError, match="0 weights or more, got -3"):
        ToyCells(one, IMPORTANCE, -budget)
    with pytest.raises(ConfigError, match="importance is 0 or more"):
        ToyCells(one, -IMPORTANCE, budget)
    with pytest.raises(ConfigError, match="sizes from 1"):
        ToyConfig(n_neurons=0)
    assert np.isfinite(toy_model.loss_of_nothing(IMPORTANCE[0].numpy(), 0.5))
