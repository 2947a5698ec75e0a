"""A task as data: templates, words, two answers; pairs of clean and corrupt prompts are sampled from it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks.pools import HELDOUT_WORDS, SEARCH_WORDS, WordPools
from sparse_lens.tasks.tokens import Encoder

Prompts = Int64[np.ndarray, "pair pos"]
PerPair = Int64[np.ndarray, " pair"]
PerToken = Bool[np.ndarray, "pair pos"]

EncodedPrompt = tuple[list[int], list[bool]]
"""Token ids of a prompt, end-of-text first, and which of them come from a fork."""
EncodedPair = tuple[EncodedPrompt, EncodedPrompt]
"""A clean and a corrupt prompt, equally long."""

MAX_TOKENS = 100
"""Longest prompt, in tokens, the end-of-text token at its start included."""

_SLOT = re.compile(r"<([a-z]+)(\d*)>")
_FORK = re.compile(r"«([^|»]*)\|([^»]*)»")
_TRIES = 400


@dataclass(frozen=True)
class PromptPair:
    """A clean and a corrupt prompt, each ending just before its answer.

    `target` is right after `clean`, `distractor` right after `corrupt`. The forks are where the two differ: `[start, end)` in
    characters, without white space at their ends.
    """

    clean: str
    corrupt: str
    target: str
    distractor: str
    clean_forks: tuple[tuple[int, int], ...] = ()
    corrupt_forks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """Sampled pairs as token ids; row i of every field belongs to the pair i.

    `clean`, `corrupt`: int64 [pair, pos], end-of-text first, right-padded with end-of-text.
    `clean_fork`, `corrupt_fork`: Boolean [pair, pos], the tokens in which the two prompts were made to differ. (Other tokens
    may differ at equal positions only because a fork has moved them.)
    `length`: [pair], the same for both prompts; the answer is predicted at position `length - 1`.
    `target`, `distractor`: [pair], for the clean prompt; for the corrupt prompt they swap roles.
    """

    clean: Prompts
    corrupt: Prompts
    clean_fork: PerToken
    corrupt_fork: PerToken
    length: PerPair
    target: PerPair
    distractor: PerPair
    pairs: tuple[PromptPair, ...]

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Task:
    """A two-answer next-token task.

    A template is source text with slots and forks. `<thing>`, `<thing2>` are filled with different words of
    the kind `thing`, as far as the pool reaches. `«A|B»` gives A in prompts whose answer is `answers[0]`, B
    in prompts whose answer is `answers[1]`. A control is a task with labels that no rule of Python gives; it
    is not listed by default.
    Raises `DataError` for a template without a fork or with a slot of unknown kind.
    """

    name: str
    description: str
    answers: tuple[str, str]
    search: tuple[str, ...]
    heldout: tuple[str, ...]
    search_words: WordPools = field(default_factory=lambda: SEARCH_WORDS, repr=False, hash=False)
    heldout_words: WordPools = field(default_factory=lambda: HELDOUT_WORDS, repr=False, hash=False)
    control: bool = False

    def __post_init__(self) -> None:
        for templates, words in ((self.search, self.search_words), (self.heldout, self.heldout_words)):
            for template in templates:
                unknown = {kind for kind, _ in _SLOT.findall(template)} - set(words)
                if unknown or not _FORK.search(template):
                    problem = f"slots of unknown kind {sorted(unknown)}" if unknown else "no fork «A|B»"
                    raise DataError(f"task {self.name!r}: template {template!r} has {problem}")

    def sample(self, tokenizer: Any, n: int, *, seed: int, split: str) -> TaskBatch:
        """Sample `n` distinct pairs; the two answers alternate, so half of the clean prompts carry each.

        `tokenizer` is a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer, `split` is "search" or
        "heldout". The result depends only on the arguments. Raises `DataError` if an answer is not a single
        token, or if the templates do not give `n` distinct pairs of equal token length in this tokenizer, and
        `UnknownNameError` for another split.
        """
        encoder = Encoder(tokenizer)
        answer_ids = {answer: encoder.single(answer, self.name) for answer in self.answers}
        rows: dict[PromptPair, EncodedPair] = {}
        seen: set[str] = set()
        for attempts in self._attempts(random.Random(f"{self.name}:{split}:{seed}"), split, n):
            fresh = (pair for pair in attempts if not seen & {pair.clean, pair.corrupt})
            encoded = ((pair, _encode(pair, encoder, answer_ids)) for pair in fresh)
            found = next(((pair, ids) for pair, ids in encoded if ids is not None), None)
            if found is None:
                raise DataError(
                    f"task {self.name!r}, split {split!r}: found {len(rows)} distinct pairs of equal token "
                    f"length, not {n}; ask for fewer, or use a tokenizer of sparse_lens.data.train_tokenizer"
                )
            pair, rows[pair] = found
            seen |= {pair.clean, pair.corrupt}
        return _batch(rows, answer_ids, encoder.end)

    def _attempts(self, rng: random.Random, split: str, n: int) -> Iterator[Iterator[PromptPair]]:
        """Yield, for each row, an iterator of attempts: its own template first, then the others.

        Answers alternate and templates rotate after every two rows, so each template has both answers alike.
        """
        choices = {"search": (self.search, self.search_words), "heldout": (self.heldout, self.heldout_words)}
        if split not in choices:
            raise UnknownNameError("task split", split, choices)
        templates, words = choices[split]
        for row in range(n):
            start = row // 2 % len(templates)
            ordered = (*templates[start:], *templates[:start])
            yield (self._pair(template, words, rng, row % 2) for template in ordered for _ in range(_TRIES))

    def _pair(self, template: str, words: WordPools, rng: random.Random, side: int) -> PromptPair:
        filled = _fill(template, words, rng)
        (clean, clean_forks), (corrupt, corrupt_forks) = _take_side(filled, side), _take_side(filled, 1 - side)
        return PromptPair(clean, corrupt, self.answers[side], self.answers[1 - side], clean_forks, corrupt_forks)


def read_templates(text: str) -> tuple[str, ...]:
    """Split a text into templates at lines of `---`; newlines around a template do not belong to it."""
    return tuple(template.strip("\n") for template in text.split("\n---\n"))


def _fill(template: str, words: WordPools, rng: random.Random) -> str:
    """Fill the slots: equal slots with equal words, different slots with different words."""
    slots = dict.fromkeys(match.group(0) for match in _SLOT.finditer(template))
    used: set[str] = set()
    filled: dict[str, str] = {}
    for slot in slots:
        pool = words[slot.strip("<>0123456789")]
        # There are few digits: where a pool runs out, words repeat.
        word = rng.choice([word for word in pool if word not in used] or pool)
        used.add(word)
        filled[slot] = word
    return _SLOT.sub(lambda match: filled[match.group(0)], template)


def _take_side(filled: str, side: int) -> tuple[str, tuple[tuple[int, int], ...]]:
    """One side of every fork, and where the forks' text lies in the result; an empty side lies nowhere."""
    text, spans, end = "", [], 0
    for fork in _FORK.finditer(filled):
        text += filled[end : fork.start()]
        end, taken = fork.end(), fork.group(side + 1)
        # White space at an end of the fork may be part of the next word's token, which is no input of the task.
        start = len(text) + len(taken) - len(taken.lstrip())
        text += taken
        if taken.strip():
            spans.append((start, start + len(taken.strip())))
    return text + filled[end:], tuple(spans)


def _encode(pair: PromptPair, encoder: Encoder, answer_ids: dict[str, int]) -> EncodedPair | None:
    """Return the ids and fork tokens of both prompts, or None if lengths differ or an answer would merge with its prompt."""
    (clean, clean_at), (corrupt, corrupt_at) = encoder.encode(pair.clean), encoder.encode(pair.corrupt)
    if len(clean) != len(corrupt) or len(clean) >= MAX_TOKENS:
        return None
    continued = (pair.clean, clean, pair.target), (pair.corrupt, corrupt, pair.distractor)
    for text, ids, answer in continued:
        if encoder.ids(text + answer) != [*ids, answer_ids[answer]]:
            return None
    forks = _overlaps(clean_at, pair.clean_forks), _overlaps(corrupt_at, pair.corrupt_forks)
    return ([encoder.end, *clean], [False, *forks[0]]), ([encoder.end, *corrupt], [False, *forks[1]])


def _overlaps(tokens: list[tuple[int, int]], spans: tuple[tuple[int, int], ...]) -> list[bool]:
    """Which tokens share a character with any of the spans."""
    return [any(start < span_end and span_start < end for span_start, span_end in spans) for start, end in tokens]


def _batch(rows: dict[PromptPair, EncodedPair], answer_ids: dict[str, int], end: int) -> TaskBatch:
    length = np.array([len(ids) for (ids, _), _ in rows.values()], dtype=np.int64)
    padded = np.full((2, len(rows), int(length.max(initial=0))), end, dtype=np.int64)
    forks = np.zeros(padded.shape, dtype=bool)
    for index, sides in enumerate(rows.values()):
        for side, (ids, in_fork) in enumerate(sides):
            padded[side, index, : len(ids)] = ids
            forks[side, index, : len(ids)] = in_fork
    return TaskBatch(
        clean=padded[0],
        corrupt=padded[1],
        clean_fork=forks[0],
        corrupt_fork=forks[1],
        length=length,
        target=np.array([answer_ids[pair.target] for pair in rows], dtype=np.int64),
        distractor=np.array([answer_ids[pair.distractor] for pair in rows], dtype=np.int64),
        pairs=tuple(rows),
    )
