"""What holds for every task, control included, in every split."""

import ast
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from sparse_lens.data import END_OF_TEXT
from sparse_lens.data import words as generator
from sparse_lens.tasks import Task, available_tasks, get_task
from sparse_lens.tasks.batch import MAX_TOKENS
from sparse_lens.tasks.pools import HELDOUT_WORDS, SEARCH_WORDS

SPLITS = ("search", "validation", "heldout")
NAMES = available_tasks(controls=True)

# Source that completes a prompt after its target; a wrong answer must not parse with any of them.
ENDS = {
    "single_double_quote": ("", ")", "]", ": 1}", ": pass"),
    "bracket_counting": ("", ": pass"),
    "bracket_brace": ("", ": pass"),
    "while_return_true": ("", " pass"),
    "if_equals": ("", " pass"),
    "with_as": ("", " f: pass"),
    "lambda_func": (" 1", ": pass"),
    "else_elif": (" pass", " x: pass"),
    "if_ternary": (" 1", " pass", "else 1"),
    "fstring_brace": ('"', "'", '")', "')", ")", ""),
}
# Here the wrong answer is legal Python too, only unlikely.
ENDS_OF_LIKELY = {
    "for_while": (" y: pass", " pass"),
    "enumerate_range": ("(y): pass",),
    "set_or_string": ("(y)", " y"),
    "set_or_string_fixedvarname": ("(y)", " y"),
    "with_open": ("(y): pass", ".y: pass"),
    "var_swap": ("",),
    "var_if": (": pass",),
    "class_init": (".y = 1", " 1"),
    "indent_for": ("pass",),
    "final_kwarg": ("1)", ": pass", "1): pass", ""),
}


def templates(task: Task, split: str) -> tuple[str, ...]:
    return {"search": task.search, "validation": task.validation, "heldout": task.heldout}[split]


def template_task(name: str) -> Task:
    task = get_task(name)
    assert isinstance(task, Task)
    return task


def parses(prompt: str, answer: str, ends: tuple[str, ...]) -> bool:
    start = "class A:\n" if prompt.startswith(" ") else ""
    for end in ends:
        try:
            ast.parse(start + prompt + answer + end)
        except SyntaxError:
            continue
        return True
    return False


@pytest.mark.parametrize("split", [*SPLITS, "rephrased"])
@pytest.mark.parametrize("name", NAMES)
def test_batch_is_consistent(name: str, split: str, tokenizer: Tokenizer) -> None:
    task = template_task(name)
    batch = task.sample(tokenizer, 48, seed=1, split=split)
    end = tokenizer.token_to_id(END_OF_TEXT)
    answers = [tokenizer.encode(text).ids[-1] for text in (batch.pairs[0].target, batch.pairs[0].distractor)]
    assert (batch.pairs[0].target, batch.pairs[0].distractor) in (task.spellings or (task.answers,))
    assert batch.target.tolist() == answers * 24
    assert batch.distractor.tolist() == answers[::-1] * 24
    assert len({text for pair in batch.pairs for text in (pair.clean, pair.corrupt)}) == 96
    assert 10 <= batch.length.min() <= batch.length.max() == batch.clean.shape[1] <= MAX_TOKENS
    assert batch.clean_fork.any(1).any() and batch.corrupt_fork.any(1).any()
    last = np.arange(48), batch.length - 1
    assert (batch.clean[last] == batch.corrupt[last]).all() == task.same_last_token
    for row, pair in enumerate(batch.pairs):
        length = int(batch.length[row])
        for text, ids, answer, wanted in (
            (pair.clean, batch.clean[row], pair.target, batch.target[row]),
            (pair.corrupt, batch.corrupt[row], pair.distractor, batch.distractor[row]),
        ):
            assert ids[0] == end
            assert (ids[length:] == end).all()
            assert tokenizer.encode(text + answer).ids == [*ids[1:length], wanted]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_every_template_works_alone_and_has_1000_prompts(name: str, split: str, tokenizer: Tokenizer) -> None:
    task = template_task(name)
    assert len(templates(task, split)) >= (2 if split == "validation" else 4)
    words = task.search_words if split == "search" else task.heldout_words
    for template in templates(task, split):
        slots = set(re.findall(r"<([a-z]+\d*)>", template))
        assert math.prod(len(words[slot.rstrip("0123456789")]) for slot in slots) >= 1000
        alone = replace(task, search=(template,), validation=(template,), heldout=(template,))
        assert len(alone.sample(tokenizer, 8, seed=0, split=split)) == 8


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_determined_by_seed_and_split(name: str, tokenizer: Tokenizer) -> None:
    task = get_task(name)
    first = task.sample(tokenizer, 12, seed=5, split="search")
    assert first.pairs == task.sample(tokenizer, 12, seed=5, split="search").pairs
    assert first.pairs[:4] == task.sample(tokenizer, 4, seed=5, split="search").pairs
    assert first.pairs != task.sample(tokenizer, 12, seed=6, split="search").pairs


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_neither_templates_nor_words(name: str) -> None:
    task = template_task(name)
    assert len({*task.search, *task.validation, *task.heldout}) == len(task.search + task.validation + task.heldout)
    # The control's rule words are its rule, as the quotes are of the real task.
    kinds = set(task.search_words) - {"first", "second"}
    search = {word for kind in kinds for word in task.search_words[kind]}
    heldout = {word for kind in kinds for word in task.heldout_words[kind]}
    assert not search & heldout


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", [*ENDS, *ENDS_OF_LIKELY])
def test_target_completes_the_prompt(name: str, split: str, tokenizer: Tokenizer) -> None:
    ends = {**ENDS, **ENDS_OF_LIKELY}[name]
    for pair in get_task(name).sample(tokenizer, 40, seed=2, split=split).pairs:
        assert parses(pair.clean, pair.target, ends)
        assert parses(pair.corrupt, pair.distractor, ends)
        if name in ENDS:
            assert not parses(pair.clean, pair.distractor, ends)
            assert not parses(pair.corrupt, pair.target, ends)


@pytest.mark.parametrize("split", SPLITS)
def test_nonsense_labels_ignore_the_opened_quote(split: str, tokenizer: Tokenizer) -> None:
    batch = get_task("nonsense_quote").sample(tokenizer, 160, seed=0, split=split)
    opened = np.array([re.findall(r"""["']""", pair.clean)[-1] == '"' for pair in batch.pairs])
    labels = batch.target == batch.target[0]
    assert [int((opened[labels == label]).sum()) for label in (True, False)] == [40, 40]
    assert all(re.findall(r"""["']""", pair.corrupt)[-1] in pair.clean for pair in batch.pairs)


def test_words_are_not_those_of_the_generated_programs() -> None:
    pools = (generator.NOUNS, generator.VERBS, generator.ADJECTIVES, generator.ACCUMULATORS)
    known = {word for pool in pools for word in pool}
    used = {word for words in (SEARCH_WORDS, HELDOUT_WORDS) for kind in ("thing", "var", "many", "verb") for word in words[kind]}
    assert not used & (known | {f"{word}s" for word in known})


def test_no_line_of_a_prompt_stands_in_a_generated_program(tokenizer: Tokenizer, programs: list[str]) -> None:
    lines = {line.strip() for program in programs for line in program.split("\n")}
    words = re.compile(r"\b(?:" + "|".join(SEARCH_WORDS["thing"] + HELDOUT_WORDS["thing"]) + r")\b")
    text = "\n".join(programs)
    for name in NAMES:
        for split in SPLITS:
            for pair in get_task(name).sample(tokenizer, 40, seed=3, split=split).pairs:
                assert pair.clean not in text
                assert pair.corrupt not in text
                assert not {line.strip() for line in pair.clean.split("\n") if words.search(line)} & lines
