"""Learned masks: a trained gate on every weight, and a multiplier per matrix that holds the gates to the annealed density."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparse_lens.errors import ConfigError
from sparse_lens.models import CircuitGPTCore
from sparse_lens.training.config import TrainingConfig
from sparse_lens.training.schedules import density_at
from sparse_lens.training.sparsifiers.fixed import HeldMasks
from sparse_lens.training.sparsity import LearnedMask

_STRETCH = (-0.1, 1.1)
_TEMPERATURE = 2 / 3
"""Of the hard concrete distribution, as in arXiv:1712.01312, section 4."""


class Gate(nn.Module):
    """Multiplies a weight by gates in [0, 1] that depend on `score`, of the weight's shape."""

    start: float

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.full_like(weight, self.start))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gates()

    def gates(self) -> Tensor:
        """The gates in use."""
        raise NotImplementedError

    def is_open(self) -> Tensor:
        """How far each gate is open, or how probably: what the density is measured by."""
        raise NotImplementedError


class SigmoidGate(Gate):
    """sigmoid(sharpness * score): soft at first, a step in the end (continuous sparsification, arXiv:1912.04427)."""

    start = 0.2  # a little open: where the sigmoid still has a slope when it gets sharp
    sharpness = 1.0

    def gates(self) -> Tensor:
        return torch.sigmoid(self.sharpness * self.score)

    is_open = gates


class HardConcreteGate(Gate):
    """A stretched and clipped concrete variable: exactly 0 or 1 with positive probability (arXiv:1712.01312, eq. 10 to 12)."""

    start = 3.0  # open with probability 0.99
    noise: Tensor | None = None

    def gates(self) -> Tensor:
        noisy = self.noise if self.training else None
        soft = torch.sigmoid(self.score if noisy is None else (noisy + self.score) / _TEMPERATURE)
        low, high = _STRETCH
        return (soft * (high - low) + low).clamp(0, 1)

    def is_open(self) -> Tensor:
        low, high = _STRETCH
        return torch.sigmoid(self.score - _TEMPERATURE * math.log(-low / high))


class LearnedMasks(HeldMasks):
    """Trains gates until the anneal ends, then holds the highest scores of each matrix and trains the weights alone."""

    def __init__(self, core: CircuitGPTCore, config: TrainingConfig) -> None:
        sparsity = config.sparsity
        assert isinstance(sparsity, LearnedMask)
        if core.config.tied_unembed:
            raise ConfigError("a learned mask needs an unembedding of its own: set tied_unembed to false")
        super().__init__(core, sparsity)
        self.sparsity, self.steps, self.seed = sparsity, config.steps, config.seed
        self.owners = {parameter: owner for owner in core.modules() for parameter in owner.parameters(recurse=False)}
        self.of_matrix = [[self._add_gate(parameter) for parameter in matrix.parameters] for matrix in self.matrices]
        self.multipliers = torch.zeros(len(self.matrices), device=self.matrices[0].parameters[0].device)

    def _add_gate(self, parameter: nn.Parameter) -> Gate:
        gate = SigmoidGate(parameter) if self.sparsity.gate == "sigmoid" else HardConcreteGate(parameter)
        owner = self.owners[parameter]
        parametrize.register_parametrization(owner, _name_in(owner, parameter), gate)
        return gate

    def gates(self) -> list[nn.Parameter]:
        return [gate.score for of_matrix in self.of_matrix for gate in of_matrix]

    @property
    def frozen(self) -> bool:
        """Whether the masks are decided."""
        return bool(self.masks)

    def before_forward(self, step: int) -> None:
        if self.frozen:
            return
        progress = step / self.steps
        if progress >= self.sparsity.anneal_end:
            scores = [
                matrix.stack([gate.score.detach() for gate in g]) for matrix, g in zip(self.matrices, self.of_matrix, strict=True)
            ]
            kept = [(m, s, m.kept(m.density)) for m, s in zip(self.matrices, scores, strict=True)]
            self._freeze([self.largest(matrix, score - score.min(), k) for matrix, score, k in kept])
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        for gate in (gate for of_matrix in self.of_matrix for gate in of_matrix):
            if isinstance(gate, SigmoidGate):
                gate.sharpness = self.sparsity.sharpness ** (progress / self.sparsity.anneal_end)
            elif isinstance(gate, HardConcreteGate):
                uniform = torch.rand(gate.score.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
                gate.noise = uniform.logit().to(gate.score)

    def penalty(self) -> Tensor | None:
        """Multiplier times density, summed over the matrices."""
        if self.frozen:
            return None
        return torch.stack(list(self._densities())) @ self.multipliers

    def _densities(self) -> Iterator[Tensor]:
        for matrix, gates in zip(self.matrices, self.of_matrix, strict=True):
            yield cast(Tensor, sum(gate.is_open().sum() for gate in gates)) / matrix.entries

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self.frozen:
            self.apply()
            return
        for index, (matrix, density) in enumerate(zip(self.matrices, self._densities(), strict=True)):
            excess = density - density_at(self.sparsity, matrix.density, step / self.steps)
            self.multipliers[index] += self.sparsity.multiplier_rate * excess
        self.multipliers.clamp_(min=0)

    @torch.no_grad()
    def _freeze(self, masks: list[Tensor]) -> None:
        """Put the gated weights in the gates' place, and hold these masks from now on."""
        for owner in {self.owners[parameter] for matrix in self.matrices for parameter in matrix.parameters}:
            owner.eval()
            for name in list(cast(nn.ModuleDict, owner.parametrizations)):
                parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
            owner.train()
        self.masks = masks
        self.apply()

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"multipliers": self.multipliers}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self.multipliers = state["multipliers"]
        if self.masks:
            self._freeze(self.masks)


def _name_in(owner: nn.Module, parameter: nn.Parameter) -> str:
    return next(name for name, own in owner.named_parameters(recurse=False) if own is parameter)
