"""What the encoders of SAELens' architectures do after the product with `W_enc`: biases, thresholds, the choice of the k largest.

Each is a function of that product (`before`, the bias not added), the dictionary's weights by SAELens' names, and k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.kernels import abs_topk

Weights = Mapping[str, Tensor]
LatentActivation = Callable[[Float[Tensor, "*rows latent"], Weights, int | None], Float[Tensor, "*rows latent"]]


def _standard(before: Tensor, weights: Weights, k: int | None) -> Tensor:  # noqa: ARG001 - one signature for all
    return (before + weights["b_enc"]).relu()


def _topk(before: Tensor, weights: Weights, k: int | None) -> Tensor:
    assert k is not None
    values, indices = (before + weights["b_enc"]).topk(k, dim=-1, sorted=False)
    return torch.zeros_like(before).scatter(-1, indices, values.relu())


def _abstopk(before: Tensor, weights: Weights, k: int | None) -> Tensor:
    assert k is not None
    return abs_topk(before + weights["b_enc"], k)


def _jumprelu(before: Tensor, weights: Weights, k: int | None) -> Tensor:  # noqa: ARG001
    before = before + weights["b_enc"]
    return before.relu() * (before > weights["threshold"]).to(before.dtype)


def _gated(before: Tensor, weights: Weights, k: int | None) -> Tensor:  # noqa: ARG001
    magnitude = before * weights["r_mag"].exp() + weights["b_mag"]
    return (before + weights["b_gate"] > 0).to(before.dtype) * magnitude.relu()


LATENT_ACTIVATIONS: dict[str, LatentActivation] = {
    "standard": _standard,
    "topk": _topk,
    "abstopk": _abstopk,
    "jumprelu": _jumprelu,
    "gated": _gated,
}
"""By the architecture that SAELens saves; BatchTopK and Matryoshka SAEs are saved as jumprelu."""

CHOOSING = ("topk", "abstopk")
"""Architectures that keep k latents of each token."""
