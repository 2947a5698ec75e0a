"""Compiled edge searches against the whole model under hooks: logits, slopes and scores, in random models of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import Ablation, find_circuit, mean_reference, node_space, weight_graph
from sparse_lens.circuits.edges.cutting import input_means
from sparse_lens.circuits.edges.running import cut_circuit
from sparse_lens.circuits.edges.search import EdgeProblem, edge_problem, learn_edges
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.prompts import both_sides
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.objectives import Objective
from sparse_lens.circuits.search.problems import SearchProblem
from sparse_lens.hooks import load
from sparse_lens.models.config import ABSTOPK_SITES
from sparse_lens.tasks import get_task

from ..conftest import FIRST, SECOND, VOCAB, pairs, random_bridge

WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
EVERY = ",".join(ABSTOPK_SITES)
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sparse activations": {"afrac": 0.5, "afrac_loctypes": EVERY, "sink": True},
    "sparse stream": {"afrac": 0.6, "afrac_loctypes": "resid_post_mlp,attn_q", "residual_activation_type": "relu"},
    "sink and bigram": {"sink": True, "enable_bigram_table": True, "activation_type": "relu"},
    "positions beside": {"d_pos_emb": 4, "afrac": 0.5, "afrac_loctypes": "attn_in,mlp_in", "sink": True},
    "sinusoidal": {"d_pos_emb": 5, "sinusoidal_cat_pos_emb": True, "rms_norm": False},
    "no biases": {"bias": False, "rms_norm": False, "ln_bias": False, "n_head": 4},
    "experts": {"n_experts": 3, "experts_per_token": 2},
}


def problem_with(bridge: Any, *, share: float = 0.9, ablation: str = "mean", seed: int = 0) -> EdgeProblem:
    """The edges between random nodes, a share of each site."""
    space, batch = node_space(bridge), pairs(12)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(seed)) < share
    how = Ablation(mean_reference(bridge, space, WINDOWS), ablation)  # pyright: ignore[reportArgumentType]
    prompts, graph = both_sides(batch), weight_graph(bridge, batch)
    nodes = SearchProblem(bridge, space, how, "random", prompts, prompts, graph)
    means = input_means(bridge, WINDOWS, how.fixed_values(), (FIRST, SECOND))
    return EdgeProblem(nodes, mask, candidate_edges(space, mask, graph), means)


def slopes(problem: EdgeProblem, run: Any, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the slope of the mean loss by every gate."""
    gates = keep.clone().requires_grad_()
    logits = run(gates, problem.nodes.search_prompts)
    (slope,) = torch.autograd.grad(problem.nodes.objective.losses(logits, problem.nodes.search_prompts).mean(), gates)
    return logits.detach(), slope


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize("model", MODELS)
def test_gates_equal_cuts_in_the_whole_model(model: str, ablation: str) -> None:
    """Half-closed and closed gates: all logits, and the slopes, which AbsTopK and the sink's pattern take part in."""
    problem = problem_with(random_bridge(1, density=0.6, **MODELS[model]), ablation=ablation)
    assert problem.gated is not None
    drawn = torch.rand(problem.edges.n_edges, generator=torch.Generator().manual_seed(2))
    for keep in (torch.ones_like(drawn), drawn, (drawn < 0.6).float()):
        logits, slope = slopes(problem, problem.gated.logits, keep)
        expected, expected_slope = slopes(problem, problem.hooked_logits, keep)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(slope, expected_slope, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_a_candidate_without_some_nodes_and_edges(model: str) -> None:
    """Edges whose nodes have gone carry the mean of what they read, too."""
    problem = problem_with(random_bridge(3, density=0.6, **MODELS[model]), seed=4)
    generator = torch.Generator().manual_seed(5)
    keep = torch.rand(problem.edges.n_edges, generator=generator) < 0.6
    nodes, of = problem.nodes, problem.mask & (torch.rand(len(problem.mask), generator=generator) < 0.8)
    run = cut_circuit(nodes.bridge, nodes.space, of, nodes.ablation, problem.edges, keep, problem.means)
    assert run is not None
    whole = EdgeProblem(nodes, of, problem.edges, problem.means)
    torch.testing.assert_close(run(nodes.search_prompts), whole.hooked_logits(keep, nodes.search_prompts), atol=1e-5, rtol=1e-5)


def test_an_edge_from_a_constant_node_is_left_to_the_whole_model() -> None:
    """Neurons that read nothing are constant: no gate of the compiled run stands for their edges."""
    problem = problem_with(random_bridge(1, density=0.6))
    for layer in range(2):
        problem.mask[problem.nodes.space.slices[f"mlp_in.{layer}"]] = False
    assert problem.gated is None
    ones = torch.ones(problem.edges.n_edges)
    logits = problem.logits(ones, problem.nodes.search_prompts)
    torch.testing.assert_close(logits, problem.hooked_logits(ones, problem.nodes.search_prompts))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["task", "kl"])
def test_a_search_in_the_shipped_model_learns_what_the_whole_model_teaches(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rankings after a dozen steps, with the loss of two answers and with the divergence over the vocabulary."""
    bridge, config = load("python-dense-matched"), SearchConfig(steps=12, evaluations=6, search_pairs=64, evaluation_pairs=32)
    circuit = find_circuit(bridge, "if_equals", target_loss=1.0, target_kind=kind, config=config, progress=False)
    problem = edge_problem(bridge, circuit, get_task("if_equals"), config)
    assert problem.gated is not None and problem.nodes.objective == Objective(kind)
    (fast,) = learn_edges(problem, 1.0, config)[:1]
    scores = [problem.score(fast.mask, "x").loss]
    monkeypatch.setattr("sparse_lens.circuits.edges.search.gated_circuit", lambda *_: None)
    monkeypatch.setattr("sparse_lens.circuits.edges.search.cut_circuit", lambda *_: None)
    whole = edge_problem(bridge, circuit, get_task("if_equals"), config)
    (slow,) = learn_edges(whole, 1.0, config)[:1]
    torch.testing.assert_close(fast.ranking, slow.ranking, atol=2e-3, rtol=0)
    assert scores[0] == pytest.approx(whole.score(fast.mask, "x").loss, abs=1e-5)
