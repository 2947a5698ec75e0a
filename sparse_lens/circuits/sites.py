"""Node spaces: which channels of which sites a circuit may keep.

A site is a hook point with its channels seen through a dictionary: the identity for neurons, an SAE for latents. A node is one
latent at one site, shared over positions; where the dictionary is not exact, its error is one more node. No function here or
later asks which column of the comparison it works for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.dictionaries import Dictionary, IdentityDictionary
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.hooks.layout import DecoderLayout, decoder_layout
from sparse_lens.hooks.names import canonical_hook_name

LAYER_SITES = ("attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
"""The eight sites of a layer (arXiv:2511.13653)."""

FINAL_SITE = "final_resid"

RESIDUAL_SITES = {"resid_pre": "attn_in", "resid_mid": "mlp_in", "resid_post": None}
"""Sites of the residual stream, which are there only where a dictionary sees it, each with the site before which it stands (None:
it ends the layer)."""


@dataclass(frozen=True, eq=False)
class Site:
    """A hook point and the dictionary it is seen through; `kind` is one of the nine site names or the residual stream's.

    `layer` is None for final_resid.

    A transcoder stands where the neurons were: its site is `mlp_neuron`, its hook the MLP's output, which it writes.
    """

    kind: str
    layer: int | None
    hook: str
    dictionary: Dictionary

    @property
    def name(self) -> str:
        """`mlp_neuron.0`, or `final_resid`."""
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"

    @property
    def n_latents(self) -> int:
        return self.dictionary.n_latents

    @property
    def is_identity(self) -> bool:
        """Whether the nodes are the hook's own channels."""
        return isinstance(self.dictionary, IdentityDictionary)

    @property
    def reads_elsewhere(self) -> bool:
        """Whether the dictionary reads another hook than it writes: a transcoder."""
        return self.dictionary.hook_in != self.dictionary.hook_out

    @property
    def n_nodes(self) -> int:
        """The latents, and one node for the error of a dictionary that does not reconstruct exactly."""
        return self.n_latents + (0 if self.dictionary.exact else 1)


@dataclass(frozen=True, eq=False)
class NodeSpace:
    """All candidate nodes of a model, site after site in the order of computation."""

    sites: tuple[Site, ...]

    @cached_property
    def n_nodes(self) -> int:
        return sum(site.n_nodes for site in self.sites)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each site's nodes lie in a flat vector of all nodes, by the site's name."""
        slices: dict[str, slice] = {}
        start = 0
        for site in self.sites:
            slices[site.name] = slice(start, start + site.n_nodes)
            start += site.n_nodes
        return slices

    @property
    def has_dictionaries(self) -> bool:
        """Whether any site is seen through something else than its own channels, or lies in the residual stream."""
        return self.sees_residual or any(not site.is_identity for site in self.sites)

    @property
    def sees_residual(self) -> bool:
        """Whether a dictionary sees the residual stream, through which everything else passes too."""
        return any(site.kind in RESIDUAL_SITES for site in self.sites)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a flat `[node]` vector by site name."""
        if flat.shape != (self.n_nodes,):
            raise CircuitError(f"this space has {self.n_nodes} nodes, got a vector of shape {tuple(flat.shape)}")
        return {name: flat[part] for name, part in self.slices.items()}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([parts[site.name] for site in self.sites])

    def signature(self) -> list[list[Any]]:
        """What identifies the space: name, hook, nodes and dictionary hash of every site."""
        return [[site.name, site.hook, site.n_nodes, site.dictionary.hash] for site in self.sites]


def node_space(bridge: Any, dictionaries: Sequence[Dictionary] = ()) -> NodeSpace:
    """The paper's eight sites per layer and final_resid of a bridge, with `dictionaries` in place of channels at their hooks.

    A transcoder, which reads an MLP's input and writes its output, takes the place of the neurons between them. A dictionary of the
    residual stream (`hook_resid_pre`, `hook_resid_mid`, `hook_resid_post`) adds a site there. Any decoder of TransformerLens will
    do whose blocks are norm, attention, norm, MLP.

    Raises `UnknownNameError` for a dictionary at a hook that is no site, `CircuitError` for one of another width, one that reads
    another site than it writes, one at `hook_resid_mid` of a bridge that has no such point in the stream, and for other blocks.
    """
    layout = decoder_layout(bridge)
    places = [place for layer in range(layout.n_layers) for place in _places_of_layer(layout, layer)]
    places.append((FINAL_SITE, None, "ln_final.hook_in", layout.d_model))
    hooks = {(kind, layer): hook for kind, layer, hook, _ in places}
    chosen: dict[tuple[str, int | None], Dictionary] = {}
    for dictionary in dictionaries:
        place = _place(dictionary, hooks)
        if place in chosen:
            raise CircuitError(f"{dictionary.name!r} and {chosen[place].name!r} are dictionaries of one site; give one of them")
        if place[0] == "resid_mid":
            _check_middle(bridge, dictionary)
        chosen[place] = dictionary
    sites = [
        _site(kind, layer, hook, width, layout.d_model, chosen.get((kind, layer)))
        for kind, layer, hook, width in places
        if kind not in RESIDUAL_SITES or (kind, layer) in chosen
    ]
    return NodeSpace(tuple(sites))


def _places_of_layer(layout: DecoderLayout, layer: int) -> list[tuple[str, int | None, str, int]]:
    """Kind, layer, hook and width of every site that a layer may have, in the order of computation."""
    places: list[tuple[str, int | None, str, int]] = []
    residual = {before: kind for kind, before in RESIDUAL_SITES.items()}
    for kind in (*LAYER_SITES, None):
        if kind in residual:
            places.append((residual[kind], layer, f"blocks.{layer}.hook_{residual[kind]}", layout.d_model))
        if kind is not None:
            places.append((kind, layer, f"blocks.{layer}.{layout.hooks[kind]}", layout.widths[kind]))
    return places


def _check_middle(bridge: Any, dictionary: Dictionary) -> None:
    """Most architectures' `hook_resid_mid` is the input of a norm in TransformerBridge: what is changed there passes no further."""
    point = str(bridge.hook_dict[dictionary.hook_out].name)
    if "resid_mid" not in point:
        raise CircuitError(
            f"dictionary {dictionary.name!r} is of {dictionary.hook_out!r}, which in this bridge is {point!r}: what the MLP reads, "
            "not the residual stream; take one of hook_resid_pre or hook_resid_post"
        )


def _place(dictionary: Dictionary, hooks: dict[tuple[str, int | None], str]) -> tuple[str, int | None]:
    """Kind and layer of the site that a dictionary stands in."""
    places = {canonical_hook_name(hook): place for place, hook in hooks.items()}  # an alias names the same place
    for hook in (dictionary.hook_out, dictionary.hook_in):
        if canonical_hook_name(hook) not in places:
            raise UnknownNameError("site hook", hook, hooks.values())
    written, read = (places[canonical_hook_name(hook)] for hook in (dictionary.hook_out, dictionary.hook_in))
    if read == written:
        return written
    if written[0] != "mlp_out" or read != ("mlp_in", written[1]):
        raise CircuitError(
            f"dictionary {dictionary.name!r} reads {dictionary.hook_in!r} and writes {dictionary.hook_out!r}; a node space takes "
            "dictionaries that read where they write, and transcoders from the input of an MLP to its output"
        )
    return "mlp_neuron", written[1]


def _site(kind: str, layer: int | None, hook: str, width: int, d_model: int, dictionary: Dictionary | None) -> Site:
    if dictionary is None:
        return Site(kind, layer, hook, IdentityDictionary(width, hook))
    width = width if dictionary.hook_in == dictionary.hook_out else d_model
    if dictionary.W_dec.shape[-1] != width:
        raise CircuitError(
            f"dictionary {dictionary.name!r} writes {dictionary.W_dec.shape[-1]} channels, {dictionary.hook_out!r} has {width}; "
            "give it a site of its width"
        )
    return Site(kind, layer, dictionary.hook_out, dictionary)


def model_fingerprint(bridge: Any) -> str:
    """Hash of all weights, by name: circuits belong to one model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(bridge.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def full_mask(space: NodeSpace, keep: bool = True) -> Bool[Tensor, " node"]:
    """The mask that keeps every node (the whole model) or none (everything ablated)."""
    return torch.full((space.n_nodes,), keep)
