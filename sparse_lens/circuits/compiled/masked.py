"""A compiled run of the whole model in which every node has a gate: differentiable in them, what a search of nodes learns on.

A gate of 1 leaves a node as it is, at 0 it holds the value that ablation gives it, and between them a mixture: as under
`masking.mask_hooks`, but what prompts share is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.compiled.latents import MaskedMLP
from sparse_lens.circuits.compiled.nodes import compiles, node_plan
from sparse_lens.circuits.compiled.plan import LatentPart, Plan, SiteChoice
from sparse_lens.circuits.compiled.prefixes import PrefixRows, prefix_rows
from sparse_lens.circuits.compiled.run import Run
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.sites import NodeSpace, full_mask


@dataclass(frozen=True, eq=False)
class MaskedModel:
    """The whole model compiled; `values` are those of ablated nodes by site, `tokens` those whose logits a run gives: all."""

    plan: Plan
    space: NodeSpace
    values: Mapping[str, Float[Tensor, " channel"]]
    tokens: Int[Tensor, " vocab"]

    def logits(self, mask: Float[Tensor, " node"], prompts: Prompts) -> Float[Tensor, "row vocab"]:
        """Logits at the answer under a mask, differentiable in it."""
        rows = prefix_rows(prompts.tokens, prompts.position)
        return MaskedRun(self.plan, rows, self.tokens, self.space.split(mask), self.values).value("logits")[rows.inverse]


def masked_model(bridge: Any, space: NodeSpace, ablation: Ablation) -> MaskedModel | None:
    """A bridge compiled with a gate on each node of `space`; None where it has to run itself, as `compiles` says."""
    if not compiles(bridge, space, ablation):
        return None
    plan = node_plan(bridge, space, full_mask(space), ablation)
    values = {name: reference.latents.to(torch.float32) for name, reference in ablation.fixed_values().items()}
    return MaskedModel(plan, space, values, torch.arange(len(plan.unembedding.weight)))


class MaskedRun(Run):
    """A run of a whole model's plan under a mask of its nodes."""

    def __init__(
        self,
        plan: Plan,
        rows: PrefixRows,
        answers: Int[Tensor, " answer"],
        masks: Mapping[str, Float[Tensor, " channel"]],
        values: Mapping[str, Float[Tensor, " channel"]],
    ) -> None:
        super().__init__(plan, rows, answers)
        self._masks, self._values = masks, values

    def choose(self, site: SiteChoice, values: Tensor) -> Float[Tensor, "row kept"]:
        return self._masked(site, super().choose(site, values))

    def final(self, x: Tensor) -> Float[Tensor, "prompt channel"]:
        return super().final(self._masked(self.plan.final, x))

    def latents(self, part: LatentPart, layer: int, u: Tensor) -> Float[Tensor, "row d_model"]:
        assert isinstance(part.write, MaskedMLP)
        return part.write(u, self._masks[f"mlp_neuron.{layer}"])

    def _masked(self, site: SiteChoice, x: Tensor) -> Tensor:
        return torch.lerp(self._values[site.name].expand_as(x), x, self._masks[site.name].expand_as(x))
