"""Pairs that share their beginning: logits and gradients of two prompts apart, on every flavour of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.shared_prefixes import share_prefixes, takes_branches
from sparse_lens.errors import SparseLensError
from sparse_lens.hooks import load
from sparse_lens.tasks import get_task
from sparse_lens.tasks.task import PromptPair, TaskBatch

from .conftest import VOCAB, pairs, random_bridge

FLAVOURS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sink and bigram": {"sink": True, "enable_bigram_table": True},
    "concatenated positions": {"d_pos_emb": 4},
    "AbsTopK": {"afrac": 0.25},
}


def ragged(n: int = 12, seed: int = 0) -> TaskBatch:
    """Pairs of lengths 1 to 8 that fork anywhere, at their first token and nowhere included."""
    generator = np.random.default_rng(seed)
    length = 1 + np.arange(n) % 8
    clean = generator.integers(5, VOCAB, (n, 8))
    corrupt = clean.copy()
    for row, end in enumerate(length):
        fork = generator.integers(0, end + 1)
        corrupt[row, fork:] = generator.integers(5, VOCAB, 8 - fork)
    differ = clean != corrupt
    answers = np.full(n, 3), np.full(n, 4)
    return TaskBatch(clean, corrupt, differ, differ, length, *answers, (PromptPair("", "", "", ""),) * n)


def answers_apart(bridge: Any, prompts: Prompts) -> torch.Tensor:
    """Logits where the answer is, one row at a time and without padding."""
    rows = [bridge(tokens[None, : end + 1])[0, -1] for tokens, end in zip(prompts.tokens, prompts.position.tolist(), strict=True)]
    return torch.stack(rows)


def answers_shared(bridge: Any, prompts: Prompts) -> torch.Tensor:
    shared = share_prefixes(prompts)
    assert shared is not None
    logits = bridge(shared.tokens, attention_mask=shared.looks, position_ids=shared.positions)
    return logits[shared.sequence, shared.answer]


@pytest.mark.parametrize("fields", FLAVOURS.values(), ids=list(FLAVOURS))
@pytest.mark.parametrize("batch", [ragged(), pairs(6)], ids=["ragged", "last token"])
def test_logits_are_those_of_two_prompts(fields: dict[str, Any], batch: TaskBatch) -> None:
    bridge, prompts = random_bridge(**fields), both_sides(batch)
    torch.testing.assert_close(answers_shared(bridge, prompts), answers_apart(bridge, prompts), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_two_prompts() -> None:
    bridge, prompts = random_bridge(sink=True), both_sides(ragged())
    found = []
    for answers in (answers_shared, answers_apart):
        bridge.zero_grad()
        answers(bridge, prompts)[:, 3].square().sum().backward()
        found.append([parameter.grad.clone() for parameter in bridge.parameters() if parameter.grad is not None])
    assert len(found[0]) == len(found[1]) > 10
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_on_a_shipped_model() -> None:
    """Real prompts: half the tokens, the same answers."""
    bridge = load("python-sparse")
    prompts = both_sides(get_task("single_double_quote").sample(bridge.tokenizer, 8, seed=0, split="search"))
    shared = share_prefixes(prompts)
    assert shared is not None and shared.tokens.numel() < 0.7 * prompts.tokens.numel()
    torch.testing.assert_close(answers_shared(bridge, prompts), answers_apart(bridge, prompts), atol=1e-4, rtol=1e-5)


def test_what_is_no_pair_is_not_shared() -> None:
    prompts = both_sides(ragged())
    assert share_prefixes(prompts.rows(slice(0, 3))) is None
    assert share_prefixes(prompts.rows(torch.tensor([0, 0]))) is not None  # twice the same row is a pair, of equal prompts
    longer = Prompts(prompts.tokens, prompts.other, prompts.position.clone(), prompts.right, prompts.wrong, prompts.pair)
    longer.position[0] += 1
    assert share_prefixes(longer) is None


def test_masks_of_queries_and_keys() -> None:
    """Our models take branches; a mask of another type or shape is refused."""
    bridge, tokens = random_bridge(), torch.zeros(2, 4, dtype=torch.long)
    assert takes_branches(bridge)
    everything = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(bridge(tokens, attention_mask=everything), bridge(tokens))
    for wrong in (everything.long(), everything[..., :3]):
        with pytest.raises(SparseLensError, match=r"a mask of queries and keys is Boolean and of shape \(2, 1, 4, 4\)"):
            bridge(tokens, attention_mask=wrong)
