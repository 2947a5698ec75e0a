"""How concentrated a list of numbers is, and how far directions get into each other's way: the formulas alone, on arrays in memory.

Two definitions go by the name of effective rank. Both are `exp(H(p))` in nats; `amplitude` takes `p = |v| / sum |v|` (of singular
values: Roy and Vetterli 2007), `energy` takes `p = v^2 / sum v^2` (of singular values: the entropy of the covariance's spectrum).
The energy one is never larger. Neither is divided by the length here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.errors import DataError


def effective_number(weights: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`exp(H(p))` with `p = w / sum w`: how many equal weights would be as spread out. NaN for a row without weight.

    Between 1 (one-hot) and n (constant). Raises `DataError` for a weight below 0.
    """
    weights = weights.double()
    if bool((weights < 0).any()):
        raise DataError(f"weights are not negative, got {float(weights.min()):.3g}; take magnitudes or squares first")
    p = weights / weights.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp()


def effective_rank_amplitude(values: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`effective_number` of magnitudes: of singular values, or of an activation's channels (er1 of arXiv:2603.03415, times n)."""
    return effective_number(values.double().abs())


def effective_rank_energy(values: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`effective_number` of squares: of singular values, or of an activation's channels (er2 of arXiv:2603.03415, times n)."""
    return effective_number(values.double().square())


def participation_ratio(values: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`(sum v)^2 / sum v^2` of covariance eigenvalues; give the squares of weights. One-hot 1, k equal values k; NaN for zeros."""
    values = values.double()
    return values.sum(-1).square() / values.square().sum(-1)


def hoyer(values: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`(sqrt n - L1 / L2) / (sqrt n - 1)`: one-hot 1, constant 0; NaN for a row of zeros, and for n = 1."""
    values = values.double()
    root = values.shape[-1] ** 0.5
    return (root - values.abs().sum(-1) / values.norm(dim=-1)) / (root - 1)


def crowding(W: Float[Tensor, "unit d"]) -> Float[Tensor, " unit"]:
    """`sum_j (W^_i . W_j)^2` over all j, i included, with `W^` of unit length; NaN for a row of zeros.

    By way of `W^T W`, so that no matrix of units by units is needed.
    """
    W = W.double()
    unit = W / W.norm(dim=1, keepdim=True)
    return torch.einsum("ud,de,ue->u", unit, W.T @ W, unit)


def dimensionality(W: Float[Tensor, "unit d"]) -> Float[Tensor, " unit"]:
    """Share of a dimension that each direction has to itself, `D_i = |W_i|^2 / sum_j (W^_i . W_j)^2` (arXiv:2209.10652, section 3).

    Orthogonal 1, antipodal pairs 1/2; NaN for a row of zeros. The capacity of arXiv:2210.01892, `(W_i . W_i)^2 / sum_j (W_i .
    W_j)^2`, at most d in sum, is the same number, for rows of any length.
    """
    return W.double().square().sum(1) / crowding(W)


def interference(W: Float[Tensor, "unit d"]) -> Float[Tensor, " unit"]:
    """What the other directions put onto each: `sum_{j != i} (W^_i . W_j)^2` (arXiv:2209.10652); NaN for a row of zeros."""
    return crowding(W) - W.double().square().sum(1)
