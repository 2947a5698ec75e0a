"""EASE: the best linear prediction of every column of a matrix from all the others, in closed form.

    min_B  |X - X B|^2 + lam |B|^2   with a diagonal of zeros
    P = (X^T X + lam I)^-1,   B_ij = -P_ij / P_jj  off the diagonal

Column j of `B` is the ridge regression of column j on the other columns, all of them from one inverse (arXiv:1905.03375, section
3). Columns are items of a recommender, or features of a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.errors import DataError

RECBOLE_LAM = 250.0
"""The default of RecBole's `EASE`, for matrices of zeros and ones."""

_COLUMNS = 512


def ease(interactions: Any, lam: float = RECBOLE_LAM) -> Float[Tensor, "item item"]:
    """The weights `B` (float64) of the recommender: `interactions @ B` scores every item for every user.

    `interactions` `[user, item]` is a tensor, an array, or a SciPy sparse matrix, of numbers or Booleans; it is taken as it is,
    not centered. `lam` is the ridge, in units of squared interactions. Raises `DataError` for another shape, values that are
    not finite, and a `lam` at which the solution is not unique.

    Example: `scores = X @ ease(X).numpy()`.
    """
    if getattr(interactions, "ndim", None) != 2:
        raise DataError(f"interactions are a matrix [user, item], got {type(interactions).__name__}; give one row for each user")
    # Products of Booleans are Booleans, and those of small integers overflow.
    wide: Any = interactions.double() if isinstance(interactions, Tensor) else interactions.astype(np.float64)
    gram = wide.T @ wide
    dense = gram.toarray() if hasattr(gram, "toarray") else gram
    return zero_diagonal_ridge(torch.as_tensor(np.asarray(dense), dtype=torch.float64), lam).weights


@dataclass(frozen=True, eq=False)
class ZeroDiagonalRidge:
    """`inverse` is `P` of the module's formulas: residuals on any data follow from it, `I - B = P diag(1 / diag P)`."""

    inverse: Float[Tensor, "item item"]
    lam: float

    @property
    def weights(self) -> Float[Tensor, "item item"]:
        """`B`; column j predicts item j."""
        return (self.inverse / -self.inverse.diagonal()).fill_diagonal_(0)

    def residuals(self, gram: Float[Tensor, "item item"], *, every: int = 1) -> Float[Tensor, " some"]:
        """Sums of squared errors of the columns (of each `every`-th) on the data whose products `X^T X` are `gram`."""
        columns = self.inverse[:, ::every].split(_COLUMNS, dim=1)  # at 4,096 a product of all of them takes 134 MB
        sums = torch.cat([(gram @ some).mul_(some).sum(0) for some in columns])
        return sums / self.inverse.diagonal()[::every] ** 2

    def fitted_residuals(self) -> Float[Tensor, " item"]:
        """The same of all columns on the data that was fitted, without another product of matrices."""
        own = self.inverse.diagonal()
        return 1 / own - self.lam * torch.linalg.vector_norm(self.inverse, dim=0).square() / own**2


def zero_diagonal_ridge(gram: Float[Tensor, "item item"], lam: float) -> ZeroDiagonalRidge:
    """Solve for the data whose products `X^T X` are `gram` (float64); cubic in items, two more matrices of memory at most.

    Raises `DataError` for products that are not finite and where the solution is not unique.
    """
    if not bool(gram.isfinite().all()):
        raise DataError("the products of the columns are not all finite; leave out rows with NaN or infinite values")
    if not 0 <= lam < math.inf:
        raise DataError(f"the ridge lam must be a number from 0 up, got {lam}")
    inverse = gram.double().clone()
    inverse.diagonal().add_(lam)
    before = inverse.diagonal().clone()
    failed = torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(inverse, out=(inverse, failed))  # in place: at 4,096 columns each copy is 134 MB
    if (dependent := int(failed) - 1) < 0:  # a pivot of rounding alone may come out above 0
        left = inverse.diagonal().square() <= max(1e-12, 100 * len(gram) * torch.finfo(torch.float64).eps) * before
        dependent = int(left.nonzero()[0]) if bool(left.any()) else -1
    if dependent >= 0:
        raise DataError(
            f"at lam={lam:g} column {dependent} depends linearly on those before it: the prediction is not unique; "
            "give a larger lam"
        )
    return ZeroDiagonalRidge(torch.cholesky_inverse(inverse, out=inverse), lam)
