"""Generation with the key-value cache: the same tokens as without, in the bridge and in Hugging Face's `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from sparse_lens.errors import SparseLensError
from sparse_lens.models import CircuitGPTForCausalLM

pytestmark = pytest.mark.tool(
    "generate, greedy, sampling and beams, with a key-value cache",
    limits="the bridge stops at the model's positions with an error; Hugging Face's generate moves the window on",
)

QUIET = {"verbose": False, "return_type": "tokens", "stop_at_eos": False}


@pytest.fixture
def prompt() -> Tensor:
    return torch.tensor([[3, 1, 4], [1, 5, 9]])


@torch.no_grad()
def greedy_by_hand(core: Any, tokens: Tensor, steps: int, size: int) -> Tensor:
    for _ in range(steps):
        tokens = torch.cat([tokens, core(tokens[:, -size:])[:, -1:].argmax(-1)], dim=1)
    return tokens


def test_bridge_greedy(architecture: TransformerBridge, prompt: Tensor) -> None:
    assert architecture.adapter.supports_kv_cache
    expected = greedy_by_hand(architecture.original_model.core, prompt, 9, 12)
    for cached in (True, False):
        found = architecture.generate(prompt, max_new_tokens=9, do_sample=False, use_past_kv_cache=cached, **QUIET)
        assert torch.equal(found, expected)


def test_bridge_sampling(architecture: TransformerBridge, prompt: Tensor) -> None:
    drawn = []
    for cached in (True, False):
        torch.manual_seed(7)
        drawn.append(architecture.generate(prompt, max_new_tokens=9, temperature=1.5, top_k=7, use_past_kv_cache=cached, **QUIET))
    assert torch.equal(*drawn)
    torch.manual_seed(8)
    assert not torch.equal(drawn[0], architecture.generate(prompt, max_new_tokens=9, temperature=1.5, top_k=7, **QUIET))


@pytest.mark.parametrize("steps", [9, 15])
def test_hugging_face_greedy(
    architecture: TransformerBridge, prompt: Tensor, steps: int, random_model: Callable[..., CircuitGPTForCausalLM]
) -> None:
    """Also past the model's 12 positions, where the window moves on and no key can be kept."""
    model = architecture.original_model
    expected = greedy_by_hand(model.core, prompt, steps, 12)
    for cached in (True, False):
        found = model.generate(prompt, max_new_tokens=steps, do_sample=False, use_cache=cached, pad_token_id=0)
        assert torch.equal(found, expected)


def test_beams(architecture: TransformerBridge, prompt: Tensor) -> None:
    found = [
        architecture.original_model.generate(prompt, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=c, pad_token_id=0)
        for c in (True, False)
    ]
    assert torch.equal(*found)


def test_left_padded_rows_generate_as_alone(architecture: TransformerBridge) -> None:
    model = architecture.original_model
    padded = torch.tensor([[0, 0, 7, 2], [3, 1, 4, 1]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    both = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    alone = model.generate(padded[:1, 2:], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(both[0, 2:], alone[0])


@torch.no_grad()
def test_cache_in_pieces(architecture: TransformerBridge) -> None:
    """Logits of a sequence given in three pieces equal those of the whole."""
    tokens = torch.randint(23, (2, 11), generator=torch.Generator().manual_seed(1))
    model, past = architecture.original_model, DynamicCache(config=architecture.original_model.config)
    pieces = [model(piece, past_key_values=past, use_cache=True).logits for piece in tokens.split([4, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens).logits, atol=1e-5, rtol=0)
    assert past.get_seq_length() == 11


def test_an_edit_of_a_key_is_remembered(architecture: TransformerBridge, prompt: Tensor) -> None:
    def silence(k: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(k)

    with architecture.hooks(fwd_hooks=[("blocks.0.attn.hook_k", silence)]):
        cached, uncached = (
            architecture.generate(prompt, max_new_tokens=8, do_sample=False, use_past_kv_cache=c, **QUIET) for c in (True, False)
        )
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, architecture.generate(prompt, max_new_tokens=8, do_sample=False, **QUIET))


def test_hooks_see_one_position_at_a_time(architecture: TransformerBridge, prompt: Tensor) -> None:
    seen: list[tuple[int, ...]] = []
    with architecture.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: seen.append(tuple(x.shape[-2:])))]):
        architecture.generate(prompt, max_new_tokens=4, do_sample=False, **QUIET)
    assert seen == [(3, 3), (1, 4), (1, 5), (1, 6)]


def test_limits_are_said(architecture: TransformerBridge, prompt: Tensor) -> None:
    with pytest.raises(SparseLensError, match="block_size=12"):
        architecture.generate(prompt, max_new_tokens=12, do_sample=False, **QUIET)
    with pytest.raises(SparseLensError, match=r"token id 23 .* vocab_size=23"):
        architecture(torch.tensor([[1, 23]]))
    with pytest.raises(SparseLensError, match="token id -1"):
        architecture(torch.tensor([[-1, 2]]))
    with pytest.raises(SparseLensError, match="holds no token"):
        architecture.original_model(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(SparseLensError, match=r"the attention mask has the shape \(1, 2\)"):
        architecture.original_model(torch.tensor([[1, 2, 3]]), attention_mask=torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(SparseLensError, match="13 tokens"):
        architecture.original_model(torch.tensor([[1]]), position_ids=torch.tensor([[12]]))
