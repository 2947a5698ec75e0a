"""Directions of a rotated basis kept or ablated, multiplying by the open ones alone wherever the closed ones do not count."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def rotated_blend(
    rotation: Float[Tensor, "d direction"],
    mask: Float[Tensor, " direction"],
    reference: Float[Tensor, " direction"],
    x: Float[Tensor, "*rows d"],
) -> Float[Tensor, "*rows d"]:
    """`lerp(reference, x Q, mask) Q^T` for an orthogonal `Q`, differentiable in `x` and in the mask.

    The coordinates of all directions are needed for the slopes of closed gates; what goes back into the channels, and what comes
    back from them to `x`, only of the open ones: half of the work where few are open, next to nothing where the mask has no slopes.
    """
    found = _RotatedBlend.apply(x.flatten(0, -2), mask, rotation, reference)
    assert isinstance(found, Tensor)
    return found.view(x.shape)


class _RotatedBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, rotation: Tensor, reference: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        opened = mask.nonzero().flatten()
        directions, gates = rotation[:, opened], mask[opened]
        if ctx.needs_input_grad[1]:
            coordinates = x @ rotation
            ctx.above = coordinates - reference
            kept = coordinates[:, opened]
        else:
            kept = x @ directions
        ctx.rotation, ctx.opened, ctx.directions, ctx.gates = rotation, opened, directions, gates
        return torch.addmm(rotation @ ((1 - mask) * reference), kept * gates, directions.T)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.needs_input_grad[1]:
            turned = grad @ ctx.rotation
            to_mask = (turned * ctx.above).sum(0)
            turned = turned[:, ctx.opened]
        else:
            turned, to_mask = grad @ ctx.directions, None
        to_x = (turned * ctx.gates) @ ctx.directions.T if ctx.needs_input_grad[0] else None
        return to_x, to_mask, None, None
