"""A compiled run of the whole model in which every node has a gate: differentiable in them, what a search of nodes learns on.

A gate of 1 leaves a node as it is, at 0 it holds the value that ablation gives it, and between them a mixture: as under
`masking.mask_hooks`, but what prompts share is computed once. Sites may be seen through any dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.compiled.latents import MaskedMLP
from sparse_lens.circuits.compiled.nodes import Logits, compiled_logits, compiles, gates_compile, node_plan
from sparse_lens.circuits.compiled.open_channels import open_channels, product_of_open
from sparse_lens.circuits.compiled.plan import LatentPart, Plan, Projection, SiteChoice
from sparse_lens.circuits.compiled.prefixes import PrefixRows, prefix_rows
from sparse_lens.circuits.compiled.run import Run
from sparse_lens.circuits.masking import Reference, blend
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.sites import NodeSpace, Site, full_mask
from sparse_lens.dictionaries import IdentityDictionary


@dataclass(frozen=True, eq=False)
class MaskedModel:
    """The whole model compiled; `values` stand in for ablated nodes by site, `tokens` are those whose logits a run gives: all."""

    plan: Plan
    space: NodeSpace
    values: Mapping[str, Reference]
    tokens: Int[Tensor, " vocab"]

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The sites by name."""
        return {site.name: site for site in self.space.sites}

    def logits(self, mask: Float[Tensor, " node"], prompts: Prompts) -> Float[Tensor, "row vocab"]:
        """Logits at the answer under a mask, differentiable in it."""
        rows = prefix_rows(prompts.tokens, prompts.position)
        return MaskedRun(self, rows, self.space.split(mask)).value("logits")[rows.inverse]


def masked_model(bridge: Any, space: NodeSpace, ablation: Ablation) -> MaskedModel | None:
    """A bridge compiled with a gate on each node of `space`; None where it has to run itself, as `gates_compile` says."""
    if not gates_compile(bridge, space, ablation):
        return None
    values = {name: Reference(value.latents.float(), value.error.float()) for name, value in ablation.fixed_values().items()}
    channels, of_channels = _as_channels(space, values)
    plan = node_plan(bridge, channels, full_mask(channels), Ablation(of_channels))
    return MaskedModel(plan, space, values, torch.arange(len(plan.unembedding.weight)))


def _as_channels(space: NodeSpace, values: Mapping[str, Reference]) -> tuple[NodeSpace, Mapping[str, Reference]]:
    """The space without dictionaries, but those of MLPs, which a plan knows; nothing is ablated, so zeros do for their values."""
    sites, found = [], dict(values)
    for site in space.sites:
        if site.is_identity or site.kind == "mlp_neuron":
            sites.append(site)
            continue
        width = site.dictionary.W_dec.shape[1]
        sites.append(replace(site, dictionary=IdentityDictionary(width, site.hook)))
        found[site.name] = Reference(torch.zeros(width), torch.zeros(width))
    return NodeSpace(tuple(sites)), found


def node_circuit(bridge: Any, space: NodeSpace, mask: Bool[Tensor, " node"], ablation: Ablation) -> Logits | None:
    """The nodes of `mask` compiled: to their own weights, or, where dictionaries mix channels, to the whole model with gates.

    None where the model has to run itself. What is cut in the model at that moment is cut in the compiled circuit; one with
    dictionaries is to be run before the cut ends, for its MLPs run in the model.
    """
    if compiles(bridge, space, ablation):
        return compiled_logits(node_plan(bridge, space, mask, ablation))
    model = masked_model(bridge, space, ablation)
    return None if model is None else lambda prompts: model.logits(mask.float(), prompts)


class MaskedRun(Run):
    """A run of a whole model's plan under a mask of its nodes."""

    def __init__(self, model: MaskedModel, rows: PrefixRows, masks: Mapping[str, Float[Tensor, " node"]]) -> None:
        super().__init__(model.plan, rows, model.tokens)
        self._model, self._masks = model, masks

    def multiply(self, projection: Projection, inputs: Tensor, source: str | None = None) -> Float[Tensor, "row out"]:
        read = None if source is None else self._open(source)
        return product_of_open(projection.matrix, inputs, read, self._open(projection.site.name))

    def choose(self, site: SiteChoice, values: Tensor) -> Float[Tensor, "row kept"]:
        return self._masked(site, super().choose(site, values))

    def final(self, x: Tensor) -> Float[Tensor, "prompt channel"]:
        return super().final(self._masked(self.plan.final, x))

    def latents(self, part: LatentPart, layer: int, u: Tensor) -> Float[Tensor, "row d_model"]:
        assert isinstance(part.write, MaskedMLP)
        return part.write(u, self._masks[f"mlp_neuron.{layer}"])

    def _open(self, site: str) -> Int[Tensor, " open"] | None:
        """The channels of a site that have an open gate; None where that is nearly all, or where channels have no gates."""
        is_identity = isinstance(self._model.sites[site].dictionary, IdentityDictionary)
        return open_channels(self._masks[site]) if is_identity else None

    def _masked(self, site: SiteChoice, x: Float[Tensor, "row channel"]) -> Float[Tensor, "row channel"]:
        return blend(self._model.sites[site.name], self._masks[site.name], self._model.values[site.name], x, x)
