"""The latents of a TopK dictionary as the k that are active in each row, so that what follows takes k rows of its weights, not all.

Of encoding, the product and the choice of the largest remain whole; its gradient, and decoding both ways, are sums of k rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.dictionaries.protocol import Dictionary
from sparse_lens.dictionaries.saelens import SAELensDictionary


@dataclass(frozen=True, eq=False)
class ActiveLatents:
    """For each row the k latents that are kept, and which they are; a value is 0 where fewer than k are above it."""

    values: Float[Tensor, "*rows k"]
    index: Int[Tensor, "*rows k"]


def active_latents(dictionary: Dictionary, x: Float[Tensor, "*rows d_in"]) -> ActiveLatents | None:
    """`dictionary.encode(x)` without its zeros, differentiable in `x`; None for dictionaries that do not keep k latents."""
    if not isinstance(dictionary, SAELensDictionary) or dictionary.architecture != "topk":
        return None
    values, index = _Chosen.apply(x.to(dictionary.W_dec.dtype), dictionary)
    return ActiveLatents(values, index)


def weighted_rows(matrix: Float[Tensor, "row d"], weights: ActiveLatents) -> Float[Tensor, "*rows d"]:
    """The sum of a matrix' rows at `index`, each times its value; differentiable in the values."""
    k = weights.index.shape[-1]
    found = F.embedding_bag(weights.index.reshape(-1, k), matrix, mode="sum", per_sample_weights=weights.values.reshape(-1, k))
    return found.view(*weights.index.shape[:-1], matrix.shape[1])


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dictionary: SAELensDictionary) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert dictionary.k is not None
        values, index = dictionary.before(x).topk(dictionary.k, dim=-1, sorted=False)
        ctx.rows, ctx.positive, ctx.index = dictionary.encoder_rows, values > 0, index
        ctx.mark_non_differentiable(index)
        return values.relu(), index

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return weighted_rows(ctx.rows, ActiveLatents(grad * ctx.positive, ctx.index)), None
