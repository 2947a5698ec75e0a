"""Single weights as edges: which lie between kept nodes, by the matrix they are entries of.

An edge is a nonzero weight from something that varies to a kept node: from a kept channel, or from a channel of a head's output
that varies because its pattern does. Embedding edges run from the tokens in which prompts differ, unembedding edges to the two
answers. Latents of a dictionary in an MLP have virtual weights (`latents`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparse_lens.circuits.edges.latents import as_channels
from sparse_lens.circuits.paths import on_paths
from sparse_lens.circuits.sites import FINAL_SITE, LAYER_SITES, NodeSpace
from sparse_lens.circuits.weights import WeightGraph, heads_of
from sparse_lens.errors import CircuitError

EDGE_KINDS = ("embedding", "q", "k", "v", "output", "mlp_in", "mlp_out", "unembedding")
"""What an edge is a weight of; their numbers add up to a circuit's edges."""

_FIELDS = {"q": "q", "k": "k", "v": "v", "output": "o", "mlp_in": "fc_in", "mlp_out": "fc_out"}
"""Kinds within a layer, and the field of `LayerWeights` that has their nonzero pattern."""


@dataclass(frozen=True, eq=False)
class EdgeSpace:
    """Edges by matrix: `index[name] [edge 2]` holds output and input of each; a name is a kind, with its layer if it has one.

    Rows are outputs of the matrix (tokens, for the embedding), columns its inputs.
    """

    index: Mapping[str, Int[Tensor, "edge 2"]]

    @cached_property
    def n_edges(self) -> int:
        return sum(len(index) for index in self.index.values())

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a flat `[edge]` vector by matrix."""
        if len(flat) != self.n_edges:
            raise CircuitError(f"there are {self.n_edges} edges, got a vector of {len(flat)}")
        return dict(zip(self.index, flat.split([len(index) for index in self.index.values()]), strict=True))

    def chosen(self, keep: Bool[Tensor, " edge"]) -> EdgeSpace:
        """The edges at which `keep` holds."""
        return EdgeSpace({name: self.index[name][part] for name, part in self.split(keep).items()})

    def counts(self) -> dict[str, int]:
        """Number of edges of each of `EDGE_KINDS`."""
        found: dict[str, int] = dict.fromkeys(EDGE_KINDS, 0)
        for name, index in self.index.items():
            found[name.partition(".")[0]] += len(index)
        return found


def candidate_edges(space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph) -> EdgeSpace:
    """All edges between the nodes of `mask`. Raises `CircuitError` for dictionaries elsewhere than in an MLP."""
    return EdgeSpace({name: pattern.nonzero() for name, pattern in possible_edges(space, mask, graph, nonzero_only=True).items()})


def possible_edges(
    space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph, *, nonzero_only: bool
) -> dict[str, Bool[Tensor, "out in"]]:
    """By matrix, whether an entry lies between kept nodes, and, with `nonzero_only`, has a weight; raises as `candidate_edges`."""
    space, graph = as_channels(space, graph)
    kept = space.split(mask)
    found: dict[str, Tensor] = {}

    def add(name: str, outputs: Tensor, inputs: Tensor, pattern: Tensor) -> None:
        between = outputs[:, None] & inputs
        found[name] = between & pattern if nonzero_only else between

    add("embedding", _tokens(graph.inputs, graph.embedding), read_channels(kept, graph), graph.embedding)
    for layer, weights in enumerate(graph.layers):
        here = {kind: kept[f"{kind}.{layer}"] for kind in LAYER_SITES}
        neuron = here["mlp_neuron"]
        for letter in "qkv":
            add(f"{letter}.{layer}", here[f"attn_{letter}"], here["attn_in"], getattr(weights, letter))
        varying = varying_outputs(here["attn_q"], here["attn_k"], here["attn_v"], graph)
        add(f"output.{layer}", here["attn_out"], varying, weights.o)
        add(f"mlp_in.{layer}", neuron, here["mlp_in"], weights.fc_in)
        add(f"mlp_out.{layer}", here["mlp_out"], neuron, weights.fc_out)
    add("unembedding", _tokens(graph.answers, graph.unembedding), kept[FINAL_SITE], graph.unembedding)
    return found


def varying_outputs(q: Tensor, k: Tensor, v: Tensor, graph: WeightGraph) -> Bool[Tensor, " d_attn"]:
    """Channels of the heads' outputs that are not constant: their value varies, or, with a sink, their pattern does."""
    pattern = heads_of(q | graph.spread(k), graph.n_head)
    return graph.spread(v) | (pattern if graph.sink else torch.zeros_like(pattern))


def read_channels(kept: Mapping[str, Tensor], graph: WeightGraph) -> Bool[Tensor, " d_model"]:
    """Residual channels that any kept node reads."""
    read = torch.zeros(graph.d_model, dtype=torch.bool)
    for name, part in kept.items():
        if name.partition(".")[0] in ("attn_in", "mlp_in", FINAL_SITE):
            read |= part[: graph.d_model]
    return read


def _tokens(tokens: tuple[int, ...], matrix: Tensor) -> Bool[Tensor, " vocab"]:
    chosen = torch.zeros(len(matrix), dtype=torch.bool)
    chosen[list(tokens)] = True
    return chosen


def only_edges(graph: WeightGraph, edges: EdgeSpace) -> WeightGraph:
    """The weight graph with no other weights than `edges` (and those that no edge stands for: positions, other tokens, skips)."""

    def pattern(name: str, like: Tensor) -> Tensor:
        chosen = torch.zeros_like(like)
        index = edges.index[name]
        chosen[index[:, 0], index[:, 1]] = True
        return chosen

    layers = tuple(
        replace(weights, **{field: pattern(f"{kind}.{layer}", getattr(weights, field)) for kind, field in _FIELDS.items()})
        for layer, weights in enumerate(graph.layers)
    )
    embedding = graph.embedding.clone()
    embedding[list(graph.inputs)] = pattern("embedding", graph.embedding)[list(graph.inputs)]
    return replace(graph, layers=layers, embedding=embedding, unembedding=pattern("unembedding", graph.unembedding))


def edges_on_paths(
    space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph, edges: EdgeSpace, keep: Bool[Tensor, " edge"]
) -> tuple[Bool[Tensor, " node"], Bool[Tensor, " edge"]]:
    """Nodes and edges of `keep` that lie on a path from any token to an answer along kept edges and the residual stream."""
    space, graph = as_channels(space, graph)
    graph = only_edges(graph, edges.chosen(keep))
    mask = on_paths(space, mask, graph)
    between = possible_edges(space, mask, graph, nonzero_only=True)
    alive = [between[name][index[:, 0], index[:, 1]] for name, index in edges.index.items()]
    return mask, keep & torch.cat(alive)
