"""Knock-outs, interchange and mixtures: identities, and models in which something else does the task, too."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from sparse_lens.circuits.sites import full_mask
from sparse_lens.circuits.trust import (
    adversarial_ablation,
    interchange_accuracy,
    random_knockouts,
    same_under_knockouts,
    stochastic_ablation,
)
from sparse_lens.circuits.trust.knockouts import two_answer_kl
from sparse_lens.circuits.trust.mixtures import worst_mixture
from sparse_lens.errors import CircuitError

from .conftest import Planted, circuit_of, runs_of

PATH = {"mlp_in.0": [0], "mlp_neuron.0": [1], "mlp_out.0": [3], "final_resid": [3]}


def test_kl_of_two_answers_by_hand() -> None:
    model, other = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1.0, -2.0, -4.0])
    p, q = (torch.stack([side, torch.zeros(3)]).softmax(0) for side in (model, other))
    expected = (p * (p / q).log()).sum(0)
    torch.testing.assert_close(two_answer_kl(model, other), expected, atol=1e-6, rtol=1e-5)


def test_the_whole_model_is_the_same_under_any_knockout(planted: Planted) -> None:
    circuit = circuit_of(planted)
    whole = replace(circuit, mask=full_mask(planted.space))
    found = same_under_knockouts(runs_of(planted, whole), random_knockouts(circuit, 4))
    assert found.distance.value == found.intact.value == found.kl.value == found.kl_intact.value == 0


def test_knockouts_lie_inside_and_differ_in_size(planted: Planted) -> None:
    circuit = circuit_of(planted)
    draws = random_knockouts(circuit, 4)
    assert [int(draw.sum()) for draw in draws] == [1, 2, 2, 4] and all(bool((draw <= circuit.mask).all()) for draw in draws)


def test_a_second_way_shows_under_knockouts(planted: Planted, planted_twice: Planted) -> None:
    """One of two redundant paths is sufficient alone, but without it the model goes on and the circuit does not."""
    once = runs_of(planted, frozen_norms=True)
    twice = runs_of(planted_twice, circuit_of(planted_twice, PATH, frozen_norms=True))
    assert (twice.recovered(twice.alone).value or 0) > 0.9
    found = [same_under_knockouts(runs, random_knockouts(runs.circuit, 5)) for runs in (once, twice)]
    assert (found[0].distance.value or 0) < 1e-5 < 0.3 < (found[1].distance.value or 0)
    assert (found[1].intact.value or 0) < 0.1 and found[1].distance.n == 64 and found[1].distance.seeds == 5


def test_interchange_of_everything_and_of_nothing(planted: Planted) -> None:
    """All nodes from the other prompt give its answer; none leave the own one."""
    circuit = circuit_of(planted)
    whole = interchange_accuracy(runs_of(planted, replace(circuit, mask=full_mask(planted.space))))
    assert whole.moved.value == 1 and whole.held.value == 1 and whole.moved.null == 0
    empty = interchange_accuracy(runs_of(planted, replace(circuit, mask=full_mask(planted.space, keep=False))))
    assert empty.moved.value == 0 and empty.held.value == 0


def test_interchange_of_the_planted_nodes(planted: Planted) -> None:
    true = interchange_accuracy(runs_of(planted))
    false = interchange_accuracy(runs_of(planted, circuit_of(planted, {"mlp_in.0": [5], "mlp_out.0": [5], "final_resid": [6]})))
    assert true.moved.value == true.held.value == 1 and false.moved.value == false.held.value == 0


def test_mixtures_do_not_hurt_the_planted_circuit(planted: Planted) -> None:
    runs = runs_of(planted, frozen_norms=True)
    random, worst = stochastic_ablation(runs), adversarial_ablation(runs, runs)
    assert random.value == pytest.approx(1, abs=1e-4) and worst.value == pytest.approx(1, abs=1e-4)
    assert random.seeds == 6 and random.n == 64


def test_mixtures_of_the_whole_model_are_the_model(planted: Planted) -> None:
    runs = runs_of(planted, replace(circuit_of(planted), mask=full_mask(planted.space)))
    assert stochastic_ablation(runs).value == pytest.approx(1) and adversarial_ablation(runs, runs).value == pytest.approx(1)


def test_the_worst_mixture_by_a_grid(planted: Planted) -> None:
    """Three nodes left out, a grid of 4 x 4 x 4 coefficients: the ascent finds a loss as high."""
    circuit = replace(circuit_of(planted), mask=full_mask(planted.space)).without_nodes({"final_resid": [3, 5], "mlp_out.0": [3]})
    runs = runs_of(planted, circuit).of_pairs(4)
    free = (~circuit.mask).nonzero().flatten()

    def loss(mask: torch.Tensor) -> float:
        return float(runs.losses(runs.within(mask)).mean())

    grid = []
    for levels in product(torch.linspace(0, 1, 4).tolist(), repeat=3):
        mask = circuit.mask.float()
        mask[free] = torch.tensor(levels)
        grid.append(loss(mask))
    assert loss(worst_mixture(runs)) >= max(grid) - 1e-3


def test_at_least_one_draw(planted: Planted) -> None:
    runs = runs_of(planted)
    with pytest.raises(CircuitError, match="at least one set"):
        same_under_knockouts(runs, [])
    with pytest.raises(CircuitError, match="at least one draw"):
        stochastic_ablation(runs, n_draws=0)
