"""Controls made from a task: the same prompts, labels without a reason."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from sparse_lens.data import END_OF_TEXT
from sparse_lens.errors import UnknownNameError
from sparse_lens.tasks import get_task


def test_shuffled_labels_are_a_coin_that_stays(tokenizer: Tokenizer) -> None:
    """About half are swapped, whatever the true answer; a pair has the same label in every sample; draws differ."""
    base, control, other = (get_task(f"bracket_brace{suffix}") for suffix in ("", "~shuffled", "~shuffled-1"))
    assert control.control and control.name == "bracket_brace~shuffled" and other.name == "bracket_brace~shuffled-1"
    plain, batch = (task.sample(tokenizer, 400, seed=0, split="search") for task in (base, control))
    assert (plain.clean == batch.clean).all() and (plain.corrupt_fork == batch.corrupt_fork).all()
    swapped = plain.target != batch.target
    assert 160 < swapped.sum() < 240 and (plain.target[swapped] == batch.distractor[swapped]).all()
    first = plain.target == plain.target[0]
    assert abs(swapped[first].mean() - swapped[~first].mean()) < 0.15
    assert (other.sample(tokenizer, 400, seed=0, split="search").target != batch.target).any()
    assert [pair.target for pair in batch.pairs[:4]] == [tokenizer.id_to_token(int(token)) for token in batch.target[:4]]
    again = control.sample(tokenizer, 50, seed=0, split="search")
    assert (again.target == batch.target[:50]).all()


def test_random_targets_keep_the_rule(tokenizer: Tokenizer) -> None:
    """One other token for each answer, the same in every split, neither of them an answer or the end of text."""
    base, control = get_task("for_while"), get_task("for_while~random")
    plain, batch = (task.sample(tokenizer, 60, seed=0, split="search") for task in (base, control))
    pairs = {(int(a), int(b)) for a, b in zip(plain.target, batch.target, strict=True)}
    assert len(pairs) == 2 and len({token for pair in pairs for token in pair}) == 4
    assert tokenizer.token_to_id(END_OF_TEXT) not in batch.target
    heldout = control.sample(tokenizer, 60, seed=3, split="heldout")
    assert set(np.unique(heldout.target)) == set(np.unique(batch.target))
    assert set(np.unique(get_task("for_while~random-1").sample(tokenizer, 9, seed=0, split="search").target)) != set(
        np.unique(batch.target)
    )


@pytest.mark.parametrize("name", ["for_while~", "for_while~other", "for_while~random-x"])
def test_unknown_controls(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"random|shuffled"):
        get_task(name)
