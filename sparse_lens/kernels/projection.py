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
from sparse_lens.kernels.selection import mark_largest


def projection_mask(
    weight: Float[Tensor, "rows columns"], k: int, *, min_alive: int = 0, neuron_axis: int = 0, fast: bool = False
) -> Bool[Tensor, "rows columns"]:
    """Mask of the k entries to keep: the `min_alive` largest of every neuron, then the largest of the rest.

    `neuron_axis` is the axis that indexes neurons: 0 when each row is one neuron, 1 when each column is. Raises
    `ConfigError` if the minimum alone exceeds k.
    """
    min_alive = check_budget(tuple(weight.shape), k, min_alive, neuron_axis)
    magnitude = weight.detach().abs()
    if min_alive:
        rows = magnitude if neuron_axis == 0 else magnitude.T
        best = rows.topk(min_alive, dim=-1).indices
        first = torch.zeros_like(rows, dtype=torch.bool).scatter_(-1, best, True)
        first = first if neuron_axis == 0 else first.T
        magnitude = magnitude.masked_fill(first, float("inf"))
    return _largest(magnitude, k, fast=fast)


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


def _largest(magnitude: Tensor, k: int, *, fast: bool) -> Tensor:
    """Mask of the k largest entries of a non-negative matrix."""
    if k >= magnitude.numel():
        return torch.ones_like(magnitude, dtype=torch.bool)
    if fast and magnitude.device.type == "cpu" and magnitude.dtype == torch.float32:
        flat = magnitude.contiguous().view(-1)
        mask = torch.empty_like(flat, dtype=torch.bool)
        mark_largest(flat.numpy().view(np.uint32), k, mask.numpy())
        return mask.view(magnitude.shape)
    mask = torch.zeros(magnitude.numel(), dtype=torch.bool, device=magnitude.device)
    if k:
        mask[magnitude.reshape(-1).topk(k).indices] = True
    return mask.view(magnitude.shape)
