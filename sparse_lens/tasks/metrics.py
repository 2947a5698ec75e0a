"""A task's own metric: what its circuits are searched by in place of the cross-entropy of the two answers."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

Metric = Callable[[Float[Tensor, "prompt vocab"], Int[Tensor, " prompt"], Int[Tensor, " prompt"]], Float[Tensor, " prompt"]]
"""Losses, differentiable and better the less they are, of the logits at the answer position and the ids of the right and the wrong
answer; in whatever unit the target is given in."""


def metric_name(metric: Metric) -> str:
    """What a circuit's record calls a metric."""
    return str(getattr(metric, "__qualname__", type(metric).__name__))
