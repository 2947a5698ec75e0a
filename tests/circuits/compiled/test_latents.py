"""Compiled circuits of dictionary latents against the whole model under hooks: nodes under masks, single edges under gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import Ablation, mean_reference, node_space, weight_graph
from sparse_lens.circuits.compiled.masked import masked_model, node_circuit
from sparse_lens.circuits.compiled.nodes import compiles
from sparse_lens.circuits.edges.cutting import CircuitEdges, input_means
from sparse_lens.circuits.edges.latents import hooked_mask
from sparse_lens.circuits.edges.running import cut_circuit
from sparse_lens.circuits.edges.search import EdgeProblem
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.prompts import both_sides
from sparse_lens.circuits.scoring import answer_logits
from sparse_lens.circuits.search.problems import SearchProblem
from sparse_lens.comparisons.bases import random_bases
from sparse_lens.dictionaries import RotationDictionary, random_rotation
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.models.config import ABSTOPK_SITES

from ..conftest import VOCAB, pairs, random_bridge
from ..edges.test_latent_edges import D_MLP, random_sae
from ..edges.test_transcoder_edges import transcoder

WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sparse activations": {"afrac": 0.5, "afrac_loctypes": ",".join(ABSTOPK_SITES), "sink": True},
    "positions beside, no biases": {"d_pos_emb": 4, "sink": True, "bias": False},
}
DICTIONARIES: dict[str, Any] = {
    "topk": lambda: [random_sae(0), random_sae(1)],
    "jumprelu in one layer": lambda: [random_sae(1, "jumprelu")],
    "rotated": lambda: [RotationDictionary(random_rotation(D_MLP), "blocks.0.mlp.hook_post")],
    "transcoder": lambda: [transcoder(0)],
    "skip transcoder": lambda: [transcoder(0, skip=True, threshold=True), random_sae(1)],
}
CASES = [
    (model, dictionaries)
    for model in MODELS
    for dictionaries in DICTIONARIES
    if not ("transcoder" in dictionaries and "d_pos_emb" in MODELS[model])  # these transcoders read 8 channels, mlp_in has 12 there
]


def problem_with(model: str, dictionaries: str, *, share: float = 0.8, seed: int = 0) -> EdgeProblem:
    """Random nodes, latents and error nodes among them, and the edges between them."""
    bridge, batch = random_bridge(1, density=0.7, **MODELS[model]), pairs(12)
    space, graph = node_space(bridge, DICTIONARIES[dictionaries]()), weight_graph(bridge, batch)
    reference = mean_reference(bridge, space, WINDOWS)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(seed)) < share
    nodes = SearchProblem(bridge, space, Ablation(reference), "random", both_sides(batch), both_sides(batch), graph)
    means = input_means(bridge, WINDOWS, reference, graph.inputs)
    return EdgeProblem(nodes, mask, candidate_edges(space, mask, graph), means)


def slopes(problem: EdgeProblem, run: Any, gates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the slope of the mean loss by every gate."""
    gates, prompts = gates.clone().requires_grad_(), problem.nodes.search_prompts
    logits = run(gates)
    (slope,) = torch.autograd.grad(problem.nodes.objective.losses(logits, prompts).mean(), gates)
    return logits.detach(), slope


@pytest.mark.parametrize(("model", "dictionaries"), CASES)
def test_masks_of_latents(model: str, dictionaries: str) -> None:
    """Mixtures with their slopes, and circuits, of some nodes, of none and of all."""
    problem = problem_with(model, dictionaries).nodes
    bridge, space, how, prompts = problem.bridge, problem.space, problem.ablation, problem.search_prompts

    def hooked(mask: torch.Tensor) -> torch.Tensor:
        return answer_logits(bridge, prompts, how.hooks(bridge, space, mask, prompts), alike=True)

    compiled = masked_model(bridge, space, how)
    assert compiled is not None
    drawn = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(3))
    edges = problem_with(model, dictionaries)
    for mask in (drawn, (drawn < 0.7).float()):
        found = slopes(edges, lambda gates: compiled.logits(gates, prompts), mask)
        expected = slopes(edges, hooked, mask)
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=1e-4)
    for chosen in (drawn < 0.7, drawn < 0, drawn < 2):
        run = node_circuit(bridge, space, chosen, how)
        assert run is not None
        with torch.no_grad():
            torch.testing.assert_close(run(prompts), hooked(chosen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model", "dictionaries"), CASES)
def test_gates_of_latents(model: str, dictionaries: str) -> None:
    """Half-closed and closed gates; a candidate of fewer nodes and edges."""
    problem = problem_with(model, dictionaries)
    assert problem.gated is not None
    prompts, generator = problem.nodes.search_prompts, torch.Generator().manual_seed(2)
    drawn = torch.rand(problem.edges.n_edges, generator=generator)
    for keep in (torch.ones_like(drawn), drawn, (drawn < 0.6).float()):
        found = slopes(problem, lambda gates: problem.gated.logits(gates, prompts), keep)  # pyright: ignore
        expected = slopes(problem, lambda gates: problem.hooked_logits(gates, prompts), keep)
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=1e-4)
    nodes, fewer = problem.nodes, problem.mask & (torch.rand(len(problem.mask), generator=generator) < 0.8)
    run = cut_circuit(nodes.bridge, nodes.space, fewer, nodes.ablation, problem.edges, drawn < 0.6, problem.means)
    assert run is not None
    expected = EdgeProblem(nodes, fewer, problem.edges, problem.means).hooked_logits(drawn < 0.6, prompts)
    torch.testing.assert_close(run(prompts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model", "dictionaries"), CASES)
def test_nodes_while_edges_are_cut(model: str, dictionaries: str) -> None:
    """As cards and curves run a circuit of edges: compiled inside the block in which they are cut, latents' edges too."""
    problem = problem_with(model, dictionaries)
    nodes, prompts = problem.nodes, problem.nodes.search_prompts
    keep = torch.rand(problem.edges.n_edges, generator=torch.Generator().manual_seed(4)) < 0.5
    edges = CircuitEdges(problem.edges.chosen(keep), problem.edges.chosen(~keep), problem.means, problem.latents)
    mask = hooked_mask(nodes.space, problem.mask)
    with torch.no_grad(), edges.cut_in(nodes.bridge):
        run = node_circuit(nodes.bridge, nodes.space, mask, nodes.ablation)
        assert run is not None
        found, hooks = run(prompts), nodes.ablation.hooks(nodes.bridge, nodes.space, mask, prompts)
        expected = answer_logits(nodes.bridge, prompts, hooks, alike=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, problem.hooked_logits(keep, prompts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("everywhere", [True, False])
def test_dictionaries_at_any_site(model: str, everywhere: bool) -> None:
    """A rotation at every site, or an SAE, which leaves an error, in one of them: the whole model, compiled with gates."""
    bridge, prompts = random_bridge(1, density=0.7, **MODELS[model]), both_sides(pairs(12))
    sae = random_sae(1)
    wide = {
        name: weight[:, :8] if name == "W_dec" else weight[:8] if name in ("W_enc", "b_dec") else weight
        for name, weight in sae.weights.items()
    }
    elsewhere = [random_sae(0), SAELensDictionary("topk", wide, "blocks.1.hook_mlp_out", k=4)]
    space = node_space(bridge, random_bases(bridge) if everywhere else elsewhere)
    how = Ablation(mean_reference(bridge, space, WINDOWS))
    assert not compiles(bridge, space, how)
    compiled = masked_model(bridge, space, how)
    assert compiled is not None

    def hooked(mask: torch.Tensor) -> torch.Tensor:
        return answer_logits(bridge, prompts, how.hooks(bridge, space, mask, prompts), alike=True)

    drawn = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(3))
    for mask in (drawn, (drawn < 0.7).float()):
        for run, expected in zip(_slopes(lambda gates: compiled.logits(gates, prompts), mask), _slopes(hooked, mask), strict=True):
            torch.testing.assert_close(run, expected, atol=2e-5, rtol=1e-4)
    for chosen in (drawn < 0.7, drawn < 0, drawn < 2):
        run = node_circuit(bridge, space, chosen, how)
        assert run is not None
        with torch.no_grad():
            torch.testing.assert_close(run(prompts), hooked(chosen), atol=1e-5, rtol=1e-5)


def _slopes(run: Any, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the slope of the sum of their squares by every node's mask."""
    mask = mask.clone().requires_grad_()
    logits = run(mask)
    (slope,) = torch.autograd.grad(logits.square().sum(1).mean(), mask)
    return logits.detach(), slope


@pytest.mark.parametrize(("model", "dictionaries"), CASES)
def test_mixtures_while_edges_are_cut(model: str, dictionaries: str) -> None:
    """As the worst mixture is sought: masks between 0 and 1 in the model without the cut edges, and their slopes."""
    problem = problem_with(model, dictionaries)
    nodes, prompts = problem.nodes, problem.nodes.search_prompts
    keep = torch.rand(problem.edges.n_edges, generator=torch.Generator().manual_seed(4)) < 0.5
    edges = CircuitEdges(problem.edges.chosen(keep), problem.edges.chosen(~keep), problem.means, problem.latents)
    mask = hooked_mask(nodes.space, torch.rand(nodes.space.n_nodes, generator=torch.Generator().manual_seed(5)))
    bridge, space, how = nodes.bridge, nodes.space, nodes.ablation
    with edges.cut_in(bridge):
        compiled = masked_model(bridge, space, how)
        assert compiled is not None
        found = slopes(problem, lambda gates: compiled.logits(gates, prompts), mask)
        hooked = lambda gates: answer_logits(bridge, prompts, how.hooks(bridge, space, gates, prompts), alike=True)  # noqa: E731
        expected = slopes(problem, hooked, mask)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=1e-4)
