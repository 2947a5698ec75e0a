"""The expected best of a draw, against all draws."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sparse_lens.comparisons.concepts.equal_units import best_of_fewer, chances_of_being_best
from sparse_lens.errors import ConfigError


@pytest.mark.parametrize("n_units", [1, 2, 4, 7])
def test_the_mean_is_that_of_all_draws(n_units: int) -> None:
    """Also where the latent that is chosen is not the one that scores best."""
    chosen_by, scores = np.random.default_rng(n_units).random((2, 7, 3))
    draws = [list(draw) for draw in combinations(range(7), n_units)]
    for column in range(3):
        best = [scores[max(draw, key=lambda latent: chosen_by[latent, column]), column] for draw in draws]
        assert best_of_fewer(chosen_by, scores, n_units)[column] == pytest.approx(np.mean(best))


def test_chances_add_up_for_many_latents() -> None:
    for n_units in (1, 224, 1023, 1024):
        chances = chances_of_being_best(1024, n_units)
        assert chances.sum() == pytest.approx(1) and chances[0] == pytest.approx(n_units / 1024) and (chances >= 0).all()


def test_a_draw_of_more_than_there_are() -> None:
    for n_units in (0, 8):
        with pytest.raises(ConfigError, match="from 1 to 7"):
            chances_of_being_best(7, n_units)
