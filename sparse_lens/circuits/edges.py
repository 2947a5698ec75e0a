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
from sparse_lens.circuits.sites import FINAL_SITE, LAYER_SITES, NodeSpace
from sparse_lens.circuits.weights import WeightGraph, heads_of, reached_by
from sparse_lens.errors import CircuitError

EDGE_KINDS = ("embedding", "qkv", "output", "mlp_in", "mlp_out", "unembedding")
"""The kinds that add up to a circuit's edges."""

APART_KINDS = ("positions", "biases", "means", "bigram")
"""What a circuit also needs but is no weight between two of its nodes."""

_BIASED_SITES = {
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_out": "attn.o",
    "mlp_neuron": "mlp.in",
    "mlp_out": "mlp.out",
}


def count_edges(space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph) -> dict[str, int]:
    """Number of edges of each kind in `EDGE_KINDS`. Raises `CircuitError` for sites with dictionaries: latents have no weights."""
    if space.has_dictionaries:
        raise CircuitError("edges are weights between neurons; a node space with dictionaries has none of its own")
    kept = space.split(mask)
    counts: dict[str, int] = dict.fromkeys(EDGE_KINDS, 0)
    for layer, weights in enumerate(graph.layers):
        attn_in, mlp_in, neuron = kept[f"attn_in.{layer}"], kept[f"mlp_in.{layer}"], kept[f"mlp_neuron.{layer}"]
        for letter in "qkv":
            counts["qkv"] += _between(getattr(weights, letter), kept[f"attn_{letter}.{layer}"], attn_in)
        counts["output"] += _between(weights.o, kept[f"attn_out.{layer}"], graph.spread(kept[f"attn_v.{layer}"]))
        counts["mlp_in"] += _between(weights.fc_in, neuron, mlp_in)
        counts["mlp_out"] += _between(weights.fc_out, kept[f"mlp_out.{layer}"], neuron)
    counts["embedding"] = int(graph.embedding[list(graph.inputs)][:, _read_channels(kept, graph)].sum())
    counts["unembedding"] = int(graph.unembedding[list(graph.answers)][:, kept[FINAL_SITE]].sum())
    return counts


def count_apart(circuit: Circuit, graph: WeightGraph) -> dict[str, int]:
    """Number of nonzero constants of each kind in `APART_KINDS` that the circuit uses."""
    kept = circuit.space.split(circuit.mask)
    biases = 0
    for name, part in kept.items():
        kind, _, layer = name.partition(".")
        stored = graph.biases.get(f"blocks.{layer}.{_BIASED_SITES.get(kind)}.bias")
        if stored is not None and len(stored) == len(part):
            biases += int((stored & part).sum())
    means = 0
    for name, part in kept.items():
        latents = circuit.reference[name].latents
        ablated = (latents != 0) & ~part[: len(latents)]
        read = _read_by_kept(name, kept, graph)
        means += int((ablated & read).sum()) if len(read) == len(ablated) else int(ablated.sum())
    channels = _read_channels(kept, graph)
    positions = graph.positions if graph.concatenated else graph.positions[:, channels]
    bigram = 0 if graph.bigram is None else int(graph.bigram[list(graph.last_tokens)][:, list(graph.answers)].sum())
    return {"positions": int(positions.sum()), "biases": biases, "means": means, "bigram": bigram}


def _between(pattern: Tensor, outputs: Tensor, inputs: Tensor) -> int:
    return int(pattern[outputs][:, inputs].sum())


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
    return _read_channels(kept, graph)


def _read_channels(kept: dict[str, Tensor], graph: WeightGraph) -> Bool[Tensor, " d_model"]:
    """Residual channels that any kept node reads."""
    read = torch.zeros(graph.d_model, dtype=torch.bool)
    for name, part in kept.items():
        if name.partition(".")[0] in ("attn_in", "mlp_in", FINAL_SITE):
            read |= part[: graph.d_model]
    return read
