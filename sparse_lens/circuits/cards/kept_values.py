"""What the kept nodes of a circuit do on given tokens: recorded in the whole model, or while it runs as the circuit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.latents import hooked_mask
from sparse_lens.circuits.masking import Hook, Source, flat_channels, with_sources
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.sites import NodeSpace, Site


@torch.no_grad()
def kept_values(
    bridge: Any, space: NodeSpace, mask: Bool[Tensor, " node"], tokens: Int[Tensor, "row pos"]
) -> Float[Tensor, "row pos kept"]:
    """Values of the nodes of `mask` on every token, in the order of the space; an error node's value is its error's norm.

    Hooks that are on the bridge already act first.
    """
    found: dict[str, Tensor] = {}
    parts = {site.name: mask[space.slices[site.name]] for site in space.sites}
    wanted = [site for site in space.sites if bool(parts[site.name].any())]

    def record(site: Site, source: Source) -> Hook:
        def hook(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens passes it by name
            found[site.name] = _values(site, source, flat_channels(tensor, site).float())[..., parts[site.name]]

        return hook

    with bridge.hooks(fwd_hooks=with_sources(NodeSpace(tuple(wanted)), record)):
        bridge(tokens)
    return torch.cat([found[site.name] for site in wanted], -1) if wanted else torch.zeros(*tokens.shape, 0)


def _values(site: Site, source: Source, flat: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos part"]:
    """All nodes of a site: its latents, and the norm of what they leave over."""
    latents = site.dictionary.encode(source.of(flat))
    if site.dictionary.exact:
        return latents
    error = (flat - source.decoded(latents, flat)).norm(dim=-1, keepdim=True)
    return torch.cat([latents, error], -1)


@contextmanager
def running(bridge: Any, circuit: Circuit, prompts: Prompts) -> Iterator[None]:
    """Run `bridge` on `prompts.tokens` as `circuit` inside the block, whatever its ablation; raises for another model."""
    space = circuit.check_model(bridge)
    mask = circuit.mask if circuit.edges is None else hooked_mask(space, circuit.mask)
    hooks = circuit.how_ablated.hooks(bridge, space, mask, prompts)
    with bridge.hooks(fwd_hooks=hooks):
        if circuit.edges is None:
            yield
        else:
            with circuit.edges.cut_in(bridge):
                yield
