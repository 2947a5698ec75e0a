"""Learning rate and density against the step, as pure functions of the configuration."""

from __future__ import annotations

import math

from sparse_lens.training.config import SparsityConfig, TrainingConfig


def density_at(sparsity: SparsityConfig, final: float, progress: float) -> float:
    """Density of a matrix with final density `final` after the share `progress` of the steps: 1 before the anneal."""
    span = sparsity.anneal_end - sparsity.anneal_start
    t = 1.0 if span <= 0 else min(max((progress - sparsity.anneal_start) / span, 0.0), 1.0)
    if progress < sparsity.anneal_start:
        return 1.0
    if sparsity.anneal_shape == "power_law":
        return final**t
    remaining = 1 - t if sparsity.anneal_shape == "linear" else (1 - t) ** 3
    return final + (1 - final) * remaining


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0): warm-up, plateau, linear fall to 0, times the sharkfin factor.

    The sharkfin factor is sqrt(final density / density now), so the rate rises as the model gets sparser and the product peaks
    where the anneal ends (openai/circuit_sparsity, `train.py`: 1/sqrt(L0), normalized to end at 1).
    """
    warmup = max(1.0, config.warmup * config.steps)
    decay_start = max(config.decay_start, config.warmup) * config.steps
    rate = config.learning_rate * min(1.0, (step + 1) / warmup)
    if step > decay_start:
        rate *= (config.steps - step) / (config.steps - decay_start)
    if config.sparsity is None:
        return rate
    final = config.sparsity.density
    factor = math.sqrt(final / density_at(config.sparsity, final, step / config.steps))
    return rate * max(factor, config.sparsity.sharkfin_floor)
