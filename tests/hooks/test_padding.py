"""Padded batches: a row's logits are those of the row alone, whichever side the padding is on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.hooks import load

pytestmark = pytest.mark.tool("left- and right-padded batches")

PAD = 22
ROWS = ([3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9])


def padded(side: str) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in ROWS)
    tokens, mask = [], []
    for row in ROWS:
        missing = width - len(row)
        filler, real = [PAD] * missing, [1] * len(row)
        tokens.append(filler + row if side == "left" else row + filler)
        mask.append([0] * missing + real if side == "left" else real + [0] * missing)
    return torch.tensor(tokens), torch.tensor(mask)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_equal_the_rows_alone(architecture: TransformerBridge, side: str) -> None:
    tokens, mask = padded(side)
    for model in (architecture, lambda ids, attention_mask: architecture.original_model(ids, attention_mask=attention_mask).logits):
        logits = model(tokens, attention_mask=mask)
        for row, found, real in zip(ROWS, logits, mask.bool(), strict=True):
            torch.testing.assert_close(found[real], architecture(torch.tensor([row]))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing_in_the_cache(architecture: TransformerBridge, side: str) -> None:
    tokens, mask = padded(side)
    _, cache = architecture.run_with_cache(tokens, attention_mask=mask)
    _, alone = architecture.run_with_cache(torch.tensor([ROWS[1]]))
    real = mask[1].bool()
    for name in ("blocks.1.hook_resid_post", "blocks.0.attn.hook_z", "blocks.1.mlp.hook_post"):
        torch.testing.assert_close(cache[name][1, real], alone[name][0], atol=1e-5, rtol=0)
    pattern = cache["blocks.0.attn.hook_pattern"][1][:, real]
    assert torch.equal(pattern[:, :, ~real], torch.zeros_like(pattern[:, :, ~real]))
    torch.testing.assert_close(pattern[:, :, real], alone["blocks.0.attn.hook_pattern"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_batches_of_strings(side: str) -> None:
    """The bridge derives the mask itself, from the tokenizer's padding."""
    bridge = load("python-sparse")
    texts = ["for i in range(10):\n    print(i)", "x = [1, 2", "def f(a, b):\n    return a"]
    logits = bridge(texts, padding_side=side)
    for text, found in zip(texts, logits, strict=True):
        alone = bridge(text)[0]
        real = found[-len(alone) :] if side == "left" else found[: len(alone)]
        torch.testing.assert_close(real, alone, atol=1e-5, rtol=0)
