"""Products with a sparse weight: `F.linear` that reads the nonzeros only, with the gradient of the dense weight.

Rows of the input are taken 64 at a time, transposed into a buffer that stays in the cache, and every nonzero adds a multiple of one
line of it to one line of the output; four rows or fewer are multiplied one by one. In numba, for float32 on the CPU; elsewhere the
product is `F.linear`. The order of the sums differs, so the two agree to rounding; where the weight is zero, an infinite input
makes no difference here, and NaN there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.errors import SparseLensError
from sparse_lens.kernels.threads import share_rows

BLOCK = 64
"""Input rows taken together: the fastest of 32, 64, 128 and 256 on processors with 256-bit registers."""

FEW = 4
"""Up to so many input rows are multiplied one by one: a block takes as long whether it is full or not."""


@dataclass(frozen=True, eq=False)
class CompressedRows:
    """The nonzeros of a matrix, row by row: those of row r lie from `starts[r]` to `starts[r + 1]`."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    n_columns: int

    @property
    def shape(self) -> torch.Size:
        """Rows and columns."""
        return torch.Size((len(self.starts) - 1, self.n_columns))

    @property
    def nbytes(self) -> int:
        """Bytes that the nonzeros and their places take."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes


@dataclass(frozen=True, eq=False)
class CompressedWeight:
    """A weight `[d_out d_in]` for the forward product and its transpose for the gradient, and which tensor it was made from."""

    rows: CompressedRows
    transposed: CompressedRows
    source: tuple[int, int]

    def fits(self, weight: Tensor) -> bool:
        """Whether `weight` is the tensor that this was made from, unchanged: changes by way of `.data` alone go unseen."""
        return self.source == (weight.data_ptr(), weight._version)


def compress(weight: Float[Tensor, "d_out d_in"]) -> CompressedWeight | None:
    """The compressed form of a float32 weight on the CPU; None for any other, which is multiplied as it is."""
    weight = weight.detach()
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or type(weight) is not Tensor or weight.numel() == 0:
        return None
    source = (weight.data_ptr(), weight._version)
    dense = weight.contiguous().numpy()
    rows = CompressedRows(*find_nonzeros(dense), dense.shape[1])
    transposed = CompressedRows(*_transpose(rows.starts, rows.columns, rows.values, dense.shape[1]), dense.shape[0])
    return CompressedWeight(rows, transposed, source)


def sparse_linear(
    x: Float[Tensor, "*rows d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
    compressed: CompressedWeight | None,
) -> Float[Tensor, "*rows d_out"]:
    """`F.linear(x, weight, bias)` by way of the weight's nonzeros; the gradient of `weight` is that of a dense one.

    Falls back to `F.linear` without `compressed` or if `weight` has changed since, for other types than float32, off the CPU,
    under autocast, `torch.compile`, and function transforms.
    """
    plain = x.dtype != torch.float32 or x.device.type != "cpu" or type(x) not in (Tensor, torch.nn.Parameter)
    if plain or x.ndim < 2 or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu") or compressed is None or not compressed.fits(weight):
        return F.linear(x, weight, bias)
    return _SparseLinear.apply(x, weight, bias, compressed)  # pyright: ignore[reportReturnType]


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, compressed: CompressedWeight
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.compressed, ctx.has_bias = compressed, bias is not None
        out = multiply(x, compressed.rows)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            on_graph = torch.is_grad_enabled() or gradient.dtype != torch.float32
            of_x = gradient @ weight if on_graph else multiply(gradient, ctx.compressed.transposed)
        if ctx.needs_input_grad[1]:
            of_weight = flat.T @ x.flatten(0, -2)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = flat.sum(0)
        return of_x, of_weight, of_bias, None


def multiply(x: Float[Tensor, "*rows d_in"], rows: CompressedRows) -> Float[Tensor, "*rows d_out"]:
    """`x @ matrix.T` for float32 on the CPU, without a gradient. Raises `SparseLensError` for inputs of another width."""
    if x.shape[-1] != rows.n_columns:
        raise SparseLensError(f"the input has {x.shape[-1]} channels, the matrix reads {rows.n_columns}; is it another layer's?")
    flat = x.detach().reshape(-1, rows.n_columns).contiguous()
    out = torch.empty(flat.shape[0], len(rows.starts) - 1)
    inputs, outputs = flat.numpy(), out.numpy()
    kernel = _multiply_few if len(inputs) <= FEW else _multiply
    share_rows(lambda part: kernel(rows.starts, rows.columns, rows.values, inputs[part], outputs[part]), len(inputs), least=BLOCK)
    return out.view(*x.shape[:-1], out.shape[1])


@numba.njit(cache=True, nogil=True)
def find_nonzeros(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, columns and values of the nonzeros of a matrix."""
    n_rows, n_columns = dense.shape
    starts = np.zeros(n_rows + 1, dtype=np.int32)
    for row in range(n_rows):
        count = np.int32(0)
        for column in range(n_columns):
            count += dense[row, column] != 0
        starts[row + 1] = starts[row] + count
    columns, values = np.empty(starts[n_rows], dtype=np.int32), np.empty(starts[n_rows], dtype=np.float32)
    for row in range(n_rows):
        place = starts[row]
        for column in range(n_columns):
            if dense[row, column] != 0:
                columns[place], values[place] = column, dense[row, column]
                place += 1
    return starts, columns, values


@numba.njit(cache=True, nogil=True)
def _transpose(
    starts: np.ndarray, columns: np.ndarray, values: np.ndarray, n_columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same nonzeros, column by column."""
    new_starts = np.zeros(n_columns + 1, dtype=np.int32)
    for place in range(columns.size):
        new_starts[columns[place] + 1] += 1
    for column in range(n_columns):
        new_starts[column + 1] += new_starts[column]
    nexts = new_starts.copy()
    new_columns, new_values = np.empty(columns.size, dtype=np.int32), np.empty(columns.size, dtype=np.float32)
    for row in range(starts.size - 1):
        for place in range(starts[row], starts[row + 1]):
            target = nexts[columns[place]]
            nexts[columns[place]] += 1
            new_columns[target], new_values[target] = row, values[place]
    return new_starts, new_columns, new_values


@numba.njit(cache=True, nogil=True, fastmath=True)
def _multiply_few(starts: np.ndarray, columns: np.ndarray, values: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """out = x @ matrix.T, one sum after the other, each as four that need not wait for one another."""
    for first in range(x.shape[0]):
        row, line = x[first], out[first]
        for o in range(starts.size - 1):
            t0 = t1 = t2 = t3 = np.float32(0)
            place, end = starts[o], starts[o + 1]
            while place + 4 <= end:
                t0 += values[place] * row[columns[place]]
                t1 += values[place + 1] * row[columns[place + 1]]
                t2 += values[place + 2] * row[columns[place + 2]]
                t3 += values[place + 3] * row[columns[place + 3]]
                place += 4
            while place < end:
                t0 += values[place] * row[columns[place]]
                place += 1
            line[o] = (t0 + t1) + (t2 + t3)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _multiply(starts: np.ndarray, columns: np.ndarray, values: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """out = x @ matrix.T, in blocks of `BLOCK` rows of x and 16 of the matrix: a line of the cache is written at once."""
    n_rows, n_in = x.shape
    n_out = starts.size - 1
    block, tile = np.zeros((n_in, BLOCK), dtype=np.float32), np.empty((16, BLOCK), dtype=np.float32)
    for first in range(0, n_rows, BLOCK):
        width = min(BLOCK, n_rows - first)
        for c in range(width):
            row = x[first + c]
            for j in range(n_in):
                block[j, c] = row[j]
        for o in range(n_out):
            total = tile[o & 15]
            for c in range(BLOCK):
                total[c] = np.float32(0)
            place, end = starts[o], starts[o + 1]
            while place + 4 <= end:  # four nonzeros a sweep: the sums are read and written a quarter as often
                v0, v1, v2, v3 = values[place], values[place + 1], values[place + 2], values[place + 3]
                b0, b1 = block[columns[place]], block[columns[place + 1]]
                b2, b3 = block[columns[place + 2]], block[columns[place + 3]]
                for c in range(BLOCK):
                    total[c] += v0 * b0[c] + v1 * b1[c] + v2 * b2[c] + v3 * b3[c]
                place += 4
            while place < end:
                v0, b0 = values[place], block[columns[place]]
                for c in range(BLOCK):
                    total[c] += v0 * b0[c]
                place += 1
            if o & 15 == 15 or o == n_out - 1:
                base = o - (o & 15)
                for c in range(width):
                    line = out[first + c]
                    for q in range(o - base + 1):
                        line[base + q] = tile[q, c]
