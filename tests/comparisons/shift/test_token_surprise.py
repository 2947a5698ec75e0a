"""The third model: probabilities, known surprises, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_lens.comparisons.shift.token_surprise import NgramModel
from sparse_lens.errors import DataError


def test_probabilities_sum_to_one_in_every_context() -> None:
    """Of all next tokens, after contexts that were seen and others."""
    generator = np.random.default_rng(0)
    model = NgramModel.of(generator.integers(0, 5, (3, 20)), 6)
    for context in ([], [0], [0, 1], [5], [5, 5], [2, 5]):
        total = sum(np.exp(-model.surprises(np.array([*context, token]))[-1]) for token in range(6))
        assert total == pytest.approx(1.0)


def test_known_surprises() -> None:
    """Text `0 1 0 1`: `P(1 | 0) = (2 + 1 P(1)) / 3` with `P(1) = (2 + 2 / 4) / 6`; an unseen token is the uniform share of it."""
    model = NgramModel.of([np.array([0, 1, 0, 1])], 4, order=2)
    one = (2 + 2 / 4) / 6
    assert model.surprises(np.array([0, 1]))[1] == pytest.approx(-np.log((2 + one) / 3))
    assert model.surprises(np.array([3]))[0] == pytest.approx(-np.log(2 / 4 / 6))
    assert model.mean_surprise([np.array([0, 1])]) == pytest.approx(-np.log((2 + one) / 3))


def test_refusals() -> None:
    """No text, and no order."""
    with pytest.raises(DataError, match="0 contexts"):
        NgramModel.of([], 4)
    with pytest.raises(DataError, match="order 0"):
        NgramModel.of([np.array([1])], 4, order=0)
