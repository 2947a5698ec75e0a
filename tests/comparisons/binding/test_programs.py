"""Binding programs: their text, their balance, what is held out, and where their tokens lie."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.binding.drawing import ProgramDraw, held_out, training_texts
from sparse_lens.comparisons.binding.programs import KINDS, BindingProgram, usable_names
from sparse_lens.comparisons.binding.prompts import encode_programs
from sparse_lens.data import load_tokenizer
from sparse_lens.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ModelPair.open().model_folder("sparse"))


def test_programs_read_as_they_should() -> None:
    value = BindingProgram("value", ("key", "size"), ("3", "5"), 1, ((1, "t", "8"),))
    assert value.prompt() == "key = 3\nt += 8\nsize = 5\nprint(size"
    assert value.text([1, 0]) == "key = 3\nt += 8\nsize = 5\nprint(size 5)\nprint(key 3)\n"
    assert value.answers == (" 3", " 5")
    growing = BindingProgram("type", ("key", "size"), ("set()", "str()"), 0)
    assert growing.prompt() == "key = set()\nsize = str()\nkey"
    assert growing.text([0, 1]) == "key = set()\nsize = str()\nkey.add(1)\nsize += str()\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_vars", [2, 3])
def test_questions_are_balanced_and_pairs_kept_apart(tokenizer: Any, kind: str, n_vars: int) -> None:
    """Distinct prompts, each position asked as often; held-out draws ask for held-out pairs, seen ones have none."""
    for pairs in ("seen", "held_out"):
        draw = ProgramDraw(usable_names(tokenizer, kind), kind, n_vars, 2, pairs)
        programs = draw.programs(60, seed=1)
        assert len({program.prompt() for program in programs}) == 60
        assert set(Counter(program.query for program in programs).values()) == {60 // n_vars}
        for program in programs:
            kept_out = [held_out(*pair) for pair in zip(program.names, program.values, strict=True)]
            assert kept_out[program.query] == (pairs == "held_out")
            assert sum(kept_out) == (pairs == "held_out")
            names = [*program.names, *(name for _, name, _ in program.distractors)]
            assert len(set(names)) == n_vars + 2
        assert draw.programs(60, seed=1) == programs
        assert draw.programs(60, seed=2) != programs


def test_about_a_fifth_is_held_out_and_never_both_types(tokenizer: Any) -> None:
    names = usable_names(tokenizer, "value")
    share = sum(held_out(name, value) for name in names for value in "123456789") / (9 * len(names))
    assert 0.1 < share < 0.3
    assert not any(held_out(name, "set()") and held_out(name, "str()") for name in names)


def test_tokens_lie_where_they_are_said_to(tokenizer: Any) -> None:
    """Read back from the ids: names, values and the question, at any number of distractors."""
    for kind in KINDS:
        programs = ProgramDraw(usable_names(tokenizer, kind), kind, 3, 3).programs(30, seed=0)
        prompts = encode_programs(tokenizer, programs)
        for row, program in enumerate(programs):
            tokens = prompts.tokens[row]
            for var in range(3):
                assert tokenizer.decode([int(tokens[prompts.name_at[row, var]])]) == program.names[var]
                value = tokenizer.decode([int(tokens[prompts.value_at[row, var]])])
                assert value.strip() == program.values[var].removesuffix("()")
            assert tokenizer.decode([int(tokens[prompts.position[row]])]) == program.names[program.query]
            assert tokenizer.decode([int(prompts.right[row])]) == program.answers[program.query]


def test_training_texts_hold_no_pair_that_is_held_out(tokenizer: Any) -> None:
    texts, seen = training_texts(tokenizer, random.Random(0)), 0
    for _ in range(300):
        for line in next(texts).splitlines():
            name, equals, value = line.partition(" = ")
            if equals:
                seen += 1
                assert not held_out(name, value)
    assert seen > 600


def test_a_tokenizer_without_single_tokens_is_refused() -> None:
    bare = Tokenizer(WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<|endoftext|>"))
    with pytest.raises(DataError, match="single tokens"):
        usable_names(bare, "value")
