"""The sparse product against `F.linear`: outputs, gradients of all orders, and the places where it must step aside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.kernels import compress, share_rows, sparse_linear
from sparse_lens.models.core import Linear


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
    assert compressed is not None and compress(weight.new_zeros(0, 4)) is None
    assert compress(weight.double()) is None and compress(weight.bfloat16()) is None
    assert torch.equal(sparse_linear(x, weight, None, None), F.linear(x, weight))
    assert torch.equal(sparse_linear(x.double(), weight.double(), None, compressed), F.linear(x.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse_linear(x, weight, None, compressed).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda row: sparse_linear(row[None], weight, None, compressed)[0])(x)
    assert torch.allclose(mapped, F.linear(x, weight), atol=1e-6)


def test_zero_rows() -> None:
    assert sparse_linear(torch.zeros(0, 4), weight_of(5, 4, 0.5), None, compress(weight_of(5, 4, 0.5))).shape == (0, 5)


def test_a_changed_weight_is_multiplied_as_it_is() -> None:
    """In place, by optimizer or hand; another tensor in its place; a copy: none takes the old nonzeros."""
    layer = Linear(6, 5)
    x = torch.randn(3, 6)
    with torch.no_grad():
        layer.weight.copy_(weight_of(5, 6, 0.3))
    layer.compressed = compress(layer.weight)
    assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-6)
    copied = copy.deepcopy(layer)
    copied.load_state_dict({name: torch.ones_like(tensor) for name, tensor in layer.state_dict().items()})
    assert torch.equal(copied(x), F.linear(x, torch.ones(5, 6), torch.ones(5)))
    zeros = {"weight": torch.zeros(5, 6), "bias": torch.zeros(5)}
    assert torch.equal(torch.func.functional_call(layer, zeros, (x,)), torch.zeros(3, 5))
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_rows_are_shared_once() -> None:
    """A thread of the pool that shares rows itself does them alone instead of waiting for ever; errors come out."""
    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        share_rows(lambda part: share_rows(lambda inner: seen.append(inner.stop - inner.start), 8, least=1), 2, least=1)
        with pytest.raises(ZeroDivisionError):
            share_rows(lambda part: 1 // (part.start - 1), 2, least=1)
    finally:
        torch.set_num_threads(before)
    assert sum(seen) == 16
