"""Spearman's rank correlation, many at once: as bootstraps and permutations need it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata


def rank_correlation(first: Float[np.ndarray, "row point"], second: Float[np.ndarray, "row point"]) -> Float[np.ndarray, " row"]:
    """Spearman's correlation row by row, ties at their mean rank; NaN where a side is constant."""
    x, y = (rank - rank.mean(-1, keepdims=True) for rank in (rankdata(side, axis=-1) for side in (first, second)))
    spread = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.divide((x * y).sum(-1), spread, out=np.full(spread.shape, np.nan), where=spread > 0)
