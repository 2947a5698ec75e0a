"""What is made sparse: which parameters form one matrix, how many of its entries stay, which axis carries the neurons.

After the released script (openai/circuit_sparsity, `train.py`): query, key and value form one matrix; rows of it and of the MLP
input, columns of both output matrices keep a minimum alive; embedding and unembedding have densities of their own; norm gains, sink
logits and the bigram table stay dense; positions are made sparse unless they are concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_lens.kernels import check_budget
from sparse_lens.models import CircuitGPTCore
from sparse_lens.models.core import Block
from sparse_lens.training.sharding import own, own_part, whole
from sparse_lens.training.sparsity import SparsityConfig


@dataclass(frozen=True)
class SparseMatrix:
    """Parameters that are made sparse as one matrix, stacked by rows; `neuron_axis` None keeps no minimum alive."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    density: float
    neuron_axis: int | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the stack; biases are one row."""
        if self.parameters[0].ndim == 1:
            return 1, sum(parameter.numel() for parameter in self.parameters)
        return sum(parameter.shape[0] for parameter in self.parameters), self.parameters[0].shape[1]

    @property
    def entries(self) -> int:
        return self.shape[0] * self.shape[1]

    def kept(self, density: float) -> int:
        """How many entries a density leaves."""
        return int(density * self.entries)

    def stack(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        """The parameters' values, or `tensors` of their shapes, as one matrix."""
        parts = [whole(tensor.detach()) for tensor in (self.parameters if tensors is None else tensors)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(self.shape)

    @torch.no_grad()
    def keep(self, mask: Tensor) -> None:
        """Zero the parameters where a mask of the stack's shape is not set."""
        for parameter, kept in zip(self.parameters, self.split(mask), strict=True):
            own(parameter).mul_(own_part(kept, parameter))

    def split(self, matrix: Tensor) -> list[Tensor]:
        """A matrix of the stack's shape as parts of the parameters' shapes."""
        if self.parameters[0].ndim == 1:
            return list(matrix.flatten().split([parameter.numel() for parameter in self.parameters]))
        return list(matrix.split([parameter.shape[0] for parameter in self.parameters]))


def sparse_matrices(core: CircuitGPTCore, sparsity: SparsityConfig) -> list[SparseMatrix]:
    """Every matrix that ends up sparse; raises `ConfigError` now if a final density cannot keep the minimum alive."""
    found: list[SparseMatrix] = []

    def add(name: str, density: float, neuron_axis: int | None, *parameters: Tensor | None) -> None:
        given = tuple(parameter for parameter in parameters if isinstance(parameter, nn.Parameter))
        if given and density < 1:
            found.append(SparseMatrix(name, given, density, neuron_axis))

    for layer, block in enumerate(core.blocks):
        assert isinstance(block, Block)
        attn, mlp, where = block.attn, block.mlp, f"blocks.{layer}"
        for name, axis, linears in (
            ("attn.qkv", 0, (attn.q, attn.k, attn.v)),
            ("attn.o", 1, (attn.o,)),
            ("mlp.fc_in", 0, (mlp.fc_in,)),
            ("mlp.fc_out", 1, (mlp.fc_out,)),
        ):
            add(f"{where}.{name}.weight", sparsity.density, axis, *(linear.weight for linear in linears))
            if sparsity.sparse_biases:
                add(f"{where}.{name}.bias", sparsity.density, None, *(linear.bias for linear in linears))
    add("wte.weight", sparsity.embedding_density, None, core.wte.weight)
    if not core.config.tied_unembed:
        add("lm_head.weight", sparsity.of_unembedding(), None, core.lm_head.weight)
    if core.config.d_pos_emb is None:
        add("wpe.weight", sparsity.density, None, core.wpe.weight)
    for matrix in found:
        if matrix.neuron_axis is not None:
            check_budget(matrix.shape, matrix.kept(matrix.density), sparsity.min_alive, matrix.neuron_axis)
    return found
