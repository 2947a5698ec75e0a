"""Masks that are held: drawn at random, or moved now and then by RigL."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparse_lens.kernels import projection_mask
from sparse_lens.models import CircuitGPTCore
from sparse_lens.training.sharding import own, own_part
from sparse_lens.training.sparsifiers.base import Sparsifier
from sparse_lens.training.sparsifiers.matrices import SparseMatrix, sparse_matrices
from sparse_lens.training.sparsity import RandomMask, RigL, SparsityConfig


class HeldMasks(Sparsifier):
    """Keeps weights and gradients inside one mask per matrix; without masks it does nothing."""

    def __init__(self, core: CircuitGPTCore, sparsity: SparsityConfig) -> None:
        self.matrices = sparse_matrices(core, sparsity)
        self.min_alive = sparsity.min_alive
        self.masks: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def after_backward(self, step: int) -> None:  # noqa: ARG002 - the interface's
        for matrix, mask in zip(self.matrices, self.masks, strict=bool(self.masks)):
            for parameter, kept in zip(matrix.parameters, matrix.split(mask), strict=True):
                if parameter.grad is not None:
                    own(parameter.grad).mul_(own_part(kept, parameter))

    def after_step(self, step: int) -> None:  # noqa: ARG002
        self.apply()

    def apply(self) -> None:
        """Zero the weights outside the masks."""
        for matrix, mask in zip(self.matrices, self.masks, strict=bool(self.masks)):
            matrix.keep(mask)

    def hold_largest(self, densities: list[float]) -> None:
        """Take as masks the largest weights that these densities (one per matrix) leave."""
        pairs = zip(self.matrices, densities, strict=True)
        self.masks = [self.largest(matrix, matrix.stack(), matrix.kept(density)) for matrix, density in pairs]
        self.apply()

    def largest(self, matrix: SparseMatrix, scores: Tensor, k: int) -> Tensor:
        """Mask of the k highest scores, a minimum in every neuron."""
        min_alive = 0 if matrix.neuron_axis is None else self.min_alive
        return projection_mask(scores, k, min_alive=min_alive, neuron_axis=matrix.neuron_axis or 0, fast=True)

    def hold_random(self, seed: int) -> None:
        """Take random masks of the final densities."""
        generator = torch.Generator().manual_seed(seed)
        self.masks = [
            self.largest(matrix, torch.rand(matrix.shape, generator=generator), matrix.kept(matrix.density))
            for matrix in self.matrices
        ]
        self.masks = [mask.to(m.parameters[0].device) for mask, m in zip(self.masks, self.matrices, strict=True)]
        self.apply()

    def state(self) -> dict[str, Tensor]:
        return {f"mask.{matrix.name}": mask for matrix, mask in zip(self.matrices, self.masks, strict=bool(self.masks))}

    def restore(self, state: dict[str, Tensor]) -> None:
        names = [f"mask.{matrix.name}" for matrix in self.matrices]
        self.masks = [state[name].bool() for name in names] if names and names[0] in state else []


class RandomMasks(HeldMasks):
    """One random mask for the whole run."""

    def __init__(self, core: CircuitGPTCore, sparsity: RandomMask) -> None:
        super().__init__(core, sparsity)
        self.hold_random(sparsity.mask_seed)


class RigLMasks(HeldMasks):
    """A random mask that is improved now and then: the smallest weights go, the zeros of largest gradient come (arXiv:1911.11134).

    The share that moves falls with a cosine, and grown weights start at zero, without moments. Unlike algorithm 1 there, the
    optimizer's step is not left out when the mask is updated.
    """

    def __init__(self, core: CircuitGPTCore, sparsity: RigL, steps: int) -> None:
        super().__init__(core, sparsity)
        self.sparsity, self.steps = sparsity, steps
        self.gradients: list[Tensor] = []
        self.hold_random(sparsity.mask_seed)

    def _moves(self, step: int) -> bool:
        last = self.sparsity.update_end * self.steps
        return 0 < step < last and step % self.sparsity.update_every == 0

    def after_backward(self, step: int) -> None:
        if self._moves(step):
            self.gradients = [matrix.stack([_gradient(p) for p in matrix.parameters]).clone() for matrix in self.matrices]
        super().after_backward(step)

    def after_step(self, step: int) -> None:
        self.apply()
        if not self._moves(step):
            return
        share = self.sparsity.update_share / 2 * (1 + math.cos(math.pi * step / (self.sparsity.update_end * self.steps)))
        for index, (matrix, gradient) in enumerate(zip(self.matrices, self.gradients, strict=True)):
            self.masks[index] = self._moved(matrix, self.masks[index], gradient, share)
        self.gradients = []
        self.apply()
        self._forget_moments()

    def _moved(self, matrix: SparseMatrix, mask: Tensor, gradient: Tensor, share: float) -> Tensor:
        """The mask after dropping `share` of its smallest weights and growing as many entries of large gradient."""
        k = int(mask.sum())
        n_moved = min(int(share * k), mask.numel() - k)
        weight = matrix.stack().abs().masked_fill(~mask, -1)
        stay = self.largest(matrix, weight.clamp(min=0), k - n_moved) if k > n_moved else torch.zeros_like(mask)
        stay &= mask
        scores = gradient.abs().masked_fill(stay, -1).flatten()  # what was just dropped may come back
        grown = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
        grown[scores.topk(k - int(stay.sum())).indices] = True
        return stay | grown.view_as(mask)

    def _forget_moments(self) -> None:
        """Zero the optimizer's moments outside the masks, so that a grown weight starts afresh."""
        assert self.optimizer is not None
        for matrix, mask in zip(self.matrices, self.masks, strict=True):
            for parameter, kept in zip(matrix.parameters, matrix.split(mask), strict=True):
                for moment in ("exp_avg", "exp_avg_sq"):
                    if moment in (state := self.optimizer.state[parameter]):
                        own(state[moment]).mul_(own_part(kept, parameter))


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
