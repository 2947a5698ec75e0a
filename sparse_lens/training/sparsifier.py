"""Projection of a model's weights on their largest magnitudes, matrix by matrix, after every optimizer step.

Which matrices, and which axis carries the neurons, follows the released script (openai/circuit_sparsity, `train.py`): query,
key and value form one matrix; rows of it and of the MLP input, columns of both output matrices keep a minimum alive; embedding
and unembedding have a density of their own; biases, norm gains, sink logits and the bigram table stay dense; positions are
projected unless they are concatenated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_lens.kernels import check_budget, projection_mask
from sparse_lens.models import CircuitGPTCore
from sparse_lens.models.core import Block
from sparse_lens.training.config import SparsityConfig
from sparse_lens.training.schedules import density_at


@dataclass(frozen=True)
class ProjectedMatrix:
    """Parameters that are projected as one matrix, stacked by rows; `neuron_axis` None keeps no minimum alive."""

    parameters: tuple[nn.Parameter, ...]
    final_density: float
    neuron_axis: int | None

    def entries(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def projected_matrices(core: CircuitGPTCore, sparsity: SparsityConfig) -> list[ProjectedMatrix]:
    """Every matrix that the recipe makes sparse."""
    matrices: list[ProjectedMatrix] = []

    def add(density: float, neuron_axis: int | None, *weights: Tensor) -> None:
        parameters = tuple(weight for weight in weights if isinstance(weight, nn.Parameter))
        matrices.append(ProjectedMatrix(parameters, density, neuron_axis))

    for block in core.blocks:
        assert isinstance(block, Block)
        attn, mlp = block.attn, block.mlp
        add(sparsity.density, 0, attn.q.weight, attn.k.weight, attn.v.weight)
        add(sparsity.density, 1, attn.o.weight)
        add(sparsity.density, 0, mlp.fc_in.weight)
        add(sparsity.density, 1, mlp.fc_out.weight)
    add(sparsity.embedding_density, None, core.wte.weight)
    if not core.config.tied_unembed:
        add(sparsity.embedding_density, None, core.lm_head.weight)
    if core.config.d_pos_emb is None:
        add(sparsity.density, None, core.wpe.weight)
    return [matrix for matrix in matrices if matrix.final_density < 1]


class Sparsifier:
    """Projects a core's weights in place; hold one for the whole run."""

    def __init__(self, core: CircuitGPTCore, sparsity: SparsityConfig, *, fast: bool = True) -> None:
        self.sparsity, self.fast = sparsity, fast
        self.matrices = projected_matrices(core, sparsity)
        for matrix in self.matrices:
            self._check_budget(matrix)

    def _check_budget(self, matrix: ProjectedMatrix) -> None:
        """Raise `ConfigError` now if the final density cannot keep the minimum alive, rather than halfway through the run."""
        if matrix.neuron_axis is None:
            return
        rows, columns = sum(parameter.shape[0] for parameter in matrix.parameters), matrix.parameters[0].shape[1]
        check_budget((rows, columns), int(matrix.final_density * matrix.entries()), self.sparsity.min_alive, matrix.neuron_axis)

    @torch.no_grad()
    def project(self, progress: float) -> None:
        """Zero all but the entries that the density after the share `progress` of the steps leaves."""
        for matrix in self.matrices:
            density = density_at(self.sparsity, matrix.final_density, progress)
            k = int(density * matrix.entries())
            if k >= matrix.entries():
                continue
            stacked = torch.cat([parameter.data for parameter in matrix.parameters])
            mask = projection_mask(
                stacked,
                k,
                min_alive=0 if matrix.neuron_axis is None else self.sparsity.min_alive,
                neuron_axis=matrix.neuron_axis or 0,
                fast=self.fast,
            )
            rows = [parameter.shape[0] for parameter in matrix.parameters]
            for parameter, kept in zip(matrix.parameters, mask.split(rows), strict=True):
                parameter.data.mul_(kept)
