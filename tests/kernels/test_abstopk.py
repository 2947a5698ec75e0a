"""AbsTopK: the fast form keeps what `torch.topk` keeps, and has its gradient; ties still keep exactly k."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from sparse_lens.kernels import abs_topk, abs_topk_mask

BOTH_FORMS = pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])

MAGNITUDES = st.floats(0, 2.0**100, width=32)
FEW_VALUES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0])


def matrices(elements: st.SearchStrategy[float], *, unique: bool = False) -> st.SearchStrategy[Tensor]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)
    return arrays.arrays(np.float32, shapes, elements=elements, unique=unique).map(torch.from_numpy)


def draw_k(data: st.DataObject, x: Tensor) -> int:
    return data.draw(st.integers(0, x.shape[-1]), label="k")


def plain_python(row: list[float], k: int) -> list[float]:
    """The k entries of largest magnitude of a list without ties, written the obvious way."""
    kept = sorted(range(len(row)), key=lambda j: abs(row[j]))[len(row) - k :]
    return [value if j in kept else 0.0 for j, value in enumerate(row)]


@BOTH_FORMS
@given(data=st.data())
def test_it_keeps_the_largest_magnitudes(fast: bool, data: st.DataObject) -> None:
    """Without ties there is one right answer, and both forms give it."""
    x = data.draw(matrices(MAGNITUDES, unique=True))
    x = torch.where(torch.arange(x.numel()).view(x.shape) % 3 == 0, -x, x)
    k = draw_k(data, x)
    assert abs_topk(x, k, fast=fast).tolist() == [plain_python(row, k) for row in x.tolist()]


@BOTH_FORMS
@given(data=st.data())
def test_ties_keep_exactly_k_of_the_right_magnitudes(fast: bool, data: st.DataObject) -> None:
    """Which of several equal magnitudes stays is free; how many stay is not, and none is smaller than one dropped."""
    x = data.draw(matrices(FEW_VALUES))
    k = draw_k(data, x)
    x.requires_grad_()
    out = abs_topk(x, k, fast=fast)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    kept = gradient == 1
    assert kept.sum(-1).tolist() == [k] * len(x)
    assert torch.equal(out, torch.where(kept, x, 0))
    for row, mask in zip(x.detach().abs(), kept, strict=True):
        assert not (0 < k < len(row)) or row[mask].min() >= row[~mask].max()


def test_the_fast_form_breaks_ties_by_the_lowest_index() -> None:
    """Its choice among equal magnitudes is fixed, whatever the sign."""
    x = torch.tensor([[1.0, -2.0, 2.0, -1.0, 1.0, 2.0]])
    assert abs_topk(x, 4, fast=True).tolist() == [[1.0, -2.0, 2.0, 0.0, 0.0, 2.0]]


@given(data=st.data())
def test_the_forms_have_the_same_gradient(data: st.DataObject) -> None:
    """A hard mask: the gradient passes the kept entries unchanged and nothing else, in both forms bit for bit."""
    x = data.draw(matrices(MAGNITUDES, unique=True)).requires_grad_()
    k = draw_k(data, x)
    upstream = torch.linspace(-1, 1, x.numel()).view(x.shape)
    (plain,) = torch.autograd.grad(abs_topk(x, k), x, upstream)
    (fast,) = torch.autograd.grad(abs_topk(x, k, fast=True), x, upstream)
    expected = upstream if k >= x.shape[-1] else upstream * abs_topk_mask(x.detach(), k)
    assert torch.equal(plain, expected)
    assert torch.equal(fast, expected)


def test_bfloat16_is_cut_as_float32_is() -> None:
    """Rounding to bfloat16 first and cutting then is one function in both forms, values and gradient, ties by index."""
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    upstream = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.float().requires_grad_()
    expected = abs_topk(exact, 24, fast=True)
    (gradient,) = torch.autograd.grad(expected, exact, upstream.float())
    half = x.clone().requires_grad_()
    found = abs_topk(half, 24, fast=True)
    assert found.dtype == torch.bfloat16 and torch.equal(found.float(), expected)
    (half_gradient,) = torch.autograd.grad(found, half, upstream)
    assert torch.equal(half_gradient.float(), gradient)
    assert (abs_topk(x, 24) != 0).sum() == (found != 0).sum()


@BOTH_FORMS
def test_strided_inputs_and_gradients(fast: bool) -> None:
    """Slices and transposes, forward and backward, give what their contiguous copies give."""
    base = torch.randn(6, 8, 10, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(10, 8, 6, generator=torch.Generator().manual_seed(1)).permute(2, 1, 0)[::2, 1:, ::3].mT
    strided = base[::2, 1:, ::3].mT.detach().requires_grad_()
    copied = strided.detach().contiguous().requires_grad_()
    out, expected = abs_topk(strided, 3, fast=fast), abs_topk(copied, 3)
    assert torch.equal(out, expected)
    (gradient,) = torch.autograd.grad(out, strided, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, copied, upstream.contiguous())
    assert torch.equal(gradient, expected_gradient)


@BOTH_FORMS
def test_the_ends(fast: bool) -> None:
    """k = 0 keeps nothing, k = width or more keeps everything, and no rows are no trouble."""
    x = torch.tensor([[3.0, -1.0, 2.0]])
    assert abs_topk(x, 0, fast=fast).tolist() == [[0.0, 0.0, 0.0]]
    assert torch.equal(abs_topk(x, 3, fast=fast), x)
    assert torch.equal(abs_topk(x, 99, fast=fast), x)
    assert abs_topk(torch.zeros(0, 3), 2, fast=fast).shape == (0, 3)


@BOTH_FORMS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(fast: bool, dtype: torch.dtype) -> None:
    """The fast form is float32's; asking for it elsewhere falls back and keeps the dtype."""
    x = torch.tensor([[0.5, -3.0, 2.0, 1.0]], dtype=dtype)
    out = abs_topk(x, 2, fast=fast)
    assert out.dtype == dtype
    assert out.tolist() == [[0.0, -3.0, 2.0, 0.0]]


@BOTH_FORMS
def test_the_input_is_left_alone(fast: bool) -> None:
    """Neither form writes into its argument."""
    x = torch.randn(4, 9)
    before = x.clone()
    abs_topk(x, 2, fast=fast)
    assert torch.equal(x, before)


def test_leading_axes_are_rows() -> None:
    """Any number of leading axes: each last-axis vector is a row of its own."""
    x = torch.randn(2, 3, 4, 7)
    for form in (False, True):
        out = abs_topk(x, 3, fast=form)
        assert torch.equal(out.view(-1, 7), abs_topk(x.view(-1, 7), 3))
