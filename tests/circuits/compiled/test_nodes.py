"""Circuits that searches and cards compile on the way, against the whole model under hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_lens.circuits import Ablation, find_circuit
from sparse_lens.circuits.compiled.masked import node_circuit
from sparse_lens.circuits.compiled.nodes import compiles
from sparse_lens.circuits.scoring import answer_logits, masked_differences
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.nodes import prepare_search
from sparse_lens.circuits.search.objectives import Objective
from sparse_lens.circuits.sites import full_mask
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.hooks import load

from ..conftest import random_bridge
from .test_compiled import MODELS, random_circuit, some_prompts


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_all_logits_equal_those_of_the_hooked_model(model: str, share: float) -> None:
    bridge = random_bridge(2, density=0.6, **MODELS[model])
    circuit, prompts = random_circuit(bridge, share, seed=2), some_prompts(seed=3)
    run = node_circuit(bridge, circuit.space, circuit.mask, circuit.how_ablated)
    assert run is not None
    hooks = circuit.how_ablated.hooks(bridge, circuit.space, circuit.mask, prompts)
    with torch.no_grad():
        expected = answer_logits(bridge, prompts, hooks, alike=True)
    torch.testing.assert_close(run(prompts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("edges", [False, True])
def test_a_cards_runs_equal_masked_ones(edges: bool) -> None:
    """Of nodes, and inside the circuit's cut edges; of a mixture the whole model runs."""
    bridge, prompts = random_bridge(1, density=0.6, **MODELS["sparse activations"]), some_prompts()
    circuit = random_circuit(bridge, 0.9, seed=2, edges=edges)
    runs = CircuitRuns(bridge, circuit, prompts, batch_size=7)
    for mask in (circuit.mask, ~circuit.mask, full_mask(circuit.space)):
        expected = masked_differences(bridge, circuit.space, mask, circuit.how_ablated, prompts)
        torch.testing.assert_close(runs.model(mask), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(runs.model(mask.float()), expected, atol=1e-5, rtol=1e-5)
        with runs.edges_cut():
            cut = masked_differences(bridge, circuit.space, mask, circuit.how_ablated, prompts)
        torch.testing.assert_close(runs.within(mask), cut, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["task", "kl"])
def test_a_search_scores_as_the_whole_model_does(kind: Any) -> None:
    """Candidates of every size in the shipped sparse model."""
    problem = prepare_search(load("python-sparse"), "if_equals", SearchConfig(), objective=Objective(kind))
    generator = torch.Generator().manual_seed(0)
    for share in (0.01, 0.2, 1.0):
        mask = torch.rand(problem.space.n_nodes, generator=generator) < share
        whole = problem.objective.measure(problem._hooked(mask), problem.search_prompts, problem.evaluation_prompts)
        assert problem.measure(mask).loss == pytest.approx(whole.loss, abs=1e-5)


def test_what_is_left_to_the_whole_model() -> None:
    """Values that depend on the prompts, frozen norms, half precision."""
    bridge = random_bridge(1)
    circuit = random_circuit(bridge, 0.5)
    assert compiles(bridge, circuit.space, circuit.how_ablated)
    for kind, frozen in (("counterfactual", False), ("resample", False), ("mean", True)):
        assert not compiles(bridge, circuit.space, Ablation(circuit.reference, kind, frozen))  # pyright: ignore[reportArgumentType]
    assert not compiles(bridge.to(torch.float64), circuit.space, circuit.how_ablated)


def test_a_search_of_counterfactual_ablation_still_runs() -> None:
    config = SearchConfig(steps=3, evaluations=4, search_pairs=32, evaluation_pairs=16)
    how: dict[str, Any] = {"ablation": "counterfactual", "target_loss": 9.0, "config": config, "progress": False}
    assert find_circuit(load("python-dense-matched"), "if_equals", **how).reached
