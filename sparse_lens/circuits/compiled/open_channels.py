"""A matrix of a masked run, multiplied by open channels alone: in a search most gates close early, and products take most time.

A closed channel is the same constant in every row, so it goes into the bias; and no gradient comes back through a closed output, so
the product of the backward pass leaves it out. What the closed gates themselves get for a slope is complete: it is the gradient of
*all* inputs, and that of a closed output is formed behind the matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.compiled.plan import Affine

_MOST_OPEN = 0.75
"""Share of open channels above which they are not gathered: little would be saved."""


def open_channels(mask: Float[Tensor, " channel"]) -> Int[Tensor, " open"] | None:
    """Where a mask is not 0; None if that is nearly everywhere."""
    found = mask.detach().nonzero().flatten()
    return None if len(found) > _MOST_OPEN * len(mask) else found


def product_of_open(
    matrix: Affine, x: Float[Tensor, "row in"], read: Int[Tensor, " open_in"] | None, written: Int[Tensor, " open_out"] | None
) -> Float[Tensor, "row out"]:
    """`matrix(x)`, where all rows of `x` are alike outside the channels `read`, and only outputs of `written` have a gradient."""
    found = _OpenProduct.apply(x, matrix.weight, matrix.bias, read, written)
    assert isinstance(found, Tensor)
    return found


class _OpenProduct(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, read: Tensor | None, written: Tensor | None
    ) -> Tensor:
        ctx.weight, ctx.written = weight, written
        if read is None:
            return F.linear(x, weight, bias)
        constant = torch.addmv(bias, weight, x[0].index_fill(0, read, 0.0))
        return F.linear(x.index_select(1, read), weight.index_select(1, read), constant)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.written is None:
            return grad @ ctx.weight, None, None, None, None
        return grad.index_select(1, ctx.written) @ ctx.weight.index_select(0, ctx.written), None, None, None, None
