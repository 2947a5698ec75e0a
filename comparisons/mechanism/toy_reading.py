"""What toy models have learned: which features they represent, which share a neuron, and how much of a dimension each has.

A feature counts as represented from a gain `W_i . W_i` of a half on: at least half of it comes back. Numbers that a model does not
have (features per neuron of one that uses no neuron) are NaN.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.comparisons.rows.sparsity_measures import effective_number, participation_ratio

REPRESENTED = 0.5

SHARED = 1.5
"""Features per neuron from which on a neuron is one that features share: half-way from one to two."""


def read_cells(
    W: Float[Tensor, "cell neuron feature"], importance: Float[Tensor, "cell feature"]
) -> dict[str, Float[Tensor, " cell"]]:
    """The numbers of every cell.

    `nonzeros`; `represented` features; `dropped_importance`, the share of all importance that is not represented;
    `importance_order`, the chance that a represented feature is more important than one that is not (1/2 where importance does not
    matter); `features_per_neuron` and `neurons_per_feature`, participation ratios of the squared weights, means over neurons with a
    weight and over represented features; `shared_neurons`, the share of those neurons that have 1.5 features or more;
    `dimensionality` (arXiv:2209.10652, section 3), mean over represented features; `psi`, the effective number of features by
    their gains over the number of neurons (`comparisons.rows.superposition`, with the true features as the dictionary).
    """
    W, importance = W.double(), importance.double()
    gain = gains(W)
    kept = gain >= REPRESENTED
    per_neuron, used = participation_ratio(W.square()), W.any(2)
    return {
        "nonzeros": (W != 0).sum((1, 2)).double(),
        "represented": kept.sum(1).double(),
        "dropped_importance": (importance * ~kept).sum(1) / importance.sum(1),
        "importance_order": _order(importance, kept),
        "features_per_neuron": _mean(per_neuron, used),
        "neurons_per_feature": _mean(participation_ratio(W.square().transpose(1, 2)), kept),
        "shared_neurons": _mean((per_neuron >= SHARED).double(), used),
        "dimensionality": _mean(_dimensionality(W), kept),
        "psi": effective_number(gain) / W.shape[1],
    }


def gains(W: Float[Tensor, "cell neuron feature"]) -> Float[Tensor, "cell feature"]:
    """What share of each feature comes back through its own weights, `W_i . W_i`."""
    return W.square().sum(1)


def rotated(W: Float[Tensor, "cell neuron feature"], *, seed: int) -> Float[Tensor, "cell neuron feature"]:
    """The same functions in a random basis of neurons: `Q W`, with a Q for each cell."""
    noise = torch.randn(len(W), W.shape[1], W.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(noise).Q @ W.double()


def shuffled(W: Float[Tensor, "cell neuron feature"], *, seed: int) -> Float[Tensor, "cell neuron feature"]:
    """The same weights, zeros among them, at random places."""
    places = torch.rand(len(W), W[0].numel(), generator=torch.Generator().manual_seed(seed)).argsort(1)
    return W.flatten(1).gather(1, places).view_as(W)


def _dimensionality(W: Float[Tensor, "cell neuron feature"]) -> Float[Tensor, "cell feature"]:
    """`|W_i|^4 / sum_j (W_i . W_j)^2`: `rows.sparsity_measures.dimensionality` for many matrices at once."""
    return gains(W).square() / (W.transpose(1, 2) @ W).square().sum(2)


def _mean(values: Float[Tensor, "cell item"], where: Bool[Tensor, "cell item"]) -> Float[Tensor, " cell"]:
    return values.masked_fill(~where, 0.0).sum(1) / where.sum(1)


def _order(importance: Float[Tensor, "cell feature"], kept: Bool[Tensor, "cell feature"]) -> Float[Tensor, " cell"]:
    pairs = kept[:, :, None] & ~kept[:, None, :]
    wins = (importance[:, :, None] - importance[:, None, :]).sign() / 2 + 0.5
    return (wins * pairs).sum((1, 2)) / pairs.sum((1, 2))
