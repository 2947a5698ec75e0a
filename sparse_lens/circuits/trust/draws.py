"""Random nodes for controls, drawn so that a copy of the model with its channels in another order draws the same ones.

Each node gets a random key. Keys are dealt out within a site in the order of the nodes' mean activations, not of their indices.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit


def node_keys(circuit: Circuit, generator: torch.Generator) -> Float[Tensor, " node"]:
    """One uniform random key in [0, 1) for every node of the circuit's space."""
    keys = torch.empty(circuit.space.n_nodes)
    keys[_by_mean(circuit)] = torch.rand(circuit.space.n_nodes, generator=generator)
    return keys


def random_like(circuit: Circuit, generator: torch.Generator, *, same_errors: bool = False) -> Bool[Tensor, " node"]:
    """A random circuit with as many nodes at every site; it may share some with `circuit`.

    With `same_errors` it has the circuit's error nodes, and draws the others: one of them can carry more than all latents.
    """
    keys, mask = node_keys(circuit, generator), torch.zeros_like(circuit.mask)
    if same_errors:
        for site in circuit.space.sites:
            error = circuit.space.slices[site.name].stop - 1
            if not site.dictionary.exact:
                keys[error] = -1.0 if circuit.mask[error] else 2.0
    for part in circuit.space.slices.values():
        chosen = keys[part].argsort()[: int(circuit.mask[part].sum())]
        mask[part.start + chosen] = True
    return mask


def random_outside(circuit: Circuit, generator: torch.Generator, n_nodes: int) -> list[int]:
    """Up to `n_nodes` different nodes outside the circuit, at its own sites, shared out as its nodes are.

    A circuit that keeps everything has none.
    """
    keys = node_keys(circuit, generator)
    at_sites = torch.zeros_like(keys)
    for part in circuit.space.slices.values():
        free = ~circuit.mask[part]
        if bool(free.any()):
            at_sites[part] = free * circuit.mask[part].sum() / free.sum()
    # The smallest of exponential draws, each divided by its weight, is a weighted draw without replacement.
    race = torch.where(at_sites > 0, -torch.log1p(-keys) / at_sites, torch.inf)
    order = race.argsort()
    return order[: min(n_nodes, int((at_sites > 0).sum()))].tolist()


def _by_mean(circuit: Circuit) -> Int[Tensor, " node"]:
    """Indices of all nodes, site after site, within a site by mean activation; an error node comes last."""
    order = []
    for site in circuit.space.sites:
        means = circuit.reference[site.name].latents
        inside = means.argsort(stable=True)
        extra = torch.arange(site.n_latents, site.n_nodes)
        order.append(circuit.space.slices[site.name].start + torch.cat([inside, extra]))
    return torch.cat(order)
