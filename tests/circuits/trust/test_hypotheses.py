"""The three tests on circuits that are ideal and on such as are not; p-values against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from sparse_lens.circuits.trust import equivalence_test, holm, independence_test, minimality_test
from sparse_lens.circuits.trust.hypotheses import equivalence_p_value, paired_hsic_p_value
from sparse_lens.errors import CircuitError

from .conftest import Planted, circuit_of, runs_of


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == [] and holm([0.2]) == [0.2]


@pytest.mark.parametrize(("ahead", "n", "margin"), [(10, 10, 0.1), (5, 10, 0.1), (2.5, 7, 0.0), (0, 3, 0.2)])
def test_equivalence_p_value_by_enumeration(ahead: float, n: int, margin: float) -> None:
    """Over all outcomes of n coins: how likely is a count at least as far from the middle?"""
    chance = 0.0
    for coins in product((0, 1), repeat=n):
        if abs(sum(coins) - n / 2) >= abs(ahead - n / 2):
            chance += (0.5 + margin) ** sum(coins) * (0.5 - margin) ** (n - sum(coins))
    assert equivalence_p_value(ahead, n, margin) == pytest.approx(chance)


def test_paired_hsic_by_enumeration() -> None:
    """Four pairs have 16 swaps; the p-value is the share of them with as large an HSIC, up to chance."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, generator=generator), torch.randn(8, generator=generator)

    def hsic(values: np.ndarray) -> float:
        def kernel(v: np.ndarray) -> np.ndarray:
            distance = np.abs(v[:, None] - v[None])
            return np.exp(-((distance / np.median(distance[distance > 1e-5])) ** 2) / 2)

        center = np.eye(8) - 1 / 8
        return float(np.trace(center @ kernel(x.double().numpy()) @ center @ kernel(values)))

    seen, above = hsic(y.double().numpy()), 0
    for swaps in product((False, True), repeat=4):
        swapped = y.double().numpy().copy().reshape(4, 2)
        swapped[list(swaps)] = swapped[list(swaps)][:, ::-1]
        above += hsic(swapped.flatten()) >= seen - 1e-9
    assert paired_hsic_p_value(x, y, n_permutations=4000) == pytest.approx(above / 16, abs=0.04)


def test_paired_hsic_of_known_dependence() -> None:
    side = torch.tensor([1.0, -1.0]).repeat(30)
    noise = torch.randn(60, generator=torch.Generator().manual_seed(1))
    assert paired_hsic_p_value(side, 2 * side + noise) < 0.01
    assert paired_hsic_p_value(side, torch.full((60,), 3.0)) == 1
    template = torch.randn(30, generator=torch.Generator().manual_seed(2)).repeat_interleave(2)
    assert paired_hsic_p_value(side + template, template) == 1  # what depends on the template alone says nothing of the task


def test_the_planted_circuit_is_ideal(planted: Planted) -> None:
    """With frozen norms and zeros for what is left out, its outputs are the model's own, and nothing comes out without it."""
    runs = runs_of(planted, ablation="zero", frozen_norms=True)
    equal, apart, least = equivalence_test(runs), independence_test(runs), minimality_test(runs)
    assert not equal.rejects() and equal.effect.value == 0.5
    assert not apart.rejects() and apart.p_value.value == 1 and apart.effect.value == 0
    assert not least.rejects() and least.redundant == () and least.effect.value == 0
    assert least.nodes == tuple(runs.circuit.mask.nonzero().flatten().tolist())
    assert min(least.effects) > max(least.random_effects)


def test_small_traces_are_rejected_and_their_size_is_said(planted: Planted) -> None:
    """Without the circuit every prompt's scale still tells a little of its kind: the test sees it, though no answer changes."""
    runs = runs_of(planted)
    apart = independence_test(runs)
    assert apart.rejects() and apart.effect.value == 0.5
    assert not equivalence_test(runs).rejects() and not minimality_test(runs).rejects()


def test_a_superset_is_not_minimal(planted: Planted) -> None:
    """Of the added nodes some are dead, some noise: none outdoes random ones; the planted four do."""
    more = {"mlp_in.0": [0, 5, 6], "mlp_neuron.0": [1, 2], "mlp_out.0": [1, 3], "final_resid": [3, 1]}
    found = minimality_test(runs_of(planted, circuit_of(planted, more, frozen_norms=True)))
    names = {index: name for name, part in planted.space.slices.items() for index in range(part.start, part.stop)}
    added = {(site, node) for site, nodes in more.items() for node in nodes if node not in planted.nodes[site]}
    assert found.rejects() and {(names[i], i - planted.space.slices[names[i]].start) for i in found.redundant} == added
    assert found.effect.value == pytest.approx(5 / 9) and found.effect.n == 9


def test_a_random_circuit_is_far_from_ideal(planted: Planted) -> None:
    wrong = circuit_of(planted, {"mlp_in.0": [5], "mlp_neuron.0": [4], "mlp_out.0": [5], "final_resid": [6]})
    runs = runs_of(planted, wrong)
    equal, apart = equivalence_test(runs), independence_test(runs)
    assert equal.rejects() and equal.effect.value == 0
    assert apart.rejects() and apart.effect.value == 1  # without it, the model is as good as ever
    assert minimality_test(runs).rejects()


def test_empty_and_whole_circuits(planted: Planted) -> None:
    """Nothing to drop, and nothing to add: not measurable."""
    circuit = circuit_of(planted)
    for mask in (torch.zeros_like(circuit.mask), torch.ones_like(circuit.mask)):
        found = minimality_test(runs_of(planted, replace(circuit, mask=mask)))
        assert not found.effect.measurable and found.effect.reason and not found.rejects()


def test_half_a_pair_is_refused(planted: Planted) -> None:
    runs = runs_of(planted)
    with pytest.raises(CircuitError, match="both prompts of every pair"):
        independence_test(replace(runs, prompts=runs.prompts.rows(slice(0, 63))))
