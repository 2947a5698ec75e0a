"""Attention without its pattern, against the softmax written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparse_lens.kernels import causal_attention


def random_heads(batch: int, pos: int, key: int, head: int, d_head: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + 10 * key + d_head)
    q = scale * torch.randn(batch, pos, head, d_head, generator=generator)
    return q, *(torch.randn(batch, head, key, d_head, generator=generator) for _ in range(2))


def written_out(q: Tensor, keys: Tensor, values: Tensor, sink: Tensor | None) -> Tensor:
    """Query by query: the exponentials of the scores up to its own position, over their sum and the sink's."""
    batch, pos, head, d_head = q.shape
    out = torch.empty(q.shape, dtype=torch.float64)
    for row in range(batch):
        for h in range(head):
            for query in range(pos):
                seen = query + 1 + keys.shape[2] - pos
                scores = keys[row, h, :seen].double() @ q[row, query, h].double() / math.sqrt(d_head)
                logits = scores if sink is None else torch.cat([scores, sink[h : h + 1].double()])
                out[row, query, h] = logits.softmax(0)[:seen] @ values[row, h, :seen].double()
    return out


@pytest.mark.parametrize("with_sink", [True, False])
@pytest.mark.parametrize(
    ("batch", "pos", "key", "head", "d_head"), [(1, 1, 1, 1, 1), (2, 9, 9, 3, 5), (1, 3, 20, 2, 8), (1, 70, 70, 2, 16)]
)
def test_it_equals_the_softmax(batch: int, pos: int, key: int, head: int, d_head: int, with_sink: bool) -> None:
    """With the queries all positions or the last of them, widths that fill a sweep of four channels and widths that do not."""
    q, keys, values = random_heads(batch, pos, key, head, d_head)
    sink = torch.linspace(-2, 2, head) if with_sink else None
    found = causal_attention(q, keys, values, sink)
    assert torch.allclose(found.double(), written_out(q, keys, values, sink), atol=2e-6)


def test_channels_that_abstopk_has_cleared() -> None:
    """Any number of zeros in a query, none and all of them too: then it attends to all keys alike."""
    q, keys, values = random_heads(1, 9, 9, 1, 8)
    for row in range(9):
        q[0, row, 0, row:] = 0
    assert torch.allclose(causal_attention(q, keys, values, None).double(), written_out(q, keys, values, None), atol=2e-6)
    assert torch.allclose(causal_attention(q, keys, values, None)[0, 0, 0], values[0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 50.0, 1e4])
def test_scores_of_any_size(scale: float) -> None:
    """Nothing overflows or is lost: the greatest score takes all where the others are far below."""
    q, keys, values = random_heads(1, 12, 12, 2, 4, scale)
    for sink in (None, torch.tensor([-1e4, 1e4])):
        found = causal_attention(q, keys, values, sink)
        assert found.isfinite().all()
        assert torch.allclose(found.double(), written_out(q, keys, values, sink), atol=1e-4 if scale > 100 else 1e-5)


def test_strided_inputs_and_threads() -> None:
    """Views as the forward pass makes them, and the same bits whatever the number of threads."""
    q, keys, values = random_heads(2, 80, 80, 4, 8)
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, keys, values)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(causal_attention(strided[0], strided[1], strided[2], torch.zeros(4)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], causal_attention(q, keys, values, torch.zeros(4)))
