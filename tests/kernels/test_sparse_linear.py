"""The sparse product against `F.linear`: outputs, gradients of all orders, and the places where it must step aside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.kernels import compress, sparse_linear


def weight_of(d_out: int, d_in: int, density: float) -> Tensor:
    generator = torch.Generator().manual_seed(d_out * 1000 + d_in)
    weight = torch.randn(d_out, d_in, generator=generator)
    return weight * (torch.rand(d_out, d_in, generator=generator) < density)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize(("d_out", "d_in"), [(1, 1), (16, 7), (33, 64), (50, 3)])
@pytest.mark.parametrize("rows", [(1,), (63,), (2, 65), (1, 3, 64)])
def test_it_equals_the_dense_product(d_out: int, d_in: int, density: float, rows: tuple[int, ...]) -> None:
    """Output and all three gradients, for sizes that fill blocks and tiles, and sizes that do not; empty rows give the bias."""
    weight = weight_of(d_out, d_in, density).requires_grad_()
    bias = torch.randn(d_out, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x = torch.randn(*rows, d_in, generator=torch.Generator().manual_seed(2)).requires_grad_()
    sparse, dense = sparse_linear(x, weight, bias, compress(weight)), F.linear(x, weight, bias)
    assert torch.allclose(sparse, dense, atol=1e-5)
    upstream = torch.randn(dense.shape, generator=torch.Generator().manual_seed(3))
    found, expected = (torch.autograd.grad(out, (x, weight, bias), upstream) for out in (sparse, dense))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_without_bias_and_without_gradients() -> None:
    """A frozen weight gets none; an input that needs none costs none."""
    weight, x = weight_of(8, 6, 0.5), torch.randn(5, 6, requires_grad=True)
    out = sparse_linear(x, weight, None, compress(weight))
    assert torch.allclose(out, F.linear(x, weight), atol=1e-6)
    out.sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, weight.sum(0).expand(5, 6), atol=1e-5)


def test_second_derivatives() -> None:
    """On the graph the backward pass is the dense one, so that it can be differentiated again."""
    weight = weight_of(5, 4, 0.5).requires_grad_()
    x = torch.randn(3, 4, requires_grad=True)
    second = []
    for out in (sparse_linear(x, weight, None, compress(weight)), F.linear(x, weight)):
        (first,) = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.pow(2).sum(), weight)[0])
    assert torch.allclose(*second, rtol=1e-4)


def test_where_it_steps_aside() -> None:
    """Other types, autocast, vmap and a weight without compressed form take the dense product."""
    weight, x = weight_of(5, 4, 0.5), torch.randn(3, 4)
    compressed = compress(weight)
    assert compress(weight.double()) is None and compress(weight.bfloat16()) is None
    assert torch.equal(sparse_linear(x, weight, None, None), F.linear(x, weight))
    assert torch.equal(sparse_linear(x.double(), weight.double(), None, compressed), F.linear(x.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse_linear(x, weight, None, compressed).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda row: sparse_linear(row[None], weight, None, compressed)[0])(x)
    assert torch.allclose(mapped, F.linear(x, weight), atol=1e-6)


def test_zero_rows() -> None:
    assert sparse_linear(torch.zeros(0, 4), weight_of(5, 4, 0.5), None, compress(weight_of(5, 4, 0.5))).shape == (0, 5)
