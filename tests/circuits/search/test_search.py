"""Learning and search: a planted circuit is found exactly; sizes and targets behave as said."""

from __future__ import annotations

import pytest
import torch

from sparse_lens.circuits.search.candidates import Candidate, best_candidate
from sparse_lens.circuits.search.learning import SearchConfig, frozen, learn_mask
from sparse_lens.circuits.search.nodes import learn_masks, select_circuit
from sparse_lens.circuits.sites import full_mask

from ..conftest import Planted, problem_of

CONFIG = SearchConfig(steps=120, pairs_per_step=8, penalties=(1e-3,), evaluations=12)


def test_search_finds_the_planted_circuit(planted: Planted) -> None:
    problem = problem_of(planted)
    circuit = select_circuit(problem, learn_masks(problem, 0.02, CONFIG), 0.02, CONFIG)
    assert circuit.reached
    assert {name: kept for name, kept in circuit.kept().items() if kept} == planted.nodes


def test_no_smaller_mask_of_the_planted_nodes_meets_the_target(planted: Planted) -> None:
    """Brute force: dropping any one node of the circuit misses the target, so the found size is the least."""
    problem = problem_of(planted)
    whole = full_mask(planted.space, keep=False)
    for name, nodes in planted.nodes.items():
        whole[planted.space.slices[name]][nodes] = True
    assert problem.loss(whole) <= 0.02
    for index in whole.nonzero().flatten().tolist():
        fewer = whole.clone()
        fewer[index] = False
        assert problem.loss(fewer) > 0.02


def test_unreachable_target_gives_the_best_attempt(planted: Planted) -> None:
    problem = problem_of(planted)
    circuit = select_circuit(problem, learn_masks(problem, 1e-9, CONFIG), 1e-9, CONFIG)
    assert not circuit.reached
    assert circuit.loss == pytest.approx(min(row["loss"] for row in circuit.search["trace"]), abs=1e-5)


def test_equal_seeds_give_equal_masks(planted: Planted) -> None:
    problem = problem_of(planted)
    config = CONFIG.model_copy(update={"steps": 10})

    def learned(seed: int) -> torch.Tensor:
        arguments = (problem.bridge, problem.space, problem.ablation, problem.search_prompts, 0.1, config)
        return learn_mask(*arguments, penalty=1e-3, seed=seed).ranking

    assert torch.equal(learned(1), learned(1))
    assert not torch.equal(learned(1), learned(2))


def test_smallest_candidate_that_meets_the_target_wins() -> None:
    def candidate(size: int, loss: float) -> Candidate:
        return Candidate(torch.arange(10) < size, loss, "")

    found = [candidate(9, 0.01), candidate(4, 0.2), candidate(6, 0.1), candidate(5, 0.16)]
    assert best_candidate(found, 0.15).size == 6
    assert best_candidate(found, 0.001).size == 9


def test_frozen_puts_everything_back_after_an_error(planted: Planted) -> None:
    before = [parameter.requires_grad for parameter in planted.bridge.parameters()]
    with pytest.raises(RuntimeError), frozen(planted.bridge):
        assert not any(parameter.requires_grad for parameter in planted.bridge.parameters())
        raise RuntimeError
    assert [parameter.requires_grad for parameter in planted.bridge.parameters()] == before


def test_the_published_algorithm(planted: Planted) -> None:
    """Its values; a fixed price; a bisection along the ranking that ends at the planted nodes."""
    config = SearchConfig.published(steps=300, pairs_per_step=8, penalties=(3e-3,), learning_rate=1e-2)
    assert (config.method, config.weight_decay, config.gradient_clip, config.warm_up) == ("published", 1e-3, 1.0, 0.05)
    assert SearchConfig.published().steps == 2000 and SearchConfig.published().penalties == (1e-4,)
    problem = problem_of(planted)
    circuit = select_circuit(problem, learn_masks(problem, 0.02, config), 0.02, config)
    assert circuit.reached and {name: kept for name, kept in circuit.kept().items() if kept} == planted.nodes
    assert {row["source"].split()[0] for row in circuit.search["trace"]} == {"everything", "prefix"}
    assert len(circuit.search["trace"]) <= 8
