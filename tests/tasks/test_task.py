import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sparse_lens.data import END_OF_TEXT
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks import PromptPair, Task, get_task

ONE_LINE = "«[|{»<digit>, <digit2>"


def make_task(template: str = ONE_LINE, answers: tuple[str, str] = ("]", "}")) -> Task:
    return Task("own", "A task of the tests.", answers, (template,), (template,))


def test_forks_and_slots(tokenizer: Tokenizer) -> None:
    task = Task(
        name="own",
        description="One word per pool.",
        answers=("]", "}"),
        search=("<a> = <a>\n<b> = «[|{»<a2>",),
        heldout=(ONE_LINE,),
        search_words={"a": ("x", "x"), "b": ("y",)},
    )
    batch = task.sample(tokenizer, 1, seed=0, split="search")
    assert batch.pairs == (PromptPair("x = x\ny = [x", "x = x\ny = {x", "]", "}", ((10, 11),), ((10, 11),)),)
    assert len(batch) == 1


def fork_texts(tokenizer: Tokenizer, ids: np.ndarray, forks: np.ndarray) -> list[str]:
    return [tokenizer.decode([token]) for token in ids[forks]]


def test_fork_tokens_are_those_that_differ_by_design(tokenizer: Tokenizer) -> None:
    """A fork that moves the rest of a prompt does not make the moved tokens inputs; an empty side has none."""
    batch = get_task("if_equals").sample(tokenizer, 8, seed=0, split="search")
    for row in range(8):
        sides = (batch.clean[row], batch.clean_fork[row]), (batch.corrupt[row], batch.corrupt_fork[row])
        texts = sorted("".join(fork_texts(tokenizer, *side)) for side in sides)
        assert re.fullmatch(r"\.[a-z] =", texts[0]) and texts[1] == "if =="
    assert (batch.clean != batch.corrupt).sum(1).min() > 2


def test_transformers_tokenizer_gives_the_same_batch(tokenizer: Tokenizer) -> None:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)
    task = get_task("bracket_brace")
    plain, fast = (task.sample(t, 8, seed=0, split="search") for t in (tokenizer, wrapped))
    assert np.array_equal(plain.clean, fast.clean)
    assert np.array_equal(plain.corrupt, fast.corrupt)


def test_lengths_of_a_pair_are_equal_or_the_pair_is_dropped(tokenizer: Tokenizer) -> None:
    never = make_task("«[|{{»<digit>, <digit2>")
    with pytest.raises(DataError, match="found 0 distinct pairs of equal token length, not 2"):
        never.sample(tokenizer, 2, seed=0, split="search")


def test_more_pairs_than_templates_give(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"found \d+ distinct pairs.*not 60"):
        make_task().sample(tokenizer, 60, seed=0, split="search")


def test_an_answer_of_two_tokens_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"task 'own': the answer '\]\\n' is 2 tokens"):
        make_task(answers=("]\n", "}")).sample(tokenizer, 2, seed=0, split="search")


def test_wrong_arguments(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnknownNameError, match="heldout"):
        make_task().sample(tokenizer, 2, seed=0, split="held-out")
    with pytest.raises(DataError, match="cannot use a str as tokenizer"):
        make_task().sample("gpt2", 2, seed=0, split="search")
    with pytest.raises(DataError, match="no end-of-text token"):
        make_task().sample(Tokenizer(models.BPE()), 2, seed=0, split="search")


@pytest.mark.parametrize(("template", "problem"), [("<nothing>«a|b»", "nothing"), ("<digit>", "no fork")])
def test_malformed_templates_are_refused(template: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        make_task(template)
