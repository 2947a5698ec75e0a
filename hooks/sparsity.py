"""`sparsity_report`: how sparse a decoder's weights are, matrix by matrix, and which of its parts can never act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sparse_lens.hooks.layout import LayerMatrices, decoder_layout, layer_matrices


@dataclass(frozen=True)
class MatrixSparsity:
    """One matrix `[out, in]`: its entries, its nonzeros, and how many of its outputs and inputs have none."""

    name: str
    outputs: int
    entries: int
    nonzeros: int
    empty_outputs: int
    empty_inputs: int

    @property
    def density(self) -> float:
        """Nonzeros over entries."""
        return self.nonzeros / self.entries


@dataclass(frozen=True)
class SparsityReport:
    """All matrices of a decoder; `dead_neurons` and `dead_heads` are those that nothing reaches or that reach nothing, by layer.

    A dead neuron reads nothing (its input row, or its gate's, is zero) or writes nothing; a dead head has a value or output matrix
    of zeros only. `edges` counts nonzero weights by kind, as the circuits do.
    """

    matrices: tuple[MatrixSparsity, ...]
    dead_neurons: tuple[int, ...]
    dead_heads: tuple[int, ...]
    edges: dict[str, int]

    @property
    def density(self) -> float:
        """Nonzeros over entries of all matrices together."""
        return sum(matrix.nonzeros for matrix in self.matrices) / sum(matrix.entries for matrix in self.matrices)

    def to_frame(self) -> pd.DataFrame:
        """One row a matrix."""
        return pd.DataFrame([{**matrix.__dict__, "density": matrix.density} for matrix in self.matrices])


def sparsity_report(bridge: Any) -> SparsityReport:
    """Density, dead parts and edges of any decoder that TransformerLens bridges and whose blocks are norm, attention, norm, MLP.

    Raises `CircuitError` for a decoder built otherwise.
    """
    layout = decoder_layout(bridge)
    matrices = [_measured("embed", bridge.W_E.T)]
    if "pos_embed" in bridge.adapter.component_mapping:
        matrices.append(_measured("pos_embed", bridge.pos_embed.W_pos.T))
    edges: dict[str, int] = dict.fromkeys(("embedding", "qkv", "output", "mlp_in", "mlp_out", "unembedding"), 0)
    dead_neurons, dead_heads = [], []
    for layer in range(layout.n_layers):
        found = layer_matrices(bridge, layer)
        for name in ("q", "k", "v", "o", "fc_in", "gate", "fc_out"):
            if (matrix := getattr(found, name)) is not None:
                measured = _measured(f"blocks.{layer}.{_NAMES[name]}", matrix)
                matrices.append(measured)
                edges[_EDGES[name]] += measured.nonzeros
        dead_neurons.append(_dead_neurons(found))
        dead_heads.append(_dead_heads(found, layout.n_head, layout.n_kv_head))
    matrices.append(_measured("unembed", bridge.W_U.T))
    edges["embedding"], edges["unembedding"] = matrices[0].nonzeros, matrices[-1].nonzeros
    return SparsityReport(tuple(matrices), tuple(dead_neurons), tuple(dead_heads), edges)


_NAMES = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "o": "attn.o", "fc_in": "mlp.in", "gate": "mlp.gate", "fc_out": "mlp.out"}
_EDGES = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "output", "fc_in": "mlp_in", "gate": "mlp_in", "fc_out": "mlp_out"}


def _measured(name: str, matrix: Float[Tensor, "out in"]) -> MatrixSparsity:
    nonzero = matrix.detach() != 0
    rows, columns = nonzero.any(1), nonzero.any(0)
    return MatrixSparsity(name, len(nonzero), nonzero.numel(), int(nonzero.sum()), int((~rows).sum()), int((~columns).sum()))


def _dead_neurons(matrices: LayerMatrices) -> int:
    reads = (matrices.fc_in != 0).any(1)
    if matrices.gate is not None:
        reads = reads & (matrices.gate != 0).any(1)
    return int((~(reads & (matrices.fc_out != 0).any(0))).sum())


def _dead_heads(matrices: LayerMatrices, n_head: int, n_kv_head: int) -> int:
    values = (matrices.v != 0).any(1).view(n_kv_head, -1).any(1).repeat_interleave(n_head // n_kv_head)
    outputs = (matrices.o != 0).any(0).view(n_head, -1).any(1)
    return int((~(values & outputs)).sum())
