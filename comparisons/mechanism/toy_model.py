"""The toy model of superposition (arXiv:2209.10652, section 2), many of them side by side, and what is known of it in closed form.

Features `x_i` are independent: zero, or with probability `activity` (1 less the paper's sparsity) uniform on [0, 1]. The model
gives back `ReLU(W^T W x + b)`; its loss is the squared error of every feature, times the feature's importance, summed.
A neuron is a row of W. Without a budget any rotation of the neurons does as well; with one, nonzeros make them what they are.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def draw_features(uniform: Float[Tensor, "row feature"], activity: Float[Tensor, " cell"]) -> Float[Tensor, "cell row feature"]:
    """Features of every cell from the same uniform draws: a draw below `activity` is stretched over [0, 1], others are zero."""
    stretched = uniform / activity[:, None, None]
    return stretched.masked_fill(stretched >= 1, 0.0)


def reconstruct(
    W: Float[Tensor, "cell neuron feature"], b: Float[Tensor, "cell feature"], x: Float[Tensor, "cell row feature"]
) -> Float[Tensor, "cell row feature"]:
    """`ReLU(W^T W x + b)` of every cell."""
    return torch.baddbmm(b[:, None], x @ W.transpose(1, 2), W).relu()


def toy_losses(
    W: Float[Tensor, "cell neuron feature"],
    b: Float[Tensor, "cell feature"],
    x: Float[Tensor, "cell row feature"],
    importance: Float[Tensor, "cell feature"],
) -> Float[Tensor, " cell"]:
    """`sum_i I_i (x_i - x'_i)^2` of every cell, mean over rows."""
    return ((x - reconstruct(W, b, x)).square().mean(1) * importance).sum(1)


def feature_variance(activity: float) -> float:
    """Variance of one feature, `p / 3 - p^2 / 4`."""
    return activity / 3 - activity**2 / 4


def loss_of_nothing(importance: Float[np.ndarray, " feature"], activity: float) -> float:
    """Loss of a model without weights and with the best biases, the features' means."""
    return float(importance.sum()) * feature_variance(activity)


def loss_of_monosemantic(importance: Float[np.ndarray, " feature"], activity: float, kept: int) -> float:
    """Least loss of a model that gives a neuron each to `kept` features, and nothing to the others: the most important are kept."""
    return loss_of_nothing(np.sort(importance)[::-1][kept:], activity)


def loss_of_antipodal_pairs(importance: Float[np.ndarray, " feature"], activity: float) -> float:
    """Loss of a model in which every neuron has two features, with weights 1 and -1, and biases of zero.

    Only where both are active is there an error, the smaller of the two values in either: its square is 1/6 on average.
    """
    return float(importance.sum()) * activity**2 / 6
