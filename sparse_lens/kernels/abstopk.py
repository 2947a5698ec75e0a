"""AbsTopK: keep the k entries of largest magnitude per row, with the gradient through the kept entries only.

Two forms with one meaning. The plain form is `torch.topk`, the reference's (openai/circuit_sparsity,
`circuit_sparsity/inference/gpt.py`); the fast form bisects the bit pattern of |x|, in numba. They differ only where equal
magnitudes straddle the cut: both keep exactly k, the plain form whichever `torch.topk` picks (which differs between
devices), the fast form the lowest indices. Equal nonzero magnitudes hardly occur in float32, often in bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.kernels.selection import MAGNITUDE_BITS, apply_mask, keep_largest_rows
from sparse_lens.kernels.threads import share_rows


def abs_topk_mask(x: Float[Tensor, "*rows d"], k: int) -> Bool[Tensor, "*rows d"]:
    """Mask of the k entries of largest magnitude in each row, by `torch.topk`."""
    indices = x.abs().topk(k, dim=-1).indices
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, indices, True)


def abs_topk(x: Float[Tensor, "*rows d"], k: int, *, fast: bool = False) -> Float[Tensor, "*rows d"]:
    """Zero all but the k entries of largest magnitude in each row.

    A hard mask: the gradient flows through the kept entries and through nothing else. `fast` asks for the numba form,
    which is used for float32 and bfloat16 on the CPU and falls back to the plain one elsewhere, under `torch.compile`, and
    under function transforms (`torch.func.vmap`, `jacrev` and their kin).
    """
    if k >= x.shape[-1]:
        return x
    if fast and _has_fast_form(x):
        return _FastAbsTopK.apply(x, k)  # pyright: ignore[reportReturnType]
    return torch.where(abs_topk_mask(x.detach(), k), x, 0)  # not a product: what is dropped may be infinite


def _has_fast_form(x: Tensor) -> bool:
    """Whether the numbers of `x` lie in this process's memory, in a type that the numba form knows."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.dtype in _PATTERNS
    return plain and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


_LEAST_ENTRIES = 1 << 17
"""A thread's share takes a third of a millisecond at least, ten times what it takes to hand it over."""


class _FastAbsTopK(torch.autograd.Function):
    """The numba form; the backward pass multiplies by the stored mask in one sweep, or on the graph if there is to be one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = x.detach().contiguous()
        out, mask = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.bool)
        width = rows.shape[-1]
        bits = _bits(rows.view(-1, width))
        cleared, kept, sign = _bits(out.view(-1, width)), mask.view(-1, width).numpy(), MAGNITUDE_BITS[bits.dtype.name]
        least = max(1, _LEAST_ENTRIES // width)
        share_rows(lambda part: keep_largest_rows(bits[part], sign, k, cleared[part], kept[part]), len(bits), least=least)
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)
        return out

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, k: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG004
        return tangent * ctx.saved_tensors[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (mask,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not _has_fast_form(grad):
            return grad * mask, None
        grad = grad.contiguous()
        out = torch.empty_like(grad)
        bits, kept, cleared = _bits(grad.view(-1)), mask.view(-1).numpy(), _bits(out.view(-1))
        share_rows(lambda part: apply_mask(bits[part], kept[part], cleared[part]), len(bits), least=1 << 16)
        return out, None


_PATTERNS: dict[torch.dtype, tuple[torch.dtype, type]] = {
    torch.float32: (torch.int32, np.uint32),
    torch.bfloat16: (torch.int16, np.uint16),
}


def _bits(tensor: Tensor) -> np.ndarray:
    """The bit patterns of a contiguous tensor, in place; numpy has no bfloat16, hence the way over integers."""
    integers, unsigned = _PATTERNS[tensor.dtype]
    return tensor.view(integers).numpy().view(unsigned)
