"""A compiled run whose weights have gates: differentiable in them, what an edge search learns on.

A gate of 1 leaves a weight as it is, at 0 the weight carries the mean of its input, as in `edges.cutting`, and between them both in
proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.compiled.cuts import is_live
from sparse_lens.circuits.compiled.plan import AttentionPart, LatentPart, MLPPart, Plan, SiteChoice
from sparse_lens.circuits.compiled.prefixes import PrefixRows
from sparse_lens.circuits.compiled.run import Run


@dataclass(frozen=True, eq=False)
class Gates:
    """The gated weights of one matrix: output, input, weight, the input's mean, and how far each gate is `closed` (0 to 1)."""

    output: Int[Tensor, " edge"]
    input: Int[Tensor, " edge"]
    weight: Float[Tensor, " edge"]
    mean: Float[Tensor, " edge"]
    closed: Float[Tensor, " edge"]


def can_gate(plan: Plan, index: Mapping[str, Int[Tensor, "edge 2"]]) -> bool:
    """Whether every edge is one that a run computes with: none has a constant input, or reaches no answer."""
    return all(is_live(plan, name, source) for name, edges in index.items() for source in set(edges[:, 1].tolist()))


class GatedRun(Run):
    """A run of a plan under the gates of its matrices; `latents` are the MLPs seen through a dictionary, under theirs, by layer."""

    def __init__(
        self,
        plan: Plan,
        rows: PrefixRows,
        answers: Int[Tensor, " answer"],
        gates: Mapping[str, Gates],
        latents: Mapping[int, Callable[[Tensor], Tensor]],
    ) -> None:
        super().__init__(plan, rows, answers)
        self._gates = {name: found for name, found in gates.items() if len(found.output)}
        self._latents = latents

    def latents(self, part: LatentPart, layer: int, u: Tensor) -> Float[Tensor, "row d_model"]:  # noqa: ARG002
        return self._latents[layer](u)

    def cut(self, matrix: str, outputs: Tensor, site: SiteChoice, inputs: Tensor) -> Tensor:
        gates = self._gates.get(matrix)
        if gates is None:
            return outputs
        column = gates.output if outputs.shape[1] != len(site.kept) else torch.searchsorted(site.kept, gates.output)
        place, factor = self._place(matrix, gates.input)
        lost = gates.closed * gates.weight
        missing = lost.new_zeros(outputs.shape[1], inputs.shape[1]).index_put((column, place), lost * factor, accumulate=True)
        carried = lost.new_zeros(outputs.shape[1]).index_add(0, column, lost * gates.mean)
        return outputs - F.linear(inputs, missing, -carried)

    def _place(self, matrix: str, channel: Int[Tensor, " edge"]) -> tuple[Int[Tensor, " edge"], Float[Tensor, " edge"]]:
        """Where an input stands among the values that a matrix is multiplied by, and by what it is that value."""
        kind, _, number = matrix.partition(".")
        layer = self.plan.layers[int(number)]
        if kind in ("mlp_in", "mlp_out"):
            assert isinstance(layer.mlp, MLPPart)
            kept = layer.mlp.read.site.kept if kind == "mlp_in" else layer.mlp.neuron.site.kept
            return torch.searchsorted(kept, channel), torch.ones(len(channel))
        assert isinstance(layer.attention, AttentionPart)
        if kind == "output":
            return layer.attention.feature[channel], layer.attention.factor[channel]
        return torch.searchsorted(layer.attention.read.site.kept, channel), torch.ones(len(channel))

    def _embedding(self) -> Tensor:
        """A token's gated channels go to their mean."""
        x, gates = super()._embedding(), self._gates.get("embedding")
        if gates is None:
            return x
        tokens, place = gates.output.unique(return_inverse=True)
        moved = gates.closed * (gates.mean - gates.weight)
        change = moved.new_zeros(len(tokens) + 1, x.shape[1]).index_put((place, gates.input), moved)
        read = self.rows.token[self.plan.level]
        found = torch.searchsorted(tokens, read).clamp(max=len(tokens) - 1)
        return x + change[torch.where(tokens[found] == read, found, len(tokens))]

    def _logits(self) -> Tensor:
        logits, gates = super()._logits(), self._gates.get("unembedding")
        if gates is None:
            return logits
        inputs = self.value("final_resid")
        tokens, place = gates.output.unique(return_inverse=True)
        lost = gates.closed * gates.weight
        missing = lost.new_zeros(len(tokens), inputs.shape[1]).index_put((place, gates.input), lost)
        carried = lost.new_zeros(len(tokens)).index_add(0, place, lost * gates.mean)
        column = {int(token): number for number, token in enumerate(self.answers.tolist())}
        wanted = [number for number, token in enumerate(tokens.tolist()) if token in column]
        goal = torch.tensor([column[int(tokens[number])] for number in wanted], dtype=torch.long)
        return logits.index_add(1, goal, -F.linear(inputs, missing, -carried)[:, wanted])
