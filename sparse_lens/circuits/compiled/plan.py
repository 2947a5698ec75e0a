"""The parts of a compiled circuit: gathered matrices, constants, and at which rows each layer is computed.

A *part* of a layer is there only if something in it varies with the prompt and reaches the answer; all else is a constant that was
added up when the circuit was compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.compiled.prefixes import Level


@dataclass(frozen=True, eq=False)
class Norm:
    """An RMSNorm, or, with `centred`, a LayerNorm."""

    weight: Float[Tensor, " d"]
    bias: Float[Tensor, " d"] | None
    eps: float
    centred: bool

    def __call__(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        if self.centred:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, eq=False)
class SiteChoice:
    """A site: the channels that vary (`kept`), the constants at all others (`rest`, 0 at the kept), the k of AbsTopK before it."""

    name: str
    kept: Int[Tensor, " kept"]
    rest: Float[Tensor, " d"]
    k: int | None


@dataclass(frozen=True, eq=False)
class Affine:
    """A matrix from the varying channels of a site, with all constants in its bias."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"]

    def __call__(self, x: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class Read:
    """A sublayer's input: the norm of the residual stream, and behind it positions (normed) if they are concatenated."""

    site: SiteChoice
    norm: Norm
    positional: Float[Tensor, "pos d_pos"] | None


@dataclass(frozen=True, eq=False)
class Projection:
    """A matrix and the site that it writes: all outputs where AbsTopK compares them, else the kept ones alone."""

    matrix: Affine
    site: SiteChoice


@dataclass(frozen=True, eq=False)
class Head:
    """A head in which something varies: its columns in the queries and keys, and in the values; `score` is what is constant.

    `summed`: the sum of its pattern is a feature, too.
    """

    channels: slice
    values: slice
    score: float
    sink: float | None
    summed: bool


@dataclass(frozen=True, eq=False)
class Operand:
    """Queries or keys of all varying heads, side by side: `rest` where they are constant, the kept channels at `places`."""

    projection: Projection | None
    rest: Float[Tensor, " channel"]
    places: Int[Tensor, " kept"]


@dataclass(frozen=True, eq=False)
class AttentionPart:
    """Attention: the heads' features are their varying outputs and, with a sink, the share of the pattern that the tokens get.

    `output` reads the features; `table` is what heads without varying parts and the biases add, by position. `feature` and `factor`
    say which feature, times what, each channel of the heads' outputs is (-1: none).
    """

    read: Read
    query: Operand
    key: Operand
    value: Projection | None
    heads: tuple[Head, ...]
    scale: float
    output: Projection
    table: Float[Tensor, "pos out"]
    feature: Int[Tensor, " d_attn"]
    factor: Float[Tensor, " d_attn"]

    @property
    def reads_all_positions(self) -> bool:
        """Whether anything varies at the positions that are attended to."""
        return self.key.projection is not None or self.value is not None


@dataclass(frozen=True, eq=False)
class PositionalPart:
    """Attention in which only the number of tokens so far matters: its write by position."""

    table: Float[Tensor, "pos kept"]


@dataclass(frozen=True, eq=False)
class Routing:
    """The router of a mixture of experts; `expert` is that of every neuron that is computed."""

    matrix: Affine
    n_open: int
    expert: Int[Tensor, " neuron"]


@dataclass(frozen=True, eq=False)
class MLPPart:
    read: Read
    neuron: Projection
    output: Projection
    gelu: bool
    routing: Routing | None


@dataclass(frozen=True, eq=False)
class LatentPart:
    """An MLP that is seen through a dictionary: `write` gives all that it writes (before `site` keeps some) from all of mlp_in."""

    read: Read
    site: SiteChoice
    write: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Write:
    """What a sublayer adds to the residual stream (`site`), and what is done to the sum."""

    site: SiteChoice
    relu: bool
    k: int | None


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer; its attention reads the residual stream at the rows of `level_in` and it leaves it at those of `level_out`."""

    attention: AttentionPart | PositionalPart | None
    attention_write: Write
    mlp: MLPPart | LatentPart | None
    mlp_write: Write
    level_in: Level = "token"
    level_out: Level = "token"

    @property
    def query_level(self) -> Level:
        """The rows at which queries are computed."""
        return "prompt" if self.level_out == "prompt" else self.level_in

    def matrices(self) -> list[Affine]:
        """The matrices that a run multiplies by."""
        found: list[Projection | None] = []
        if isinstance(self.attention, AttentionPart):
            part = self.attention
            found += [part.query.projection, part.key.projection, part.value, part.output]
        if isinstance(self.mlp, MLPPart):
            found += [self.mlp.neuron, self.mlp.output]
        return [projection.matrix for projection in found if projection is not None]


@dataclass(frozen=True, eq=False)
class Plan:
    """A whole circuit: embedding tables `[vocab d_model]` and `[pos d_model]`, layers, and the way to the answers' logits."""

    embedding: Float[Tensor, "vocab channel"]
    positions: Float[Tensor, "pos channel"] | None
    layers: tuple[Layer, ...]
    final: SiteChoice
    norm: Norm
    unembedding: Affine
    bigram: Float[Tensor, "vocab vocab"] | None
    n_positions: int

    @property
    def level(self) -> Level:
        """The rows of the embedding."""
        return self.layers[0].level_in

    def level_of(self, node: str) -> Level:
        """The rows at which a node of `compiled_run.NODES` is computed."""
        kind, _, number = node.partition(".")
        if kind == "embedding":
            return self.level
        if kind in ("final_resid", "logits"):
            return "prompt"
        layer = self.layers[int(number)]
        if kind == "attn_q":
            return layer.query_level
        return layer.level_in if kind in ("attn_in", "attn_k", "attn_v") else layer.level_out


def with_levels(plan: Plan) -> Plan:
    """The plan without the parts that reach no answer, computed at no more rows than the parts after them need."""
    width = len(plan.final.rest)
    needed, everywhere = torch.zeros(width, dtype=torch.bool), False
    needed[plan.final.kept] = True
    layers: list[Layer] = []
    for layer in reversed(plan.layers):
        needed = needed | (layer.mlp_write.k is not None and bool(needed.any()))
        mlp = layer.mlp if bool(needed[layer.mlp_write.site.kept].any()) else None
        needed = needed | (mlp is not None or (layer.attention_write.k is not None and bool(needed.any())))
        attention = layer.attention if bool(needed[layer.attention_write.site.kept].any()) else None
        queries_everywhere = everywhere
        if isinstance(attention, AttentionPart):
            needed, everywhere = torch.ones_like(needed), everywhere or attention.reads_all_positions
        level_in: Level = "token" if everywhere else "prompt"
        level_out: Level = "token" if queries_everywhere else "prompt"
        layers.append(replace(layer, attention=attention, mlp=mlp, level_in=level_in, level_out=level_out))
    return replace(plan, layers=_after_mixing(layers[::-1]))


def _after_mixing(layers: list[Layer]) -> tuple[Layer, ...]:
    """The same, with the rows at which it is no longer the token alone that matters."""
    found, mixed = [], False
    for layer in layers:
        level_in: Level = "prefix" if mixed and layer.level_in == "token" else layer.level_in
        mixed = mixed or isinstance(layer.attention, AttentionPart)
        level_out: Level = "prefix" if mixed and layer.level_out == "token" else layer.level_out
        found.append(replace(layer, level_in=level_in, level_out=level_out))
    return tuple(found)
