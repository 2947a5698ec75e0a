"""Rank correlations of many rows at once are scipy's, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from sparse_lens.comparisons.rank_correlation import rank_correlation


def test_rank_correlation_with_ties_is_scipys() -> None:
    first, second = np.random.default_rng(0).integers(0, 4, (2, 60, 6)).astype(float)
    found = rank_correlation(first, second)
    assert found.tolist() == pytest.approx([spearmanr(*rows).statistic for rows in zip(first, second, strict=True)], nan_ok=True)


def test_a_constant_side_has_none() -> None:
    """And does not keep other rows from having one."""
    found = rank_correlation(np.array([[1.0, 2, 3], [1, 1, 1]]), np.array([[3.0, 2, 1], [1, 2, 3]]))
    assert found[0] == pytest.approx(-1) and np.isnan(found[1])
