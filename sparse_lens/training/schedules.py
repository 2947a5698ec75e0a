"""Learning rate and density against the step, as pure functions of the configuration."""

from __future__ import annotations

import math
from itertools import pairwise

from sparse_lens.errors import ConfigError
from sparse_lens.training.config import TrainingConfig
from sparse_lens.training.sparsity import LearnedMask, LotteryTicket, MagnitudePruning, TopK


def density_at(sparsity: TopK | LearnedMask, final: float, progress: float) -> float:
    """Density of a matrix with final density `final` after the share `progress` of the steps: 1 before the anneal.

    Every matrix goes the same share of its way at the same time. With `power_law` that share is what the blocks' density has gone
    of its own way along a line in log density against log step (openai/circuit_sparsity, `train.py`).
    """
    start, end = sparsity.anneal_start, sparsity.anneal_end
    if progress <= start and progress < end:
        return 1.0
    if progress >= end:
        return final
    if sparsity.anneal_shape == "linear":
        remaining = (1 - (progress - start) / (end - start)) ** sparsity.anneal_exponent
    else:
        own = sparsity.density ** (math.log(progress / start) / math.log(end / start))
        remaining = (own - sparsity.density) / (1 - sparsity.density) if sparsity.density < 1 else 0.0
    return final + (1 - final) * remaining


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Learning rate of optimizer step `step`, from 0: warm-up from 0, plateau, linear fall to 0, times the sharkfin factor.

    The sharkfin factor is sqrt(final density / density now), so the rate rises as the model gets sparser and the product peaks
    where the anneal ends (openai/circuit_sparsity, `train.py`: 1/sqrt(L0), normalized to end at 1). Methods that prune in cycles
    run through the whole schedule in each.
    """
    first, last = cycle_of(config, step)
    steps, step = last - first, step - first
    warmup = config.warmup * steps
    decay_start = max(config.decay_start * steps, warmup)
    rate = config.learning_rate
    if step < warmup:
        rate *= step / warmup
    elif step > decay_start:
        rate *= (steps - step) / (steps - decay_start)
    if not isinstance(config.sparsity, TopK):
        return rate
    final = config.sparsity.density
    factor = math.sqrt(final / density_at(config.sparsity, final, step / steps))
    return rate * max(factor, config.sparsity.sharkfin_floor)


def check_schedule(config: TrainingConfig) -> None:
    """Raise `ConfigError` for a run too short for its own schedule: it would end before it is sparse."""
    sparsity, steps = config.sparsity, config.steps
    if isinstance(sparsity, LearnedMask) and sparsity.anneal_end > (steps - 1) / steps:
        raise ConfigError(f"anneal_end is {sparsity.anneal_end}: no step of the {steps} is left to fix the masks; lower it")
    if isinstance(sparsity, MagnitudePruning | LotteryTicket):
        ends = [0, *cycle_ends(config)]
        if any(later <= earlier for earlier, later in pairwise(ends)):
            raise ConfigError(
                f"{steps} steps are too few for a dense cycle and {sparsity.rounds} prunings that end at {ends[1:]}; "
                "raise steps, or lower rounds or dense_share"
            )
        if isinstance(sparsity, LotteryTicket) and rewind_step(config) >= ends[1]:
            raise ConfigError(f"rewind_to is {sparsity.rewind_to}: that step lies behind the first pruning; lower it")


def rewind_step(config: TrainingConfig) -> int:
    """The step whose weights a lottery ticket takes up again."""
    assert isinstance(config.sparsity, LotteryTicket)
    return round(config.sparsity.rewind_to * cycle_ends(config)[0])


def cycle_ends(config: TrainingConfig) -> list[int]:
    """The steps at which learning-rate cycles end, the last of them the run's."""
    sparsity = config.sparsity
    if not isinstance(sparsity, MagnitudePruning | LotteryTicket):
        return [config.steps]
    dense = round(sparsity.dense_share * config.steps)
    return [dense + (config.steps - dense) * cycle // sparsity.rounds for cycle in range(sparsity.rounds + 1)]


def cycle_of(config: TrainingConfig, step: int) -> tuple[int, int]:
    """First step and end of the learning-rate cycle that `step` lies in."""
    first = 0
    for end in cycle_ends(config):
        if step < end:
            return first, end
        first = end
    return first, config.steps + 1
