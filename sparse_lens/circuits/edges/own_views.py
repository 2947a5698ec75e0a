"""What each latent of a dictionary on the neurons reads if the hidden layer is computed anew for it alone, and its gradient.

A view is a whole hidden layer for one latent on one row, so that all views together are what an edge search of latents costs most.
Latents compete or are rectified: few views decide anything, and only to those does a gradient come back. So forward keeps no view,
and backward computes anew those whose gradient is not 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sparse_lens.circuits.edges.encoders import EncoderRows

_MOST_NUMBERS = 1 << 18
"""Numbers in the hidden layers of the views that are computed at once: what a cache holds is fifteen times as fast as 2^23."""


@dataclass(frozen=True, eq=False)
class OwnViews:
    """Views of `latents`: `weight` is that of the hidden layer, from the channels that are cut; `neurons` what follows it."""

    weight: Float[Tensor, "d_mlp channel"]
    neurons: Callable[[Tensor], Tensor]
    rows: EncoderRows
    latents: Int[Tensor, " own"]

    def __call__(
        self, hidden: Float[Tensor, "row d_mlp"], moved: Float[Tensor, "row channel"], cut: Float[Tensor, "own channel"]
    ) -> Float[Tensor, "row own"]:
        """What every latent's activation is computed from, on each row.

        `hidden` is the hidden layer with nothing cut, before its activation, `moved` how far each channel is from its mean, `cut`
        how far each latent's edge from it is cut. Differentiable in all three, once.
        """
        found = _Views.apply(hidden, moved, cut, self)
        assert isinstance(found, Tensor)
        return found

    def plain(self, hidden: Tensor, moved: Tensor, cut: Tensor) -> Float[Tensor, "row own"]:
        """The same in one piece, by torch's own gradients: the slow twin."""
        views = hidden[:, None] - F.linear(moved[:, None] * cut, self.weight)
        return self.rows.of_views(self.neurons(views), self.latents)

    def everywhere(self, hidden: Tensor, moved: Tensor, cut: Tensor) -> Float[Tensor, "row own"]:
        """All views, a few latents at a time."""
        outgoing = self.rows.weight[:, self.latents]
        size = max(1, _MOST_NUMBERS // hidden.numel())
        found = []
        for share, rows in zip(cut.split(size), outgoing.T.split(size), strict=True):
            views = (-share[:, None] * moved) @ self.weight.T  # [latent row d_mlp]: the last product then is one of matrices
            found.append((self.neurons(views.add_(hidden)) @ rows[..., None])[..., 0])
        return torch.cat(found).T - self.rows.shift @ outgoing

    def at(self, hidden: Tensor, moved: Tensor, cut: Tensor, latents: Tensor) -> Float[Tensor, " view"]:
        """Single views, each with a row and a latent of its own."""
        return self.rows.of_views(self.neurons(hidden - F.linear(moved * cut, self.weight)), latents)


class _Views(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, moved: Tensor, cut: Tensor, views: OwnViews) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(hidden, moved, cut)
        ctx.views = views
        return views.everywhere(hidden, moved, cut)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, moved, cut = ctx.saved_tensors
        to_hidden, to_moved, to_cut = (torch.zeros_like(tensor) for tensor in (hidden, moved, cut))
        size = max(1, _MOST_NUMBERS // hidden.shape[1])
        for row, latent in zip(*(part.split(size) for part in grad.nonzero(as_tuple=True)), strict=True):
            with torch.enable_grad():
                parts = [tensor[index].requires_grad_() for tensor, index in ((hidden, row), (moved, row), (cut, latent))]
                values = ctx.views.at(*parts, ctx.views.latents[latent])
            found = torch.autograd.grad(values, parts, grad[row, latent])
            for total, index, part in zip((to_hidden, to_moved, to_cut), (row, row, latent), found, strict=True):
                total.index_add_(0, index, part)
        return to_hidden, to_moved, to_cut, None
