"""The interface of everything that makes a model sparse while it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sparsifier:
    """Called around every optimizer step; this one does nothing, and is what a weight-dense model has.

    The order of a step is: `before_forward`, forward, `penalty` added to the loss, backward, `after_backward`, scaling of the
    gradient, optimizer, `after_step`, weight decay. All state that a resumed run needs is in `state` and comes back by `restore`.
    """

    def gates(self) -> list[nn.Parameter]:
        """Parameters that were added to the core's: the optimizer gives them a group of their own."""
        return []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Learn which optimizer holds the moments; called once, before the first step."""

    def before_forward(self, step: int) -> None:
        """Make the core ready for optimizer step `step`, from 0."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss, if anything."""
        return None

    def after_backward(self, step: int) -> None:
        """Change gradients before they are scaled."""

    def after_step(self, step: int) -> None:
        """Change weights after the optimizer has."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beyond weights and optimizer."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a `state`."""
