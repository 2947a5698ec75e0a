"""Copies of a model that compute the same in another order or basis, and the planted circuit: what counts and scores must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_lens.circuits import Ablation, Circuit, both_sides, count_edges, mean_reference, node_space, weight_graph
from sparse_lens.circuits.attribution.edges import attribute_edges
from sparse_lens.circuits.attribution.nodes import attribute_nodes
from sparse_lens.circuits.edges.cutting import edge_module
from sparse_lens.circuits.edges.density import EdgeDensity, edge_density
from sparse_lens.circuits.sites import full_mask, model_fingerprint
from sparse_lens.tasks.task import TaskBatch

from ..conftest import FIRST, NO, VOCAB, YES, Planted, pairs, random_bridge

METHODS = ("eap", "eap_ig", "relp", "exact")
EDGE_METHODS = ("eap", "eap_ig", "exact")
WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
TOKENS = torch.randint(VOCAB, (6, 8), generator=torch.Generator().manual_seed(3))
SHAPE = {"density": 0.3, "n_layer": 2, "n_head": 2, "d_model": 8, "d_mlp": 12, "sink": True}

Edit = Callable[[Tensor], Tensor]


def draw(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


def modules(bridge: Any) -> dict[str, Any]:
    """Every module with weights, by the names that edges have; norms and positions besides."""
    core = bridge.original_model.core
    names = [
        "embedding",
        *(f"{kind}.{n}" for n in range(2) for kind in ("q", "k", "v", "output", "mlp_in", "mlp_out")),
        "unembedding",
    ]
    found = {name: edge_module(bridge, name) for name in names}
    others = {"positions": core.wpe, "norm_f": core.ln_f} | {
        f"norm_{i}.{n}": getattr(core.blocks[n], f"ln_{i}") for n in range(2) for i in (1, 2)
    }
    return found | {name: getattr(module, "original_component", module) for name, module in others.items()}


@torch.no_grad()
def change(module: Any, outputs: Edit | None = None, inputs: Edit | None = None) -> None:
    """Edit the outputs (with the bias) and the inputs of a matrix; each edit acts on the last axis."""
    if outputs is not None:
        module.weight.copy_(outputs(module.weight.T).T)
        if getattr(module, "bias", None) is not None:
            module.bias.copy_(outputs(module.bias))
    if inputs is not None:
        module.weight.copy_(inputs(module.weight))


def change_residual(bridge: Any, edit: Edit) -> None:
    """Another basis of the residual stream: everything that writes into it and everything that reads it."""
    found = modules(bridge)
    for name in ("embedding", "positions", "unembedding"):
        change(found[name], inputs=edit)
    for layer in range(2):
        for kind in ("q", "k", "v", "mlp_in"):
            change(found[f"{kind}.{layer}"], inputs=edit)
        for kind in ("output", "mlp_out"):
            change(found[f"{kind}.{layer}"], outputs=edit)


def permuted(**fields: Any) -> tuple[Any, Tensor]:
    """A copy of the random model with all channels in another order, and where each of its nodes is in the original."""
    bridge = random_bridge(**(SHAPE | fields))
    found, residual, origin = modules(bridge), draw(8, 0), {"final_resid": draw(8, 0)}
    change_residual(bridge, lambda x: x[..., residual])
    for name, module in found.items():
        if name.startswith("norm"):
            change(module, inputs=lambda x: x[..., residual])
    for layer in range(2):
        neuron, head = draw(12, 1 + layer), draw(2, 3 + layer)
        keys, values = (torch.cat([4 * h + draw(4, 10 * layer + seed + int(h)) for h in head]) for seed in (20, 30))
        for kind, order in (("q", keys), ("k", keys), ("v", values), ("mlp_in", neuron)):
            change(found[f"{kind}.{layer}"], outputs=lambda x, order=order: x[..., order])
        change(found[f"output.{layer}"], inputs=lambda x, order=values: x[..., order])
        change(found[f"mlp_out.{layer}"], inputs=lambda x, order=neuron: x[..., order])
        with torch.no_grad():
            attn = bridge.original_model.core.blocks[layer].attn
            sink = getattr(attn, "original_component", attn).sink_logit
            sink.copy_(sink[head])
        origin |= {f"{kind}.{layer}": residual for kind in ("attn_in", "attn_out", "mlp_in", "mlp_out")}
        origin |= {f"attn_q.{layer}": keys, f"attn_k.{layer}": keys, f"attn_v.{layer}": values, f"mlp_neuron.{layer}": neuron}
    space = node_space(bridge)
    return bridge, torch.cat([space.slices[site.name].start + origin[site.name] for site in space.sites])


def scored(bridge: Any, batch: TaskBatch, method: str, **options: Any) -> Tensor:
    return attribute_nodes(bridge, batch, method=method, windows=WINDOWS, steps=2, **options).scores


def density_of(bridge: Any, mask: Tensor | None = None) -> EdgeDensity:
    space = node_space(bridge)
    return edge_density(space, full_mask(space) if mask is None else mask, weight_graph(bridge, pairs(8)))


def circuit_of(bridge: Any, mask: Tensor | None = None) -> Circuit:
    space = node_space(bridge)
    reference, mask = mean_reference(bridge, space, WINDOWS), full_mask(space) if mask is None else mask
    return Circuit(mask, space, reference, "planted", model_fingerprint(bridge), 0.1, 0.0)


PERMUTED: tuple[dict[str, Any], ...] = (
    {},
    {"afrac": 0.5, "afrac_loctypes": "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out"},
)


@pytest.mark.parametrize("fields", PERMUTED, ids=["dense", "AbsTopK"])
def test_a_permuted_copy(fields: dict[str, Any]) -> None:
    """The same function; scores of nodes and of edges in the new order, edge counts and their null as they were."""
    original, (copy, origin) = random_bridge(**(SHAPE | fields)), permuted(**fields)
    with torch.no_grad():
        torch.testing.assert_close(copy(TOKENS), original(TOKENS), atol=1e-5, rtol=1e-4)
    assert not torch.equal(origin, torch.arange(len(origin)))
    for method in ("eap", "relp", "exact") if fields else ("eap_ig",):
        expected = scored(original, pairs(2), method)
        torch.testing.assert_close(scored(copy, pairs(2), method), expected[origin], atol=1e-5, rtol=1e-3)
    mask = torch.rand(len(origin), generator=torch.Generator().manual_seed(1)) < 0.7
    densities = density_of(original, mask), density_of(copy, mask[origin])
    assert densities[0] == densities[1] and densities[0].n_edges > 10
    assert densities[0].null() == densities[1].null()
    graphs = [weight_graph(bridge, pairs(8)) for bridge in (original, copy)]
    spaces = [node_space(bridge) for bridge in (original, copy)]
    assert count_edges(spaces[0], mask, graphs[0]) == count_edges(spaces[1], mask[origin], graphs[1])
    edges = [
        attribute_edges(bridge, circuit_of(bridge, kept), pairs(4), method="eap", windows=WINDOWS)
        for bridge, kept in ((original, mask), (copy, mask[origin]))
    ]
    for name, part in edges[0].edges.split(edges[0].scores).items():
        other = edges[1].edges.split(edges[1].scores)[name]
        torch.testing.assert_close(other.sort().values, part.sort().values, atol=1e-5, rtol=1e-3)


def heads_or(pattern: Tensor) -> Tensor:
    """Whether any channel of a head (the last axis, two heads of four) is in the pattern."""
    return pattern.unflatten(-1, (2, 4)).any(-1)


def by_head(rotations: list[Tensor]) -> Edit:
    return lambda x: torch.stack([x.unflatten(-1, (2, 4))[..., h, :] @ rotations[h] for h in range(2)], -2).flatten(-2)


@pytest.mark.parametrize("where", ["values and outputs", "queries and keys"])
def test_a_heads_channels_in_another_basis(where: str) -> None:
    """The function stays, and what every other site is worth; a rotated head has every weight that its rows together have."""
    original, copy = random_bridge(**SHAPE), random_bridge(**SHAPE)
    before, found, expected = density_of(original), modules(copy), {}
    for layer in range(2):
        turn = by_head([rotation(4, 10 * layer + head) for head in range(2)])
        outputs, inputs = (("v",), ("output",)) if where.startswith("values") else (("q", "k"), ())
        for kind in outputs:  # each row becomes a mixture of its head's rows
            pattern = edge_module(original, f"{kind}.{layer}").weight != 0
            expected[f"{kind}.{layer}"] = 4 * int(heads_or(pattern.T).sum())
            change(found[f"{kind}.{layer}"], outputs=turn)
        for kind in inputs:
            expected[f"{kind}.{layer}"] = 4 * int(heads_or(edge_module(original, f"{kind}.{layer}").weight != 0).sum())
            change(found[f"{kind}.{layer}"], inputs=turn)
    with torch.no_grad():
        torch.testing.assert_close(copy(TOKENS), original(TOKENS), atol=1e-5, rtol=1e-4)
    after = density_of(copy)
    assert after.edges == before.edges | expected
    assert after.possible == before.possible and after.n_edges > before.n_edges
    turned = ("attn_v",) if where.startswith("values") else ("attn_q", "attn_k")
    for method in ("eap", "exact"):
        parts = [node_space(bridge).split(scored(bridge, pairs(2), method)) for bridge in (original, copy)]
        for name, part in parts[0].items():
            if not name.startswith(turned):
                torch.testing.assert_close(parts[1][name], part, atol=1e-5, rtol=1e-3)


def test_the_residual_stream_in_another_basis() -> None:
    """RMSNorms of gain 1 allow it: every row that reads anything reads all channels, every column that writes writes all."""
    original, copy = random_bridge(**SHAPE), random_bridge(**SHAPE)
    for bridge in (original, copy):
        with torch.no_grad():
            for name, module in modules(bridge).items():
                if name.startswith("norm"):
                    module.weight.fill_(1.0)
    turn = rotation(8, 0)
    change_residual(copy, lambda x: x @ turn)
    with torch.no_grad():
        torch.testing.assert_close(copy(TOKENS), original(TOKENS), atol=1e-5, rtol=1e-4)
    before, after, expected = density_of(original), density_of(copy), {}
    for name in before.edges:
        pattern = edge_module(original, name).weight != 0
        if name == "embedding":
            pattern = pattern[list(weight_graph(original, pairs(8)).inputs)]
        elif name == "unembedding":
            pattern = pattern[[YES, NO]]
        writes = name.startswith(("output", "mlp_out"))
        expected[name] = 8 * int(pattern.any(0 if writes else 1).sum())
    assert after.edges == expected and after.n_edges > 1.5 * before.n_edges
    for method in ("relp", "exact"):
        parts = [node_space(bridge).split(scored(bridge, pairs(2), method)) for bridge in (original, copy)]
        for name, part in parts[0].items():
            if name.startswith(("attn_q", "attn_k", "attn_v", "mlp_neuron")):
                torch.testing.assert_close(parts[1][name], part, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_planted_nodes_come_first(planted: Planted, method: str) -> None:
    ablation = Ablation(planted.reference)
    found = attribute_nodes(planted.bridge, planted.prompts, method=method, ablation=ablation)
    circuit = found.circuit(sum(map(len, planted.nodes.values())))
    assert {site: nodes for site, nodes in circuit.kept().items() if nodes} == planted.nodes


@pytest.mark.parametrize(("method", "first"), [("eap", 5), ("exact", 5), ("eap_ig", 6)])
def test_planted_edges_come_first(planted: Planted, method: str, first: int) -> None:
    """The token that the neuron answers to, the weights into and out of it, and both answers.

    The neuron is silent for the other token whether its edge is there or not, so that edge is worth nothing. Half cut, the model is
    less sure, and the size of the token's other channels matters through the norm: integrated slopes have one such edge between.
    """
    windows = np.concatenate([planted.batch.clean, planted.batch.corrupt])
    mask, fingerprint = full_mask(planted.space), model_fingerprint(planted.bridge)
    circuit = Circuit(mask, planted.space, planted.reference, "planted", fingerprint, 0.1, 0.0)
    found = attribute_edges(planted.bridge, circuit, planted.batch, method=method, windows=windows)
    rows = found.to_frame().head(first)
    edges = set(zip(rows["kind"], rows["output"], rows["input"], strict=True))
    planted_edges = {("embedding", FIRST, 0), ("mlp_in", 1, 0), ("mlp_out", 3, 1), ("unembedding", YES, 3), ("unembedding", NO, 3)}
    assert edges >= planted_edges and len(edges - planted_edges) == first - 5


def padded(batch: TaskBatch) -> TaskBatch:
    """The same pairs with other tokens behind every prompt."""
    more = np.random.default_rng(1).integers(0, VOCAB, (len(batch), 2))
    none = np.zeros_like(more, dtype=bool)
    sides = {side: np.concatenate([getattr(batch, side), more], 1) for side in ("clean", "corrupt")}
    return replace(batch, **sides, **{f"{side}_fork": np.concatenate([getattr(batch, f"{side}_fork"), none], 1) for side in sides})


@pytest.mark.parametrize("method", METHODS)
def test_batches_and_padding_change_nothing(method: str) -> None:
    bridge, batch = random_bridge(n_layer=1, sink=True, afrac=0.5, afrac_loctypes="attn_in,mlp_neuron"), pairs(3)
    expected = attribute_nodes(bridge, batch, method=method, windows=WINDOWS, steps=2).per_pair
    for other, size in ((batch, 5), (padded(batch), 128)):
        found = attribute_nodes(bridge, other, method=method, windows=WINDOWS, steps=2, batch_size=size).per_pair
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    order = draw(6, 0)
    prompts = both_sides(batch).rows(order)
    found = attribute_nodes(bridge, prompts, method=method, windows=WINDOWS, steps=2).per_pair
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("method", EDGE_METHODS)
def test_batches_and_padding_change_no_edge(method: str) -> None:
    bridge, batch = random_bridge(density=0.1, n_layer=1), pairs(2)
    circuit = circuit_of(bridge)
    expected = attribute_edges(bridge, circuit, batch, method=method, windows=WINDOWS).scores
    for other, size in ((batch, 3), (padded(batch), 128)):
        found = attribute_edges(bridge, circuit, other, method=method, windows=WINDOWS, batch_size=size).scores
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
