"""Pairs of prompts as text and as token ids: what every kind of task gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64

from sparse_lens.tasks.tokens import Encoder

Prompts = Int64[np.ndarray, "pair pos"]
PerPair = Int64[np.ndarray, " pair"]
PerToken = Bool[np.ndarray, "pair pos"]

Span = tuple[int, int]
"""Where a piece of a prompt lies, `[start, end)` in characters."""
EncodedPrompt = tuple[list[int], list[bool]]
"""Token ids of a prompt, end-of-text first, and which of them come from a fork."""
EncodedPair = tuple[EncodedPrompt, EncodedPrompt]
"""A clean and a corrupt prompt, equally long."""

MAX_TOKENS = 100
"""Longest prompt that is made from templates, in tokens, the end-of-text token at its start included."""

SPLITS = ("search", "validation", "heldout", "rephrased")
"""Prompts to learn on, to choose among candidates on, to score on, and to score on in other words."""


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
    clean_forks: tuple[Span, ...] = ()
    corrupt_forks: tuple[Span, ...] = ()


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


@runtime_checkable
class AnyTask(Protocol):
    """What searches, scores and comparisons need of a task; `Task`, `PairTask` and the controls are tasks."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def control(self) -> bool: ...

    def sample(self, tokenizer: Any, n: int, *, seed: int, split: str) -> TaskBatch:
        """Sample `n` distinct pairs of one of `SPLITS`."""
        ...


def encode_pair(pair: PromptPair, encoder: Encoder, answer_ids: Mapping[str, int]) -> EncodedPair | None:
    """Return ids and fork tokens of both prompts, or None if their lengths differ or an answer would merge with its prompt.

    A prompt's tokens are those of the text with its answer, less the last, which is the answer: so what a tokenizer puts
    between them (a line break before an indentation) is read by the model, too. Where both answers begin as both prompts end
    (`)` and `)` with a line break, which may be one token), that piece is written once.
    """
    sides = []
    for text, answer, forks in ((pair.clean, pair.target, pair.clean_forks), (pair.corrupt, pair.distractor, pair.corrupt_forks)):
        ids, places = encoder.encode(text[: len(text) - _overlap(pair)] + answer)
        if ids[-1] != answer_ids[answer]:
            return None
        sides.append(([encoder.end, *ids[:-1]], [False, *_overlaps(places[:-1], forks)]))
    return None if len(sides[0][0]) != len(sides[1][0]) else (sides[0], sides[1])


def _overlap(pair: PromptPair) -> int:
    """Length of the longest text that both answers begin and both prompts end with."""
    shared = pair.target[: common_start(pair.target, pair.distractor)]
    ends = (n for n in range(len(shared), 0, -1) if pair.clean.endswith(shared[:n]) and pair.corrupt.endswith(shared[:n]))
    return next(ends, 0)


def common_start(first: str, second: str) -> int:
    """Length of the longest common start of two texts."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def _overlaps(tokens: list[Span], spans: tuple[Span, ...]) -> list[bool]:
    """Which tokens share a character with any of the spans."""
    return [any(start < span_end and span_start < end for span_start, span_end in spans) for start, end in tokens]


def make_batch(rows: Mapping[PromptPair, EncodedPair], answers: Mapping[PromptPair, tuple[int, int]], end: int) -> TaskBatch:
    """Put encoded pairs and the ids of their two answers together, padded with the token `end`."""
    length = np.array([len(ids) for (ids, _), _ in rows.values()], dtype=np.int64)
    padded = np.full((2, len(rows), int(length.max(initial=0))), end, dtype=np.int64)
    forks = np.zeros(padded.shape, dtype=bool)
    for index, sides in enumerate(rows.values()):
        for side, (ids, in_fork) in enumerate(sides):
            padded[side, index, : len(ids)] = ids
            forks[side, index, : len(ids)] = in_fork
    ids = np.array([answers[pair] for pair in rows], dtype=np.int64).reshape(-1, 2)
    return TaskBatch(padded[0], padded[1], forks[0], forks[1], length, ids[:, 0], ids[:, 1], tuple(rows))
