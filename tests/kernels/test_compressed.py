"""Compressed matrices: what comes back is what went in, and products with them are the dense ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_lens.errors import SparseLensError
from sparse_lens.kernels import compress_rows, expand, expand_rows, multiply, rows_from_mask


def matrix_of(rows: int, columns: int, density: float) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.randn(rows, columns, generator=generator) * (torch.rand(rows, columns, generator=generator) < density)


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 30), (40, 5)])
def test_there_and_back(rows: int, columns: int, density: float) -> None:
    """Bit for bit, of a transposed view too; six bytes a nonzero and four a row."""
    matrix = matrix_of(rows, columns, density)
    compressed = compress_rows(matrix)
    assert torch.equal(expand(compressed), matrix)
    assert torch.equal(expand(compress_rows(matrix.T)), matrix.T)
    assert compressed.nbytes == 6 * int(matrix.count_nonzero()) + 4 * (rows + 1)


def test_rows_are_looked_up() -> None:
    """Indices of any shape, as `F.embedding`; one that does not exist is an error, not foreign memory."""
    matrix = matrix_of(9, 20, 0.3)
    compressed, indices = compress_rows(matrix), torch.tensor([[3, 3], [0, 8]])
    assert torch.equal(expand_rows(compressed, indices), matrix[indices])
    assert expand_rows(compressed, indices[:0]).shape == (0, 2, 20)
    for wrong in (9, -1):
        with pytest.raises(IndexError, match="out of range"):
            expand_rows(compressed, torch.tensor([0, wrong]))


def test_columns_that_need_more_than_two_bytes() -> None:
    matrix = torch.zeros(2, (1 << 16) + 1)
    matrix[0, -1], matrix[1, 3] = 2.0, -1.0
    wide, narrow = compress_rows(matrix), compress_rows(matrix[:, :-1])
    assert wide.columns.dtype == np.int32 and narrow.columns.dtype == np.uint16
    assert torch.equal(expand(wide), matrix)
    assert torch.equal(multiply(torch.ones(5, matrix.shape[1]), wide), torch.tensor([[2.0, -1.0]]).expand(5, 2))


@pytest.mark.parametrize("n_inputs", [0, 1, 4, 5, 130])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_products(n_inputs: int, density: float) -> None:
    """For few inputs, which are multiplied one by one, and for many; nonzeros of a row by fours and the rest."""
    matrix = matrix_of(50, 70, density)
    x = torch.randn(n_inputs, 70, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(multiply(x, compress_rows(matrix)).double(), x.double() @ matrix.double().T, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (9, 16), (2, (1 << 16) + 1)])
def test_from_a_mask(rows: int, columns: int) -> None:
    """As from the dense matrix, the mask's last byte full or not; bits past the last entry count for nothing."""
    matrix = matrix_of(rows, columns, 0.3)
    bits, values = np.packbits(matrix.view(-1).numpy() != 0), matrix[matrix != 0].numpy()
    if matrix.numel() % 8:
        bits[-1] |= 1
    found, expected = rows_from_mask(bits, values, rows, columns), compress_rows(matrix)
    assert found is not None and torch.equal(expand(found), matrix)
    assert found.columns.dtype == expected.columns.dtype and found.starts.dtype == expected.starts.dtype
    assert rows_from_mask(bits, np.append(values, np.float32(1)), rows, columns) is None


def test_an_input_of_another_width() -> None:
    with pytest.raises(SparseLensError, match=r"the input has 140 channels, the matrix reads 70"):
        multiply(torch.zeros(3, 140), compress_rows(matrix_of(50, 70, 0.1)))
