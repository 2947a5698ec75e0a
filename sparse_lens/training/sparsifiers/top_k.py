"""Projection on the largest magnitudes after every optimizer step: the method of arXiv:2511.13653."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparse_lens.kernels import projection_mask, share_rows
from sparse_lens.models import CircuitGPTCore
from sparse_lens.training.schedules import density_at
from sparse_lens.training.sparsifiers.base import Sparsifier
from sparse_lens.training.sparsifiers.matrices import SparseMatrix, sparse_matrices
from sparse_lens.training.sparsity import TopK


class TopKProjection(Sparsifier):
    """Zeroes all but the largest entries of each matrix, at the density that the step has."""

    def __init__(self, core: CircuitGPTCore, sparsity: TopK, steps: int, *, fast: bool = True) -> None:
        self.sparsity, self.steps, self.fast = sparsity, steps, fast
        self.matrices = sparse_matrices(core, sparsity)
        self.on_threads = all(type(p) is nn.Parameter and p.device.type == "cpu" for m in self.matrices for p in m.parameters)

    def after_step(self, step: int) -> None:
        self.project(1.0 if step + 1 == self.steps else step / self.steps)  # the last step leaves the final density behind

    def project(self, progress: float) -> None:
        """Zero what the density after the share `progress` of the steps does not leave."""

        def project_part(part: slice) -> None:
            for matrix in self.matrices[part]:
                k = matrix.kept(density_at(self.sparsity, matrix.density, progress))
                if k < matrix.entries:
                    matrix.keep(self._mask(matrix, matrix.stack(), k))

        # shards are gathered by all processes in one order, which threads would not keep
        share_rows(project_part, len(self.matrices), least=2 if self.on_threads else len(self.matrices) + 1)

    def _mask(self, matrix: SparseMatrix, weight: Tensor, k: int) -> Tensor:
        if self.sparsity.budget == "matrix" or matrix.neuron_axis is None:
            axis, min_alive = matrix.neuron_axis or 0, 0 if matrix.neuron_axis is None else self.sparsity.min_alive
            return projection_mask(weight, k, min_alive=min_alive, neuron_axis=axis, fast=self.fast)
        return shared_budget_mask(weight, k, axis=1 if self.sparsity.budget == "fan_in" else 0)


def shared_budget_mask(weight: Tensor, k: int, *, axis: int) -> Tensor:
    """The largest entries along `axis`, equally many in each line; what the lines cannot share goes to the largest rest.

    `axis` 1 gives every output channel as many inputs, `axis` 0 every input channel as many outputs.
    """
    magnitude = weight.abs() if axis == 1 else weight.abs().T
    each = k // magnitude.shape[0]
    first = torch.zeros_like(magnitude, dtype=torch.bool)
    if each:
        first.scatter_(1, magnitude.topk(each, dim=1).indices, True)
    if rest := k - each * magnitude.shape[0]:
        best = magnitude.masked_fill(first, -1).max(dim=1)  # at most one more in each line
        lines = best.values.topk(rest).indices
        first[lines, best.indices[lines]] = True
    return first if axis == 1 else first.T
