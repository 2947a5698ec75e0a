"""Edges of dictionary latents: which virtual weights there are, so that a latent stands in the weight graph like a neuron.

| site | reads mlp_in through | writes mlp_out through |
|---|---|---|
| SAE on the neurons | the hidden layer and its encoder's row | `W_dec @ W_out`, linear |
| transcoder | its encoder's row | its decoder's row |

A latent reads a channel if some path of nonzero weights leads there. The error node of a dictionary reads whatever the MLP (or the
dictionary) reads, and writes whatever it writes. What a skip transcoder hands on past its latents is never cut: it joins kept
channels of mlp_in to kept channels of mlp_out, and is counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.edges.encoders import encoder_rows
from sparse_lens.circuits.masking import Reference
from sparse_lens.circuits.sites import RESIDUAL_SITES, NodeSpace, Site
from sparse_lens.circuits.weights import LayerWeights, WeightGraph, skip_pattern
from sparse_lens.dictionaries import IdentityDictionary
from sparse_lens.errors import CircuitError


@dataclass(frozen=True, eq=False)
class LatentSite:
    """A site with a dictionary in a circuit of edges: its kept nodes, and what stands in for the others."""

    site: Site
    mask: Bool[Tensor, " node"]
    reference: Reference


def latent_sites(space: NodeSpace, mask: Bool[Tensor, " node"], reference: Mapping[str, Reference]) -> tuple[LatentSite, ...]:
    """Every site with a dictionary. Raises `CircuitError` for dictionaries elsewhere than in an MLP."""
    parts = space.split(mask)
    return tuple(LatentSite(site, parts[site.name], reference[site.name]) for site in _seen_through(space))


def _seen_through(space: NodeSpace) -> list[Site]:
    sites = [site for site in space.sites if not site.is_identity or site.kind in RESIDUAL_SITES]
    if other := sorted(site.name for site in sites if site.kind != "mlp_neuron"):
        raise CircuitError(f"edges are cut through dictionaries of MLPs only, not at {', '.join(other)}; search nodes only")
    return sites


def hooked_mask(space: NodeSpace, mask: Tensor) -> Tensor:
    """The mask whose hooks are to be set beside cut edges: sites with dictionaries, which the cutting takes over, keep all."""
    if not space.has_dictionaries:
        return mask
    mask = mask.clone()
    for site in space.sites:
        if not site.is_identity:
            mask[space.slices[site.name]] = 1
    return mask


def as_channels(space: NodeSpace, graph: WeightGraph) -> tuple[NodeSpace, WeightGraph]:
    """The same nodes as if latents were channels of the model, and the graph with their virtual weights."""
    if not space.has_dictionaries:
        return space, graph
    layers = list(graph.layers)
    for site in _seen_through(space):
        assert site.layer is not None
        layers[site.layer] = _virtual(site, layers[site.layer])
    sites = tuple(replace(site, dictionary=IdentityDictionary(site.n_nodes, site.hook)) for site in space.sites)
    return NodeSpace(sites), replace(graph, layers=tuple(layers))


def _virtual(site: Site, weights: LayerWeights) -> LayerWeights:
    encoder, decoder = encoder_rows(site.dictionary).weight.T != 0, site.dictionary.W_dec.T != 0
    if not site.reads_elsewhere:
        read, write = _joined(encoder, weights.fc_in), _joined(weights.fc_out, decoder)
    else:
        read, write = encoder, decoder
    if not site.dictionary.exact:
        reads = weights.fc_in.any(0) | read.any(0)
        writes = weights.fc_out.any(1) | write.any(1)
        read, write = torch.cat([read, reads[None]]), torch.cat([write, writes[:, None]], dim=1)
    skip = skip_pattern(site.dictionary, weights.fc_in.shape[1])
    return replace(weights, fc_in=read, fc_out=write, skip=skip)


def _joined(outer: Bool[Tensor, "out middle"], inner: Bool[Tensor, "middle in"]) -> Bool[Tensor, "out in"]:
    """Whether any path leads from in to out."""
    return outer.float() @ inner.float() > 0


def count_skips(space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph) -> int:
    """Pairs of a kept channel of mlp_in and one of mlp_out that a skip transcoder joins past its latents."""
    space, graph = as_channels(space, graph)
    kept, found = space.split(mask), 0
    for layer, weights in enumerate(graph.layers):
        if weights.skip is not None:
            found += int((weights.skip & kept[f"mlp_out.{layer}"][:, None] & kept[f"mlp_in.{layer}"]).sum())
    return found
