"""How much memory a run takes, estimated before it takes it."""

from __future__ import annotations

import os
from pathlib import Path

from sparse_lens.errors import ConfigError
from sparse_lens.models import CircuitGPTConfig
from sparse_lens.models.config import parameter_count
from sparse_lens.training.config import TrainingConfig
from sparse_lens.training.sparsity import LearnedMask, LotteryTicket

_BYTES = 4
_ACTIVATIONS_PER_CHANNEL = 12
"""Tensors as wide as the residual stream that autograd keeps for one attention or MLP sublayer; measured, rounded up."""


def estimate_bytes(config: TrainingConfig, model: CircuitGPTConfig, *, processes: int = 1) -> int:
    """Upper guess for one process: weights, gradients, two moments; activations of its share of the batch; logits thrice."""
    tokens = config.batch_size * config.context // processes
    copies = 4
    if isinstance(config.sparsity, LearnedMask):
        copies *= 2  # a gate on every weight, with moments of its own
    elif isinstance(config.sparsity, LotteryTicket):
        copies += 1
    weights = copies * parameter_count(model)
    layer = 2 * _ACTIVATIONS_PER_CHANNEL * model.d_model + 4 * model.mlp_width + 6 * model.d_attn
    pattern = 5 * model.n_head * config.context
    n_bytes = 2 * _BYTES if config.precision == "float64" else _BYTES
    return n_bytes * (weights + tokens * (model.n_layer * (layer + pattern) + 3 * model.vocab_size))


def check_memory(
    config: TrainingConfig, model: CircuitGPTConfig, *, processes: int = 1, here: int = 1, available: int | None = None
) -> None:
    """Raise `ConfigError` if the estimate for `here` of `processes` exceeds what this machine has free; if unknown, say nothing."""
    free = available_bytes() if available is None else available
    needed = estimate_bytes(config, model, processes=processes) * here
    if free is not None and needed > free:
        raise ConfigError(
            f"the run needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; lower batch_size ({config.batch_size}), "
            f"context ({config.context}) or the model's size"
        )


def available_bytes() -> int | None:
    """Memory that a new process can have without swapping, or None where the system does not say."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:  # Linux counts reclaimable caches in
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
