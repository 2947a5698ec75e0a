"""Edges of dictionary latents: the identity gives the neurons' function and counts; loops over views and edges as brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparse_lens.circuits import Ablation, Circuit, mean_reference, node_space, score_circuit, weight_graph
from sparse_lens.circuits.edges import own_views
from sparse_lens.circuits.edges.counting import count_edges
from sparse_lens.circuits.edges.cutting import CircuitEdges, cut_edges, input_means
from sparse_lens.circuits.edges.density import edge_density
from sparse_lens.circuits.edges.encoders import encoder_rows
from sparse_lens.circuits.edges.latents import hooked_mask, latent_sites
from sparse_lens.circuits.edges.search import EdgeProblem, edge_attribution, learn_edges, select_edges
from sparse_lens.circuits.edges.space import candidate_edges, edges_on_paths
from sparse_lens.circuits.masking import mask_hooks
from sparse_lens.circuits.prompts import both_sides
from sparse_lens.circuits.search.learning import SearchConfig
from sparse_lens.circuits.search.problems import SearchProblem
from sparse_lens.circuits.sites import full_mask, model_fingerprint
from sparse_lens.dictionaries import RotationDictionary
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.errors import CircuitError

from ..conftest import FIRST, SECOND, VOCAB, Planted, pairs, random_bridge

WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
D_MLP, N = 12, 20


def identity(layer: int, width: int = D_MLP) -> RotationDictionary:
    """The identity, as a dictionary that nothing knows to be one."""
    return RotationDictionary(torch.eye(width), f"blocks.{layer}.mlp.hook_post")


def random_sae(layer: int, architecture: str = "topk", seed: int = 0) -> SAELensDictionary:
    generator = torch.Generator().manual_seed(seed + layer)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    weights = {"W_enc": draw(D_MLP, N), "W_dec": draw(N, D_MLP), "b_dec": draw(D_MLP)}
    names = {"gated": ("b_gate", "r_mag", "b_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",))
    weights |= {name: draw(N).abs() if name == "threshold" else draw(N) for name in names}
    return SAELensDictionary(architecture, weights, f"blocks.{layer}.mlp.hook_post", k=4 if architecture == "topk" else None)


def problem_of(bridge: Any, dictionaries: list[Any], share: float = 0.7, batch: Any = None, seed: int = 0) -> EdgeProblem:
    batch = pairs(16) if batch is None else batch
    space, graph, prompts = node_space(bridge, dictionaries), weight_graph(bridge, batch), both_sides(batch)
    reference = mean_reference(bridge, space, WINDOWS)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(seed)) < share
    nodes = SearchProblem(bridge, space, Ablation(reference), "planted", prompts, prompts, graph)
    means = input_means(bridge, WINDOWS, reference, graph.inputs)
    return EdgeProblem(nodes, mask, candidate_edges(space, mask, graph), means)


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu", "gated"])
@pytest.mark.parametrize("apply", [True, False])
def test_rows_give_the_encoder(architecture: str, apply: bool) -> None:
    sae = random_sae(0, architecture)
    sae = SAELensDictionary(sae.architecture, sae.weights, sae.hook, sae.k, apply)
    x = torch.randn(7, D_MLP, generator=torch.Generator().manual_seed(1))
    rows = encoder_rows(sae)
    torch.testing.assert_close(rows.activate(rows.before(x)), sae.encode(x))
    latents = torch.tensor([3, 0, 5])
    views = torch.randn(7, 3, D_MLP, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([rows.before(views[:, i])[:, j] for i, j in enumerate(latents.tolist())], dim=1)
    torch.testing.assert_close(rows.of_views(views, latents), expected)


@pytest.mark.parametrize("fields", [{"activation_type": "gelu"}, {"sink": True, "afrac": 0.5, "afrac_loctypes": "mlp_in,mlp_out"}])
def test_the_identity_is_the_neurons(fields: dict[str, Any]) -> None:
    """The same masked forward under the same real gates, the same counts, density, attribution and dropping of dead edges."""
    bridge = random_bridge(0, density=0.5, **fields)
    neurons, latents = problem_of(bridge, []), problem_of(bridge, [identity(0), identity(1)])
    assert torch.equal(neurons.mask, latents.mask) and latents.nodes.space.has_dictionaries
    for name, index in neurons.edges.index.items():
        assert torch.equal(index, latents.edges.index[name])
    keep = torch.rand(neurons.edges.n_edges, generator=torch.Generator().manual_seed(3))
    prompts = neurons.nodes.search_prompts
    for gates in (keep, (keep > 0.4).float(), torch.ones_like(keep)):
        torch.testing.assert_close(latents.logits(gates, prompts), neurons.logits(gates, prompts), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(edge_attribution(latents), edge_attribution(neurons), atol=1e-6, rtol=1e-4)
    arguments = [(p.nodes.space, p.mask, p.nodes.graph) for p in (neurons, latents)]
    assert count_edges(*arguments[0]) == count_edges(*arguments[1])
    assert edge_density(*arguments[0]) == edge_density(*arguments[1])
    dropped = [edges_on_paths(*a, p.edges, keep > 0.4) for a, p in zip(arguments, (neurons, latents), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*dropped, strict=True))


def test_all_edges_kept_is_the_masked_model() -> None:
    """With latents and error nodes, kept or not: the same as node masking alone."""
    bridge = random_bridge(1, density=0.8, activation_type="gelu", sink=True)
    for seed in range(3):
        problem = problem_of(bridge, [random_sae(0), random_sae(1, "jumprelu")], share=0.6, seed=seed)
        prompts, space = problem.nodes.search_prompts, problem.nodes.space
        found = problem.logits(torch.ones(problem.edges.n_edges), prompts)
        with bridge.hooks(fwd_hooks=mask_hooks(space, problem.mask, problem.nodes.ablation.means)):
            expected = bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.position]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "gated"])
@pytest.mark.parametrize("size", [own_views._MOST_NUMBERS, 100])
def test_brute_force(architecture: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer by loops: every latent and the error read their own mlp_in, and write each channel by itself."""
    monkeypatch.setattr(own_views, "_MOST_NUMBERS", size)
    bridge = random_bridge(2, density=0.9, n_layer=1)
    problem = problem_of(bridge, [random_sae(0, architecture)], share=0.7)
    space, mask = problem.nodes.space, problem.mask.clone()
    mask[space.slices["mlp_neuron.0"].stop - 1] = True
    edges = candidate_edges(space, mask, problem.nodes.graph)
    keep = (torch.rand(edges.n_edges, generator=torch.Generator().manual_seed(5)) < 0.5).float()
    for name, part in edges.split(keep).items():
        if not name.startswith("mlp_"):
            part.fill_(1)
    tokens = problem.nodes.search_prompts.tokens
    reference = problem.nodes.ablation.means
    sites = latent_sites(space, mask, reference)
    out_hook = "blocks.0.hook_mlp_out"
    hooks = mask_hooks(space, hooked_mask(space, mask), reference)
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks), cut_edges(bridge, edges, keep, problem.means, sites):
        _, seen = bridge.run_with_cache(tokens, names_filter=["blocks.0.mlp.hook_act_in", out_hook])
    expected = _by_loops(bridge, space.sites[6].dictionary, mask[space.slices["mlp_neuron.0"]], edges, keep, problem, seen)
    kept = mask[space.slices["mlp_out.0"]]
    torch.testing.assert_close(seen[out_hook][..., kept], expected[..., kept], atol=1e-5, rtol=1e-5)


def _by_loops(bridge: Any, sae: Any, mask: Any, edges: Any, keep: Any, problem: EdgeProblem, seen: Any) -> torch.Tensor:
    mlp, u = bridge.original_model.core.blocks[0].mlp.original_component, seen["blocks.0.mlp.hook_act_in"]
    fc_in, fc_out = mlp.fc_in.original_component, mlp.fc_out.original_component
    reference, mean = problem.nodes.ablation.means["mlp_neuron.0"], problem.means["mlp_in.0"]
    gates = edges.split(keep)
    read = {tuple(e): float(g) for e, g in zip(edges.index["mlp_in.0"].tolist(), gates["mlp_in.0"], strict=True)}
    write = {tuple(e): float(g) for e, g in zip(edges.index["mlp_out.0"].tolist(), gates["mlp_out.0"], strict=True)}

    def hidden(node: int) -> torch.Tensor:
        view = u.clone()
        for channel in range(u.shape[-1]):
            if read.get((node, channel), 1.0) == 0:
                view[..., channel] = mean[channel]
        return mlp.activation(F.linear(view, fc_in.weight, fc_in.bias))

    rows = encoder_rows(sae)
    before = rows.before(mlp.activation(F.linear(u, fc_in.weight, fc_in.bias)))
    for node in range(N):
        before[..., node] = rows.before(hidden(node))[..., node]
    latents = rows.activate(before)
    source = hidden(N)
    error = source - sae.decode(sae.encode(source))
    out = torch.zeros(*u.shape[:-1], len(fc_out.weight)) + fc_out.bias + fc_out.weight @ sae.weights["b_dec"]
    for channel in range(len(fc_out.weight)):
        for node in range(N):
            value = torch.where(mask[node], latents[..., node], reference.latents[node])
            gate = write.get((channel, node), 1.0)
            value = gate * value + (1 - gate) * reference.latents[node]
            out[..., channel] += value * (sae.W_dec[node] @ fc_out.weight[channel])
        gate = write.get((channel, N), 1.0)
        out[..., channel] += (gate * error + (1 - gate) * reference.error) @ fc_out.weight[channel]
    return out


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, too, whose hidden layers are computed anew in the backward pass."""
    bridge = random_bridge(3, activation_type="gelu")
    problem = problem_of(bridge, [random_sae(0, "standard"), random_sae(1, "standard")], share=0.9)
    prompts, keep = problem.nodes.search_prompts, torch.ones(problem.edges.n_edges).requires_grad_()
    problem.losses(keep, prompts).mean().backward()
    whole = keep.grad
    monkeypatch.setattr(own_views, "_MOST_NUMBERS", 3000)
    again = keep.detach().clone().requires_grad_()
    problem.losses(again, prompts).mean().backward()
    assert whole is not None and again.grad is not None
    torch.testing.assert_close(whole, again.grad, atol=1e-6, rtol=1e-4)
    order = whole.abs().argsort(descending=True)
    for edge in order[:40:5].tolist():
        losses = []
        for step in (-0.01, 0.01):
            moved = keep.detach().clone()
            moved[edge] += step
            with torch.no_grad():
                losses.append(float(problem.losses(moved, prompts).mean()))
        assert float(whole[edge]) == pytest.approx((losses[1] - losses[0]) / 0.02, rel=0.05, abs=1e-4)


def test_edges_are_found_kept_and_read(planted: Planted, tmp_path: Path) -> None:
    """The planted path, seen through the identity as a dictionary; the circuit scores, is saved and read as it is."""
    dictionary = identity(0, 6)
    space = node_space(planted.bridge, [dictionary])
    windows = np.concatenate([planted.batch.clean, planted.batch.corrupt])
    reference = mean_reference(planted.bridge, space, windows)
    graph = weight_graph(planted.bridge, planted.batch)
    means = input_means(planted.bridge, windows, reference, (FIRST, SECOND))
    nodes = SearchProblem(planted.bridge, space, Ablation(reference), "planted", planted.prompts, planted.prompts, graph)
    problem = EdgeProblem(nodes, full_mask(space), candidate_edges(space, full_mask(space), graph), means)
    circuit = Circuit(problem.mask, space, reference, "planted", model_fingerprint(planted.bridge), 0.1, 0.0)
    config = SearchConfig(steps=160, pairs_per_step=8, penalties=(1e-3,), evaluations=30)
    found = select_edges(problem, circuit, learn_edges(problem, 0.1, config), 0.1, config)
    assert found.reached and found.edges is not None
    assert found.edges.kept.index["mlp_in.0"].tolist() == [[1, 0]]
    assert found.edges.kept.index["mlp_out.0"].tolist() == [[3, 1]]
    assert {site: kept for site, kept in found.kept().items() if kept} == planted.nodes
    scores = score_circuit(planted.bridge, found, planted.prompts)
    assert (scores.circuit_loss.value or 0) == pytest.approx(found.loss, abs=1e-5) and (scores.necessity.value or 0) > 0.5
    found.save(tmp_path / "c")
    again = Circuit.load(tmp_path / "c", planted.bridge, [dictionary])
    with found.applied(planted.bridge), torch.no_grad():
        expected = planted.bridge(planted.prompts.tokens)
    with again.applied(planted.bridge), torch.no_grad():
        torch.testing.assert_close(planted.bridge(planted.prompts.tokens), expected)
    assert isinstance(again.edges, CircuitEdges) and len(again.edges.latents) == 1


def test_refused() -> None:
    bridge = random_bridge(0)
    elsewhere = RotationDictionary(torch.eye(8), "blocks.0.hook_mlp_out")
    with pytest.raises(CircuitError, match="of MLPs only"):
        problem_of(bridge, [elsewhere])

    class Plain:
        """A dictionary that gives nothing but the protocol."""

        name, hash, n_latents, exact = "plain", "0" * 16, D_MLP, True
        hook_in = hook_out = "blocks.0.mlp.hook_post"
        W_dec = torch.eye(D_MLP)

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def decode(self, f: torch.Tensor) -> torch.Tensor:
            return f

    with pytest.raises(CircuitError, match="encoder_rows"):
        problem_of(bridge, [Plain()])
