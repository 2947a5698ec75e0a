"""Variants of a compiled circuit with single weights cut, many at a time: what lies before the first cut is computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.compiled.plan import AttentionPart, Layer, MLPPart, Plan, SiteChoice
from sparse_lens.circuits.compiled.prefixes import Level
from sparse_lens.circuits.compiled.run import Run

_MATRIX_NODES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "output": "attn_out", "mlp_in": "mlp_neuron", "mlp_out": "mlp_out"}
_LAYER_NODES = (
    "attn_in",
    "attn_q attn_k attn_v",
    "heads",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_neuron",
    "mlp_out",
    "resid_post",
)


@dataclass(frozen=True, eq=False)
class Cuts:
    """Weights of one matrix that are cut: in which variant, the entry's output and input, its weight, and the input's mean."""

    variant: Int[Tensor, " cut"]
    output: Int[Tensor, " cut"]
    input: Int[Tensor, " cut"]
    weight: Float[Tensor, " cut"]
    mean: Float[Tensor, " cut"]


def node_of(matrix: str) -> str:
    """The node of a run that a matrix computes."""
    kind, _, layer = matrix.partition(".")
    return {"embedding": "embedding", "unembedding": "logits"}.get(kind) or f"{_MATRIX_NODES[kind]}.{layer}"


def ranks(plan: Plan) -> dict[str, int]:
    """The nodes of a plan in the order of computation; none of equal rank depends on another."""
    stages = ["embedding"]
    stages += [" ".join(f"{node}.{layer}" for node in s.split()) for layer in range(len(plan.layers)) for s in _LAYER_NODES]
    return {node: rank for rank, stage in enumerate([*stages, "final_resid", "logits"]) for node in stage.split()}


def is_live(plan: Plan, matrix: str, input: int) -> bool:
    """Whether a run of the plan computes with this entry as such: not if its layer reaches no answer, or its input is constant."""
    kind, _, number = matrix.partition(".")
    if kind in ("embedding", "unembedding"):
        return True
    layer = plan.layers[int(number)]
    if kind in ("mlp_in", "mlp_out"):
        return layer.mlp is not None
    part = layer.attention
    if not isinstance(part, AttentionPart):
        return False
    if kind == "output":
        return int(part.feature[input]) >= 0
    return {"q": part.query.projection, "k": part.key.projection, "v": part.value}[kind] is not None


def most_variants(run: Run, rank: Mapping[str, int], first: int, most_numbers: int) -> int:
    """How many variants from a rank on keep the largest tensor within so many numbers."""
    sizes = [run.rows.n_rows(run.plan.level_of(node)) * _width(run.plan, node) for node in rank if rank[node] >= first]
    return max(1, most_numbers // max(1, *sizes))


def _width(plan: Plan, node: str) -> int:
    """Numbers in a row while a node is computed."""
    kind, _, number = node.partition(".")
    if kind == "logits":
        return 1
    layer = plan.layers[int(number)] if number else None
    if layer is not None and kind.startswith("mlp") and isinstance(layer.mlp, MLPPart):
        return len(layer.mlp.neuron.matrix.bias)
    if layer is not None and kind in ("attn_q", "attn_k", "attn_v", "heads") and isinstance(layer.attention, AttentionPart):
        return max(len(layer.attention.feature), len(layer.attention.output.matrix.weight[0]))
    return plan.embedding.shape[1]


class VariantRun(Run):
    """Runs of `base`'s plan on its rows, one for each of `n` variants, with the `cuts` of each matrix."""

    def __init__(self, base: Run, cuts: Mapping[str, Cuts], n: int, rank: Mapping[str, int]) -> None:
        super().__init__(base.plan, base.rows.tiled(n), base.answers)
        self._base, self._cuts, self._n, self._rank = base, cuts, n, rank
        self._starts = {node_of(matrix) for matrix in cuts}
        self._first = min(rank[node] for node in self._starts)

    def value(self, node: str, level: Level | None = None) -> Tensor:
        if self._rank[node] > self._first or node in self._starts:
            return super().value(node, level)
        key = (node, level or self.plan.level_of(node))
        if key not in self._found:
            self._found[key] = self._base.value(node, level).repeat(self._n, 1)
        return self._found[key]

    def cut(self, matrix: str, outputs: Tensor, site: SiteChoice, inputs: Tensor) -> Tensor:
        if matrix not in self._cuts:
            return outputs
        cuts = self._cuts[matrix]
        column = cuts.output if outputs.shape[1] != len(site.kept) else torch.searchsorted(site.kept, cuts.output)
        by_variant = outputs.view(self._n, -1, outputs.shape[1]).transpose(1, 2)
        carried = self._inputs(matrix, cuts, inputs) - cuts.mean[:, None]
        by_variant.index_put_((cuts.variant, column), -cuts.weight[:, None] * carried, accumulate=True)
        return outputs

    def _inputs(self, matrix: str, cuts: Cuts, inputs: Tensor) -> Float[Tensor, "cut row"]:
        """What each cut weight's input holds in its variant."""
        kind, _, number = matrix.partition(".")
        of_variant = inputs.view(self._n, -1, inputs.shape[1])
        if kind == "output":
            part = self._attention(int(number))
            return of_variant[cuts.variant, :, part.feature[cuts.input]] * part.factor[cuts.input][:, None]
        return of_variant[cuts.variant, :, torch.searchsorted(self._source(kind, self.plan.layers[int(number)]), cuts.input)]

    def _source(self, kind: str, layer: Layer) -> Int[Tensor, " kept"]:
        """The channels that a matrix reads."""
        if kind in ("q", "k", "v"):
            assert isinstance(layer.attention, AttentionPart)
            return layer.attention.read.site.kept
        assert isinstance(layer.mlp, MLPPart)  # circuits of latents have no variants
        return layer.mlp.read.site.kept if kind == "mlp_in" else layer.mlp.neuron.site.kept

    def _embedding(self) -> Tensor:
        """A token's cut channel holds its mean."""
        x, level = super()._embedding(), self.plan.level
        cuts = self._cuts.get("embedding")
        if cuts is None:
            return x
        by_variant = x.view(self._n, -1, x.shape[1])
        same = self._base.rows.token[level] == cuts.output[:, None]
        moved = same * (cuts.mean - cuts.weight)[:, None]
        by_variant.transpose(1, 2).index_put_((cuts.variant, cuts.input), moved, accumulate=True)
        return x

    def _logits(self) -> Tensor:
        logits, cuts = super()._logits(), self._cuts.get("unembedding")
        if cuts is None:
            return logits
        final = self.value("final_resid")
        inputs = final.view(self._n, -1, final.shape[1])
        carried = cuts.weight[:, None] * (inputs[cuts.variant, :, cuts.input] - cuts.mean[:, None])
        same = self.answers == cuts.output[:, None]
        by_variant = logits.view(self._n, -1, len(self.answers))
        by_variant.index_put_((cuts.variant,), -carried[:, :, None] * same[:, None], accumulate=True)
        return logits
