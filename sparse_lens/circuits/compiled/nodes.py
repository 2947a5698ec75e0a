"""The plans of circuits of nodes, and what compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.compiled.latents import masked_mlps
from sparse_lens.circuits.compiled.plan import Plan, with_levels
from sparse_lens.circuits.compiled.prefixes import prefix_rows
from sparse_lens.circuits.compiled.run import Run
from sparse_lens.circuits.compiled.weights import PartBuilder
from sparse_lens.circuits.edges.cutting import edge_module
from sparse_lens.circuits.edges.latents import latent_sites
from sparse_lens.circuits.paths import paths_are_known
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.sites import NodeSpace

Logits = Callable[[Prompts], Float[Tensor, "row vocab"]]
"""Logits at the answer position of every prompt."""


def compiled_logits(plan: Plan) -> Logits:
    """All logits of a plan's runs."""
    tokens = torch.arange(len(plan.unembedding.weight))

    def run(prompts: Prompts) -> Tensor:
        rows = prefix_rows(prompts.tokens, prompts.position)
        return Run(plan, rows, tokens).value("logits")[rows.inverse]

    return run


def compiles(bridge: Any, space: NodeSpace, ablation: Ablation) -> bool:
    """Whether circuits of these nodes compile to their own weights alone.

    That is: of CircuitGPT in float32, of its own channels or of dictionaries of its MLPs, with fixed values for what is ablated.
    """
    return paths_are_known(space) and gates_compile(bridge, space, ablation)


def gates_compile(bridge: Any, space: NodeSpace, ablation: Ablation) -> bool:
    """Whether the whole model compiles with a gate on every node, whatever its sites are seen through but the residual stream."""
    if space.sees_residual or not ablation.fixed or getattr(bridge.original_model, "core", None) is None:
        return False
    return edge_module(bridge, "embedding").weight.dtype == torch.float32


def node_plan(
    bridge: Any,
    space: NodeSpace,
    mask: Bool[Tensor, " node"],
    ablation: Ablation,
    latents: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
) -> Plan:
    """The plan of the nodes of `mask`, with the weights that `bridge` has at the moment.

    `latents` replace the MLPs of their layers, as functions from mlp_in to what they write: those of the space's dictionaries.
    """
    if latents is None:
        latents = masked_mlps(bridge, latent_sites(space, mask, ablation.fixed_values()))
    with torch.no_grad():
        return with_levels(PartBuilder(bridge, space.split(mask), ablation.fixed_values(), latents).plan())
