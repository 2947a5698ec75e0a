"""Learning rate and density at points worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from sparse_lens.errors import ConfigError
from sparse_lens.training import SparsityConfig, TrainingConfig
from sparse_lens.training.config import check_anneal
from sparse_lens.training.schedules import density_at, learning_rate_at

SPARSITY = SparsityConfig(density=0.1, anneal_start=0.2, anneal_end=0.6)


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.55), ("cubic", 0.1 + 0.9 / 8), ("power_law", math.sqrt(0.1))])
def test_density(shape: str, middle: float) -> None:
    """One before the anneal, the final density after it, and the shape's own value halfway."""
    sparsity = SPARSITY.model_copy(update={"anneal_shape": shape})
    for progress, density in ((0.0, 1.0), (0.2, 1.0), (0.4, middle), (0.6, 0.1), (1.0, 0.1)):
        assert density_at(sparsity, 0.1, progress) == pytest.approx(density)


@pytest.mark.parametrize("shape", ["linear", "cubic", "power_law"])
def test_density_never_rises(shape: str) -> None:
    """Annealing only removes weights."""
    sparsity = SPARSITY.model_copy(update={"anneal_shape": shape})
    densities = [density_at(sparsity, 0.05, step / 200) for step in range(201)]
    assert all(later <= earlier for earlier, later in pairwise(densities))


def test_an_anneal_without_length_is_a_step() -> None:
    """Start and end at the same share: dense before it, sparse from it on."""
    sparsity = SPARSITY.model_copy(update={"anneal_end": 0.2})
    assert [density_at(sparsity, 0.1, progress) for progress in (0.19, 0.2, 0.21)] == [1.0, 0.1, 0.1]


def test_an_anneal_that_ends_before_it_starts() -> None:
    """Refused, with both numbers."""
    with pytest.raises(ConfigError, match=r"anneal_end \(0.1\) lies before anneal_start \(0.2\)"):
        check_anneal(SPARSITY.model_copy(update={"anneal_end": 0.1}))


@pytest.mark.parametrize(("step", "rate"), [(0, 0.2), (4, 1.0), (9, 2.0), (30, 2.0), (50, 2.0), (75, 1.0), (99, 0.04)])
def test_learning_rate(step: int, rate: float) -> None:
    """Warm-up over ten steps, plateau, linear fall to zero from the middle."""
    config = TrainingConfig(name="x", model={}, steps=100, learning_rate=2.0, warmup=0.1, decay_start=0.5)
    assert learning_rate_at(config, step) == pytest.approx(rate)


def test_the_sharkfin() -> None:
    """With sparsity the rate is multiplied by sqrt(final / present density), never below its floor."""
    plain = TrainingConfig(name="x", model={}, steps=100, learning_rate=1.0, warmup=0.0, decay_start=1.0)
    sharkfin = plain.model_copy(update={"sparsity": SPARSITY})
    for step, density in ((0, 1.0), (40, 0.55), (60, 0.1), (90, 0.1)):
        assert learning_rate_at(sharkfin, step) == pytest.approx(math.sqrt(0.1 / density))
    floored = plain.model_copy(update={"sparsity": SPARSITY.model_copy(update={"sharkfin_floor": 0.5})})
    assert learning_rate_at(floored, 0) == 0.5
    assert learning_rate_at(floored, 60) == 1.0
