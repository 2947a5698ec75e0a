"""Circuits of transcoder latents: nodes and edges against loops, with a skip and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparse_lens.circuits import Ablation, attribute_nodes, mean_reference, node_space, on_paths, weight_graph
from sparse_lens.circuits.ablation import node_values
from sparse_lens.circuits.cards.kept_values import kept_values
from sparse_lens.circuits.edges.cutting import cut_edges, input_means
from sparse_lens.circuits.edges.latents import count_skips, hooked_mask, latent_sites
from sparse_lens.circuits.edges.search import EdgeProblem
from sparse_lens.circuits.edges.space import candidate_edges, edges_on_paths
from sparse_lens.circuits.masking import mask_hooks
from sparse_lens.circuits.prompts import both_sides
from sparse_lens.circuits.search.problems import SearchProblem
from sparse_lens.circuits.sites import full_mask
from sparse_lens.dictionaries import TranscoderDictionary
from sparse_lens.errors import CircuitError, UnknownNameError

from ..conftest import VOCAB, pairs, random_bridge

WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
D, N = 8, 10
TOKENS = torch.from_numpy(WINDOWS[:4])


def transcoder(layer: int = 0, *, skip: bool = False, threshold: bool = False) -> TranscoderDictionary:
    generator = torch.Generator().manual_seed(layer)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    weights = {"W_enc": draw(D, N), "b_enc": draw(N), "W_dec": draw(N, D), "b_dec": draw(D)}
    weights |= {"W_skip": draw(D, D) * (draw(D, D) > 0)} if skip else {}
    weights |= {"threshold": draw(N).abs()} if threshold else {}
    return TranscoderDictionary(weights, f"blocks.{layer}.mlp.hook_act_in", f"blocks.{layer}.hook_mlp_out")


def parts(skip: bool, share: float = 0.7, **fields: Any) -> tuple[Any, EdgeProblem, TranscoderDictionary]:
    bridge = random_bridge(4, density=0.8, **fields)
    dictionary = transcoder(0, skip=skip)
    space, batch = node_space(bridge, [dictionary]), pairs(16)
    graph, reference = weight_graph(bridge, batch), mean_reference(bridge, space, WINDOWS)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(1)) < share
    mask[space.slices["mlp_neuron.0"].stop - 1] = True
    nodes = SearchProblem(bridge, space, Ablation(reference), "t", both_sides(batch), both_sides(batch), graph)
    means = input_means(bridge, WINDOWS, reference, graph.inputs)
    return bridge, EdgeProblem(nodes, mask, candidate_edges(space, mask, graph), means), dictionary


@pytest.mark.parametrize("skip", [False, True])
def test_all_nodes_kept_is_the_model(skip: bool) -> None:
    bridge, problem, _ = parts(skip)
    space, mask = problem.nodes.space, full_mask(problem.nodes.space).float()
    with bridge.hooks(fwd_hooks=mask_hooks(space, mask, problem.nodes.ablation.means)):
        found = bridge(TOKENS)
    torch.testing.assert_close(found, bridge(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_nodes_against_the_definition(skip: bool) -> None:
    """What the MLP writes: kept latents and error of the masked input, the others at their means; the skip is never ablated."""
    bridge, problem, dictionary = parts(skip)
    space, mask, reference = problem.nodes.space, problem.mask, problem.nodes.ablation.means
    own = mask.clone()
    own[space.slices["mlp_out.0"]] = True
    names = ["blocks.0.mlp.hook_act_in", "blocks.0.hook_mlp_out"]
    with bridge.hooks(fwd_hooks=mask_hooks(space, own, reference)):
        _, seen = bridge.run_with_cache(TOKENS, names_filter=names)
    u, kept = seen[names[0]], mask[space.slices["mlp_neuron.0"]]
    latents = torch.where(kept[:N], dictionary.encode(u), reference["mlp_neuron.0"].latents)
    error = mlp(bridge, u) - dictionary.decode(dictionary.encode(u)) - dictionary.skip(u)
    expected = dictionary.decode(latents) + dictionary.skip(u) + error
    torch.testing.assert_close(seen[names[1]], expected, atol=1e-5, rtol=1e-5)
    values = node_values(bridge, space, TOKENS)["mlp_neuron.0"]
    _, plain = bridge.run_with_cache(TOKENS, names_filter=names)
    torch.testing.assert_close(values.latents, dictionary.encode(plain[names[0]]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        values.error + dictionary.decode(values.latents) + dictionary.skip(plain[names[0]]), plain[names[1]], atol=1e-5, rtol=1e-5
    )
    only = full_mask(space, keep=False)
    only[space.slices["mlp_neuron.0"].start + 3] = True
    torch.testing.assert_close(kept_values(bridge, space, only, TOKENS)[..., 0], values.latents[..., 3])


def mlp(bridge: Any, u: torch.Tensor) -> torch.Tensor:
    core = bridge.original_model.core.blocks[0].mlp.original_component
    fc_in, fc_out = core.fc_in.original_component, core.fc_out.original_component
    return F.linear(core.activation(F.linear(u, fc_in.weight, fc_in.bias)), fc_out.weight, fc_out.bias)


@pytest.mark.parametrize("skip", [False, True])
def test_all_edges_kept_is_the_masked_model(skip: bool) -> None:
    bridge, problem, _ = parts(skip, activation_type="gelu", sink=True)
    prompts, space = problem.nodes.search_prompts, problem.nodes.space
    found = problem.logits(torch.ones(problem.edges.n_edges), prompts)
    with bridge.hooks(fwd_hooks=mask_hooks(space, problem.mask, problem.nodes.ablation.means)):
        expected = bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.position]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_edges_by_brute_force(skip: bool) -> None:
    """Every latent and the error read their own mlp_in, and write each channel by themselves; the skip is whole."""
    bridge, problem, dictionary = parts(skip)
    space, mask, edges = problem.nodes.space, problem.mask, problem.edges
    keep = (torch.rand(edges.n_edges, generator=torch.Generator().manual_seed(5)) < 0.5).float()
    for name, part in edges.split(keep).items():
        if name not in ("mlp_in.0", "mlp_out.0"):
            part.fill_(1)
    reference = problem.nodes.ablation.means
    names = ["blocks.0.mlp.hook_act_in", "blocks.0.hook_mlp_out"]
    hooks = mask_hooks(space, hooked_mask(space, mask), reference)
    sites = latent_sites(space, mask, reference)
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks), cut_edges(bridge, edges, keep, problem.means, sites):
        _, seen = bridge.run_with_cache(TOKENS, names_filter=names)
    u, means, gates = seen[names[0]], reference["mlp_neuron.0"], edges.split(keep)
    read, write = (
        {tuple(e): float(g) for e, g in zip(edges.index[name].tolist(), gates[name], strict=True)}
        for name in ("mlp_in.0", "mlp_out.0")
    )

    def view(node: int) -> torch.Tensor:
        shares = torch.tensor([read.get((node, channel), 1.0) for channel in range(D)])
        return u * shares + problem.means["mlp_in.0"] * (1 - shares)

    latents = torch.stack([dictionary.encode(view(node))[..., node] for node in range(N)], -1)
    latents = torch.where(mask[space.slices["mlp_neuron.0"]][:N], latents, means.latents)
    error = mlp(bridge, view(N)) - dictionary.decode(dictionary.encode(view(N))) - dictionary.skip(view(N))
    out = dictionary.skip(u) + dictionary.weights["b_dec"]
    for channel in range(D):
        for node in range(N):
            gate = write.get((channel, node), 1.0)
            value = gate * latents[..., node] + (1 - gate) * means.latents[node]
            out[..., channel] += value * dictionary.W_dec[node, channel]
        gate = write.get((channel, N), 1.0)
        out[..., channel] += gate * error[..., channel] + (1 - gate) * means.error[channel]
    kept = mask[space.slices["mlp_out.0"]]
    torch.testing.assert_close(seen[names[1]][..., kept], out[..., kept], atol=1e-5, rtol=1e-5)


def test_a_skip_is_a_path_and_is_counted() -> None:
    """Without any latent, mlp_in still reaches mlp_out by the skip, and only by it."""
    for skip in (False, True):
        _, problem, dictionary = parts(skip, share=1.0, n_layer=1)
        space, graph = problem.nodes.space, problem.nodes.graph
        mask = full_mask(space)
        mask[space.slices["mlp_neuron.0"]] = False
        for name in ("attn_v.0", "attn_q.0", "attn_k.0"):
            mask[space.slices[name]] = False
        found = on_paths(space, mask, graph)
        edges = candidate_edges(space, mask, graph)
        by_edges, _ = edges_on_paths(space, mask, graph, edges, torch.ones(edges.n_edges, dtype=torch.bool))
        for alive in (found, by_edges):
            assert bool(alive[space.slices["mlp_out.0"]].any()) == skip
        entries = int((dictionary.skip(torch.eye(D)) != 0).sum())
        assert count_skips(space, full_mask(space), graph) == (entries if skip else 0)


def test_attribution_is_the_slope_of_ablation() -> None:
    """EAP of a latent against a central difference in its gate; one by one is refused."""
    bridge, problem, _ = parts(True, activation_type="gelu")
    space, prompts = problem.nodes.space, problem.nodes.search_prompts
    found = attribute_nodes(bridge, prompts, method="eap", space=space, ablation=problem.nodes.ablation).scores
    for index in (2, 5, N):
        node, losses = space.slices["mlp_neuron.0"].start + index, []
        for step in (-0.02, 0.02):
            mask = torch.ones(space.n_nodes)
            mask[node] += step
            with torch.no_grad(), bridge.hooks(fwd_hooks=mask_hooks(space, mask, problem.nodes.ablation.means)):
                logits = bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.position]
            row = torch.arange(len(prompts))
            losses.append(float(F.softplus(logits[row, prompts.wrong] - logits[row, prompts.right]).mean()))
        assert float(found[node]) == pytest.approx(-(losses[1] - losses[0]) / 0.04, abs=2e-4)
    with pytest.raises(CircuitError, match="another method"):
        attribute_nodes(bridge, prompts, method="exact", space=space, ablation=problem.nodes.ablation)


def test_refused() -> None:
    bridge, weights = random_bridge(), transcoder().weights
    with pytest.raises(UnknownNameError, match="site hook"):
        node_space(bridge, [TranscoderDictionary(weights, "blocks.0.ln2.hook_out", "blocks.0.hook_mlp_out")])
    with pytest.raises(CircuitError, match="transcoders from the input"):
        node_space(bridge, [TranscoderDictionary(weights, "blocks.0.mlp.hook_act_in", "blocks.1.hook_mlp_out")])
    with pytest.raises(CircuitError, match="one site"):
        node_space(bridge, [transcoder(), transcoder()])
