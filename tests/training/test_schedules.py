"""Learning rate and density at points worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from sparse_lens.training import LotteryTicket, MagnitudePruning, TopK, TrainingConfig
from sparse_lens.training.schedules import cycle_ends, density_at, learning_rate_at

SPARSITY = TopK(density=0.1, anneal_start=0.2, anneal_end=0.6)


SHAPES = {"linear": {}, "cubic": {"anneal_exponent": 3.0}, "power_law": {"anneal_shape": "power_law"}}


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.55), ("cubic", 0.1 + 0.9 / 8), ("power_law", 0.1 ** (math.log(2) / math.log(3)))]
)
def test_density(shape: str, middle: float) -> None:
    """One before the anneal, the final density after it, and the shape's own value halfway."""
    sparsity = SPARSITY.model_copy(update=SHAPES[shape])
    for progress, density in ((0.0, 1.0), (0.2, 1.0), (0.4, middle), (0.6, 0.1), (1.0, 0.1)):
        assert density_at(sparsity, 0.1, progress) == pytest.approx(density)


@pytest.mark.parametrize("shape", SHAPES)
def test_density_never_rises(shape: str) -> None:
    """Annealing only removes weights."""
    sparsity = SPARSITY.model_copy(update=SHAPES[shape])
    densities = [density_at(sparsity, 0.05, step / 200) for step in range(201)]
    assert all(later <= earlier for earlier, later in pairwise(densities))


def test_an_anneal_without_length_is_a_step() -> None:
    """Start and end at the same share: dense before it, sparse from it on."""
    sparsity = SPARSITY.model_copy(update={"anneal_end": 0.2})
    assert [density_at(sparsity, 0.1, progress) for progress in (0.19, 0.2, 0.21)] == [1.0, 0.1, 0.1]


def test_an_anneal_that_cannot_be() -> None:
    """Refused, with both numbers; a power law cannot start at step 0."""
    with pytest.raises(ValueError, match=r"anneal_end \(0.1\) lies before anneal_start \(0.2\)"):
        TopK(density=0.1, anneal_start=0.2, anneal_end=0.1)
    with pytest.raises(ValueError, match="anneal_start must be above 0"):
        TopK(density=0.1, anneal_start=0, anneal_shape="power_law")


def test_embeddings_go_the_same_share_of_their_way() -> None:
    """Whatever the shape: the released script interpolates the embedding's density by the matrices' (`train.py`)."""
    for options in SHAPES.values():
        sparsity = SPARSITY.model_copy(update=options)
        gone = (1 - density_at(sparsity, 0.1, 0.45)) / 0.9
        assert density_at(sparsity, 0.6, 0.45) == pytest.approx(1 - 0.4 * gone)


def test_pruning_in_cycles_starts_the_rate_over() -> None:
    """A dense half and two pruned quarters, each with warm-up and decay."""
    for kind in (MagnitudePruning, LotteryTicket):
        sparsity = kind(density=0.1, rounds=2)
        config = TrainingConfig(name="x", model={}, steps=400, learning_rate=1.0, warmup=0.1, decay_start=0.1, sparsity=sparsity)
        assert cycle_ends(config) == [200, 300, 400]
        assert [learning_rate_at(config, step) for step in (0, 10, 20, 110, 199)] == pytest.approx([0, 0.5, 1, 0.5, 1 / 180])
        assert [learning_rate_at(config, step) for step in (200, 205, 210, 300, 310)] == pytest.approx([0, 0.5, 1, 0, 1])


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (5, 1.0), (10, 2.0), (30, 2.0), (50, 2.0), (75, 1.0), (99, 0.04)])
def test_learning_rate(step: int, rate: float) -> None:
    """Warm-up from 0 over ten steps, plateau, linear fall to zero from the middle."""
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
