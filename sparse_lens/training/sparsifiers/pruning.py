"""Pruning of a dense model in cycles: the largest weights stay, as they are or wound back to an early step."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_lens.models import CircuitGPTCore
from sparse_lens.training.config import TrainingConfig
from sparse_lens.training.schedules import cycle_ends, rewind_step
from sparse_lens.training.sparsifiers.fixed import HeldMasks
from sparse_lens.training.sparsity import LotteryTicket, MagnitudePruning


class CyclePruning(HeldMasks):
    """After each cycle but the last, holds the largest weights; a lottery ticket takes their early values up again.

    The optimizer's moments are forgotten at every pruning, as its learning rate starts over.
    """

    def __init__(self, core: CircuitGPTCore, config: TrainingConfig) -> None:
        assert isinstance(config.sparsity, MagnitudePruning | LotteryTicket)
        super().__init__(core, config.sparsity)
        self.core, self.rounds = core, config.sparsity.rounds
        self.ends = cycle_ends(config)
        self.early: dict[str, Tensor] = {}
        self.remember_at = rewind_step(config) if isinstance(config.sparsity, LotteryTicket) else None

    def before_forward(self, step: int) -> None:
        if step == self.remember_at:
            self.early = {name: parameter.detach().clone() for name, parameter in self.core.named_parameters()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.apply()
        if step + 1 not in self.ends[:-1]:
            return
        share = (self.ends.index(step + 1) + 1) / self.rounds
        self.hold_largest([matrix.density**share for matrix in self.matrices])
        for name, early in self.early.items():
            self.core.get_parameter(name).copy_(early)
        self.apply()
        assert self.optimizer is not None
        self.optimizer.state.clear()

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"early.{name}": early for name, early in self.early.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self.early = {name.removeprefix("early."): early for name, early in state.items() if name.startswith("early.")}
