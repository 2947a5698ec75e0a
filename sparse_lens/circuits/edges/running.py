"""How an edge search runs its circuits: compiled where that is possible, else in the whole model under hooks; equal to 1e-5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.compiled.gates import GatedRun, Gates, can_gate
from sparse_lens.circuits.compiled.nodes import Logits, compiled_logits, compiles, node_plan
from sparse_lens.circuits.compiled.plan import Plan
from sparse_lens.circuits.compiled.prefixes import prefix_rows
from sparse_lens.circuits.edges.cutting import Means, cut_edges, edge_module, latent_cuts
from sparse_lens.circuits.edges.latents import LatentSite, latent_sites
from sparse_lens.circuits.edges.space import EdgeSpace
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.sites import NodeSpace


@dataclass(frozen=True, eq=False)
class GatedCircuit:
    """A circuit of nodes compiled, with a gate on each of its edges; `tokens` are those whose logits a run gives: all.

    `inputs` are the means of every matrix' inputs, `weights` and `means` those of the edges that are no latents'.
    """

    bridge: Any
    plan: Plan
    edges: EdgeSpace
    latents: tuple[LatentSite, ...]
    inputs: Means
    weights: dict[str, Float[Tensor, " edge"]]
    means: dict[str, Float[Tensor, " edge"]]
    tokens: Int[Tensor, " vocab"]

    def logits(self, keep: Float[Tensor, " edge"], prompts: Prompts) -> Float[Tensor, "row vocab"]:
        """Logits with each edge kept by its entry of `keep` (1) or cut (0), differentiable in it."""
        index, closed = self.edges.index, self.edges.split(1 - keep)
        gates = {
            name: Gates(index[name][:, 0], index[name][:, 1], weight, self.means[name], closed[name])
            for name, weight in self.weights.items()
        }
        cuts = latent_cuts(self.bridge, self.latents, self.edges, keep, self.inputs)
        rows = prefix_rows(prompts.tokens, prompts.position)
        return GatedRun(self.plan, rows, self.tokens, gates, cuts).value("logits")[rows.inverse]


def gated_circuit(
    bridge: Any, space: NodeSpace, mask: Bool[Tensor, " node"], ablation: Ablation, edges: EdgeSpace, means: Means
) -> GatedCircuit | None:
    """The nodes of `mask` compiled with gates on `edges`; None where the whole model has to run.

    That is: in another architecture or precision, with dictionaries elsewhere than in MLPs, under an ablation that depends on the
    prompts, or where an edge comes from a node that is constant in the circuit.
    """
    if not compiles(bridge, space, ablation):
        return None
    plan = node_plan(bridge, space, mask, ablation)
    if not can_gate(plan, edges.index):
        return None
    latents = latent_sites(space, mask, ablation.fixed_values())
    of_latents = {f"{kind}.{site.site.layer}" for site in latents for kind in ("mlp_in", "mlp_out")}
    weights, inputs = {}, {}
    for name, index in edges.index.items():
        if name not in of_latents:
            output, source = index.T
            weights[name] = edge_module(bridge, name).weight.detach()[output, source]
            inputs[name] = means[name].float()[source]
    return GatedCircuit(bridge, plan, edges, latents, means, weights, inputs, torch.arange(len(plan.unembedding.weight)))


def cut_circuit(
    bridge: Any,
    space: NodeSpace,
    mask: Bool[Tensor, " node"],
    ablation: Ablation,
    edges: EdgeSpace,
    keep: Bool[Tensor, " edge"],
    means: Means,
) -> Logits | None:
    """The nodes of `mask` compiled without the edges that are not kept; None where the whole model has to run."""
    if not compiles(bridge, space, ablation):
        return None
    latents = latent_sites(space, mask, ablation.fixed_values())
    cuts = latent_cuts(bridge, latents, edges, keep.float(), means)
    with cut_edges(bridge, edges, keep.float(), means, latents):
        return compiled_logits(node_plan(bridge, space, mask, ablation, cuts))
