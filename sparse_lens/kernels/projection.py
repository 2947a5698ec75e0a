"""Projection of a weight matrix on its k entries of largest magnitude, with a minimum alive per neuron.

The released training script (openai/circuit_sparsity, `train.py`) keeps `min_alive` entries per neuron first and counts
them inside k: per row where a row feeds one neuron, per column where a column reads one.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.errors import ConfigError
from sparse_lens.kernels.selection import mark_largest, protect_largest_in_columns, protect_largest_in_rows


def projection_mask(
    weight: Float[Tensor, "rows columns"], k: int, *, min_alive: int = 0, neuron_axis: int = 0, fast: bool = False
) -> Bool[Tensor, "rows columns"]:
    """Mask of the k entries to keep: the `min_alive` largest of every neuron, then the largest of the rest.

    `neuron_axis` is the axis that indexes neurons: 0 when each row is one neuron, 1 when each column is. Raises
    `ConfigError` if the minimum alone exceeds k.
    """
    min_alive = check_budget(tuple(weight.shape), k, min_alive, neuron_axis)
    if k >= weight.numel():
        return torch.ones_like(weight, dtype=torch.bool)
    if fast and weight.device.type == "cpu" and weight.dtype == torch.float32:
        return _fast_mask(weight.detach(), k, min_alive, neuron_axis)
    return _plain_mask(weight.detach(), k, min_alive, neuron_axis)


def _plain_mask(weight: Tensor, k: int, min_alive: int, neuron_axis: int) -> Tensor:
    """By `torch.topk`, on any device."""
    magnitude = weight.abs()
    if min_alive:
        rows = magnitude if neuron_axis == 0 else magnitude.T
        best = rows.topk(min_alive, dim=-1).indices
        first = torch.zeros_like(rows, dtype=torch.bool).scatter_(-1, best, True)
        first = first if neuron_axis == 0 else first.T
        magnitude = magnitude.masked_fill(first, float("inf"))
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[magnitude.reshape(-1).topk(k).indices] = True
    return mask.view(weight.shape)


def _fast_mask(weight: Tensor, k: int, min_alive: int, neuron_axis: int) -> Tensor:
    """On the bit patterns, in numba; differs from the plain form only where equal magnitudes straddle the cut."""
    magnitude = weight.abs().contiguous().numpy().view(np.uint32)
    if min_alive:
        (protect_largest_in_rows if neuron_axis == 0 else protect_largest_in_columns)(magnitude, min_alive)
    mask = torch.empty(weight.shape, dtype=torch.bool)
    mark_largest(magnitude.reshape(-1), k, mask.view(-1).numpy())
    return mask


def check_budget(shape: tuple[int, ...], k: int, min_alive: int, neuron_axis: int) -> int:
    """The minimum alive, at most a neuron's fan; raises `ConfigError` if it needs more than k nonzeros in a matrix of `shape`."""
    neurons = shape[neuron_axis]
    min_alive = min(min_alive, shape[1 - neuron_axis])
    if min_alive * neurons > k:
        raise ConfigError(
            f"{min_alive} alive weights for each of {neurons} neurons need {min_alive * neurons} nonzeros, "
            f"but the density leaves {k} in this {tuple(shape)} matrix; lower min_alive or raise the density"
        )
    return min_alive
