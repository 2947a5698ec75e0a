"""Edges of a circuit: nonzero weights between kept nodes, counted by kind.

The input nodes are the tokens in which clean and corrupt prompts differ, the output nodes the two answers; between a token and
a channel that some kept node reads lies an embedding edge, between a kept final channel and an answer an unembedding edge.
Biases, positions, ablation means and bigram entries are no edges between nodes: they are counted apart.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.latents import as_channels
from sparse_lens.circuits.edges.space import EDGE_KINDS, possible_edges, read_channels
from sparse_lens.circuits.sites import FINAL_SITE, LAYER_SITES, NodeSpace
from sparse_lens.circuits.weights import WeightGraph, heads_of, reached_by

APART_KINDS = ("qk_pairs", "residual", "sinks", "positions", "biases", "means", "bigram")
"""What a circuit also needs but is no weight between two of its nodes: pairs of kept query and key channels, residual channels that
carry a kept write (or a token) to a kept read, heads that can attend to a sink, and nonzero constants."""

_BIASED_SITES = {
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_out": "attn.o",
    "mlp_neuron": "mlp.in",
    "mlp_out": "mlp.out",
}


def count_edges(space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph) -> dict[str, int]:
    """Number of edges of each kind in `EDGE_KINDS`. Raises `CircuitError` for dictionaries elsewhere than in an MLP."""
    counts: dict[str, int] = dict.fromkeys(EDGE_KINDS, 0)
    for name, pattern in possible_edges(space, mask, graph, nonzero_only=True).items():
        counts[name.partition(".")[0]] += int(pattern.sum())
    return counts


def count_apart(circuit: Circuit, graph: WeightGraph) -> dict[str, int]:
    """Number of each kind in `APART_KINDS` that the circuit uses; the biases of a dictionary are its own and are not counted."""
    biases = count_biases(circuit.space, circuit.mask, graph)
    space, graph = as_channels(circuit.space, graph)
    kept = space.split(circuit.mask)
    means = 0
    for name, part in kept.items():
        latents = circuit.reference[name].latents
        ablated = (latents != 0) & ~part[: len(latents)]
        read = _read_by_kept(name, kept, graph)[: len(latents)]
        means += int((ablated & read).sum()) if len(read) == len(ablated) else int(ablated.sum())
    channels = read_channels(kept, graph)
    positions = graph.positions if graph.concatenated else graph.positions[:, channels]
    bigram = 0 if graph.bigram is None else int(graph.bigram[list(graph.last_tokens)][:, list(graph.answers)].sum())
    qk_pairs = count_qk_pairs(space, circuit.mask, graph)
    shared = {"qk_pairs": qk_pairs, "residual": _residual_edges(kept, graph), "sinks": _sinks(kept, graph)}
    return shared | {"positions": int(positions.sum()), "biases": biases, "means": means, "bigram": bigram}


def count_biases(space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph) -> int:
    """Nonzero biases of the model at kept channels; latents have none of the model's."""
    found, kept = 0, space.split(mask)
    for site in space.sites:
        stored = graph.biases.get(f"blocks.{site.layer}.{_BIASED_SITES.get(site.kind)}.bias")
        if stored is not None and site.is_identity:
            found += int((stored & kept[site.name]).sum())
    return found


def count_qk_pairs(space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph) -> int:
    """Kept query channels whose key channel, with which they are multiplied, is kept, too."""
    kept, layers = space.split(mask), range(len(graph.layers))
    return sum(int((kept[f"attn_q.{layer}"] & graph.spread(kept[f"attn_k.{layer}"])).sum()) for layer in layers)


def _residual_edges(kept: dict[str, Tensor], graph: WeightGraph) -> int:
    """Pairs of a kept write and a later kept read of the same residual channel: connections of weight one."""
    written = torch.zeros(graph.d_model, dtype=torch.int64)
    total = 0
    for layer in range(len(graph.layers)):
        for read, write in (("attn_in", "attn_out"), ("mlp_in", "mlp_out")):
            total += int(written[kept[f"{read}.{layer}"][: graph.d_model]].sum())
            written = written + kept[f"{write}.{layer}"]
    return total + int(written[kept[FINAL_SITE]].sum())


def _sinks(kept: dict[str, Tensor], graph: WeightGraph) -> int:
    """Heads with a sink of which anything is kept."""
    if not graph.sink:
        return 0
    total = 0
    for layer in range(len(graph.layers)):
        part = kept[f"attn_q.{layer}"] | graph.spread(kept[f"attn_k.{layer}"] | kept[f"attn_v.{layer}"])
        total += int(part.view(graph.n_head, -1).any(1).sum())
    return total


def _read_by_kept(name: str, kept: dict[str, Tensor], graph: WeightGraph) -> Bool[Tensor, " d"]:
    """Channels of a site that some kept node reads: the constants at all others change nothing."""
    kind, _, layer = name.partition(".")
    if kind == FINAL_SITE:
        return graph.unembedding[list(graph.answers)].any(0)
    weights, of = graph.layers[int(layer)], {site: kept[f"{site}.{layer}"] for site in LAYER_SITES}
    if kind == "attn_in":
        return torch.stack([reached_by(getattr(weights, letter), of[f"attn_{letter}"]) for letter in "qkv"]).any(0)
    if kind in ("attn_q", "attn_k"):
        heads = heads_of(of["attn_q"] | graph.spread(of["attn_k"] | of["attn_v"]), graph.n_head)
        return heads if kind == "attn_q" else graph.gather(heads)
    if kind == "attn_v":
        return graph.gather(reached_by(weights.o, of["attn_out"]))
    if kind == "mlp_in":
        return reached_by(weights.fc_in, of["mlp_neuron"])
    if kind == "mlp_neuron":
        return reached_by(weights.fc_out, of["mlp_out"])
    return read_channels(kept, graph)
