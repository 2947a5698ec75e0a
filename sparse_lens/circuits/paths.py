"""Which kept nodes lie on a path from the input tokens to the answers' logits; the others do nothing and are dropped.

A path runs along nonzero weights between kept nodes and along the residual stream, whose channels connect every write to all later
reads. Within a head, queries and keys reach the head's output through its pattern. The norms' scale, which couples all
channels a little, is not counted as a path: hence a circuit is always scored after the dropping.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.sites import FINAL_SITE, NodeSpace, Site
from sparse_lens.circuits.weights import LayerWeights, WeightGraph, dense_layer, heads_of, reached_by, reaching, skip_pattern
from sparse_lens.errors import CircuitError

Parts = dict[str, Tensor]


def paths_are_known(space: NodeSpace) -> bool:
    """Whether single weights lead from node to node: not where a dictionary mixes the channels of another site than an MLP's.

    Nor where it sees the residual stream: what lies before and after such a site is joined through it alone.
    """
    return not space.sees_residual and all(site.is_identity or site.kind == "mlp_neuron" for site in space.sites)


def on_paths(space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph) -> Bool[Tensor, " node"]:
    """The nodes of `mask` that lie on a path from any token to an answer's logit."""
    kept = space.split(mask)
    seen_through = {site.name for site in space.sites if not site.is_identity}
    if other := sorted(name for name in seen_through if not name.startswith("mlp_neuron.")):
        raise CircuitError(f"paths are followed through dictionaries on MLP neurons only, not at {', '.join(other)}")
    layers = list(graph.layers)
    for site in space.sites:
        if not site.is_identity and site.layer is not None:
            layers[site.layer] = _latents_for_neurons(layers[site.layer], site)
    forward, mixed = _forward(kept, layers, graph)
    return space.join(_backward(forward, mixed, layers, graph))


def _latents_for_neurons(weights: LayerWeights, site: Site) -> LayerWeights:
    """Latents in place of neurons: each may read all of mlp_in and write all of mlp_out."""
    fc_in, fc_out = (dense_layer(pattern, site.n_nodes, axis=axis) for axis, pattern in enumerate((weights.fc_in, weights.fc_out)))
    return replace(weights, fc_in=fc_in, fc_out=fc_out, skip=skip_pattern(site.dictionary, weights.fc_in.shape[1]))


def _forward(kept: Parts, layers: list[LayerWeights], graph: WeightGraph) -> tuple[Parts, list[Tensor]]:
    """Kept nodes that the input reaches, by site, and the channels of each layer's heads' outputs that it reaches."""
    alive: Parts = {}
    mixed: list[Tensor] = []
    written = graph.embedding.any(0)
    if not graph.concatenated:
        written = written | graph.positions.any(0)
        positional = torch.zeros(0, dtype=torch.bool)
    else:
        positional = graph.positions.any(0)
    for layer, weights in enumerate(layers):
        here = {kind: kept[f"{kind}.{layer}"] for kind in ("attn_in", "attn_q", "attn_k", "attn_v")}
        attn_in = here["attn_in"] & torch.cat([written, positional])
        q = here["attn_q"] & reaching(weights.q, attn_in)
        k = here["attn_k"] & reaching(weights.k, attn_in)
        pattern = heads_of(q | graph.spread(k), graph.n_head)
        # A constant value still carries a varying pattern; without a sink the rows sum to one and a mean does not.
        read = here["attn_v"] & reaching(weights.v, attn_in)
        v = read | (here["attn_v"] & graph.gather(pattern))
        z = graph.spread(read) | (pattern if graph.sink else pattern & graph.spread(here["attn_v"]))
        mixed.append(z)
        attn_out = kept[f"attn_out.{layer}"] & reaching(weights.o, z)
        written = written | attn_out
        mlp_in = kept[f"mlp_in.{layer}"] & torch.cat([written, positional])
        neuron = kept[f"mlp_neuron.{layer}"] & reaching(weights.fc_in, mlp_in)
        reached = reaching(weights.fc_out, neuron)
        reached = reached if weights.skip is None else reached | reaching(weights.skip, mlp_in)
        mlp_out = kept[f"mlp_out.{layer}"] & reached
        written = written | mlp_out
        found = (attn_in, q, k, v, attn_out, mlp_in, neuron, mlp_out)
        kinds = ("attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
        alive |= {f"{kind}.{layer}": part for kind, part in zip(kinds, found, strict=True)}
    alive[FINAL_SITE] = kept[FINAL_SITE] & written
    return alive, mixed


def _backward(alive: Parts, mixed: list[Tensor], layers: list[LayerWeights], graph: WeightGraph) -> Parts:
    """The nodes of `alive` that reach an answer, by site."""
    useful: Parts = {FINAL_SITE: alive[FINAL_SITE] & graph.unembedding[list(graph.answers)].any(0)}
    read = useful[FINAL_SITE].clone()
    for layer in reversed(range(len(layers))):
        weights = layers[layer]
        mlp_out = alive[f"mlp_out.{layer}"] & read
        neuron = alive[f"mlp_neuron.{layer}"] & reached_by(weights.fc_out, mlp_out)
        sources = reached_by(weights.fc_in, neuron)
        sources = sources if weights.skip is None else sources | reached_by(weights.skip, mlp_out)
        mlp_in = alive[f"mlp_in.{layer}"] & sources
        read = read | mlp_in[: graph.d_model]
        attn_out = alive[f"attn_out.{layer}"] & read
        z = mixed[layer] & reached_by(weights.o, attn_out)
        v = alive[f"attn_v.{layer}"] & graph.gather(z)
        heads = heads_of(z if graph.sink else z & graph.spread(v), graph.n_head)
        q, k = alive[f"attn_q.{layer}"] & heads, alive[f"attn_k.{layer}"] & graph.gather(heads)
        sources = reached_by(weights.q, q) | reached_by(weights.k, k) | reached_by(weights.v, v)
        attn_in = alive[f"attn_in.{layer}"] & sources
        read = read | attn_in[: graph.d_model]
        found = (attn_in, q, k, v, attn_out, mlp_in, neuron, mlp_out)
        kinds = ("attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
        useful |= {f"{kind}.{layer}": part for kind, part in zip(kinds, found, strict=True)}
    return useful
