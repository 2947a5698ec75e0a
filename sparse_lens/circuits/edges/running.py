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
from sparse_lens.circuits.edges.cutting import Means, cut_edges, edge_module
from sparse_lens.circuits.edges.space import EdgeSpace
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.sites import NodeSpace


@dataclass(frozen=True, eq=False)
class GatedCircuit:
    """A circuit of nodes compiled, with a gate on each of its edges; `tokens` are those whose logits a run gives: all."""

    plan: Plan
    edges: EdgeSpace
    weights: dict[str, Float[Tensor, " edge"]]
    means: dict[str, Float[Tensor, " edge"]]
    tokens: Int[Tensor, " vocab"]

    def logits(self, keep: Float[Tensor, " edge"], prompts: Prompts) -> Float[Tensor, "row vocab"]:
        """Logits with each edge kept by its entry of `keep` (1) or cut (0), differentiable in it."""
        closed = self.edges.split(1 - keep)
        gates = {
            name: Gates(index[:, 0], index[:, 1], self.weights[name], self.means[name], closed[name])
            for name, index in self.edges.index.items()
        }
        rows = prefix_rows(prompts.tokens, prompts.position)
        return GatedRun(self.plan, rows, self.tokens, gates).value("logits")[rows.inverse]


def gated_circuit(
    bridge: Any, space: NodeSpace, mask: Bool[Tensor, " node"], ablation: Ablation, edges: EdgeSpace, means: Means
) -> GatedCircuit | None:
    """The nodes of `mask` compiled with gates on `edges`; None where the whole model has to run.

    That is: in another architecture or precision, with dictionaries, under an ablation that depends on the prompts, or where an
    edge comes from a node that is constant in the circuit.
    """
    if not compiles(bridge, space, ablation):
        return None
    plan = node_plan(bridge, space, mask, ablation)
    if not can_gate(plan, edges.index):
        return None
    weights, inputs = {}, {}
    for name, index in edges.index.items():
        output, source = index.T
        weights[name] = edge_module(bridge, name).weight.detach()[output, source]
        inputs[name] = means[name].float()[source]
    return GatedCircuit(plan, edges, weights, inputs, torch.arange(len(plan.unembedding.weight)))


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
    with cut_edges(bridge, edges, keep.float(), means):
        return compiled_logits(node_plan(bridge, space, mask, ablation))
