"""Matrices held by their nonzeros alone, for inference in float32 on the CPU.

A value takes four bytes, its place two where the matrix has at most 65,536 columns: at density d that is 1.5 d of the dense matrix.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.kernels.products import CompressedRows, find_nonzeros


def compress_rows(matrix: Float[Tensor, "row column"]) -> CompressedRows:
    """The nonzeros of a float32 matrix on the CPU, row by row, at the least width that their places fit in."""
    dense = matrix.detach().contiguous().numpy()
    starts, columns, values = find_nonzeros(dense)
    return CompressedRows(starts, columns.astype(_place_type(dense.shape[1])), values, dense.shape[1])


def rows_from_mask(bits: np.ndarray, values: np.ndarray, n_rows: int, n_columns: int) -> CompressedRows | None:
    """The same from a bit mask (uint8, row by row, the first entry in the highest bit) and the values of the entries it marks.

    The dense matrix is never made. None if the mask marks another number of entries than there are values.
    """
    starts = _count_marked(bits, n_rows, n_columns)
    if starts[-1] != len(values):
        return None
    columns = np.empty(len(values), _place_type(n_columns))
    _place_marked(bits, n_rows, n_columns, columns)
    return CompressedRows(starts.astype(np.int32), columns, values.astype(np.float32), n_columns)


def _place_type(n_columns: int) -> type:
    return np.uint16 if n_columns <= 1 << 16 else np.int32


def expand_rows(rows: CompressedRows, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape column"]:
    """The rows at `indices` as a dense tensor: an embedding's lookup. Raises `IndexError` as `F.embedding` does."""
    wanted, n_rows = indices.detach().reshape(-1), len(rows.starts) - 1
    if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < n_rows:
        raise IndexError(f"index out of range: rows {int(wanted.min())} to {int(wanted.max())} were asked of {n_rows}")
    out = torch.zeros(len(wanted), rows.n_columns)
    _expand(rows.starts, rows.columns, rows.values, wanted.numpy(), out.numpy())
    return out.view(*indices.shape, rows.n_columns)


def expand(rows: CompressedRows) -> Float[Tensor, "row column"]:
    """The whole matrix, dense."""
    return expand_rows(rows, torch.arange(len(rows.starts) - 1))


@numba.njit(cache=True, nogil=True)
def _count_marked(bits: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """Where each row's marked entries start, and where the last ones end."""
    starts = np.zeros(n_rows + 1, np.int64)
    for at in range(bits.size):
        if bits[at] != 0:
            for bit in range(8):
                entry = at * 8 + bit
                if entry < n_rows * n_columns and bits[at] & (128 >> bit):
                    starts[entry // n_columns + 1] += 1
    for row in range(n_rows):
        starts[row + 1] += starts[row]
    return starts


@numba.njit(cache=True, nogil=True)
def _place_marked(bits: np.ndarray, n_rows: int, n_columns: int, columns: np.ndarray) -> None:
    """The columns of the marked entries, row by row."""
    place = 0
    for at in range(bits.size):
        if bits[at] != 0:
            for bit in range(8):
                entry = at * 8 + bit
                if entry < n_rows * n_columns and bits[at] & (128 >> bit):
                    columns[place] = entry % n_columns
                    place += 1


@numba.njit(cache=True, nogil=True)
def _expand(starts: np.ndarray, columns: np.ndarray, values: np.ndarray, wanted: np.ndarray, out: np.ndarray) -> None:
    for at in range(wanted.size):
        line, row = out[at], wanted[at]
        for place in range(starts[row], starts[row + 1]):
            line[columns[place]] = values[place]
