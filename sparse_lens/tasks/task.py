"""A task as data: templates, words, two answers; pairs of clean and corrupt prompts are sampled from it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks.batch import MAX_TOKENS, SPLITS, EncodedPair, PromptPair, TaskBatch, encode_pair, make_batch
from sparse_lens.tasks.metrics import Metric
from sparse_lens.tasks.pools import HELDOUT_WORDS, SEARCH_WORDS, WordPools
from sparse_lens.tasks.rephrasing import rephrasings
from sparse_lens.tasks.slots import fill, has_fork, slot_kinds, take_side
from sparse_lens.tasks.tokens import Encoder

_TRIES = 400


@dataclass(frozen=True)
class Task:
    """A two-answer next-token task.

    A template is source text with slots and forks. `<thing>`, `<thing2>` are filled with different words of the kind `thing`, as
    far as the pool reaches. `«A|B»` gives A in prompts whose answer is `answers[0]`, B in prompts whose answer is `answers[1]`.
    `spellings` are the answers as different tokenizers write them, in order of preference, `answers` among them. Both prompts
    of a pair end in the same token, unless `same_last_token` is off. Without `validation` templates those of the search stand
    in. A control is a task with labels that no rule of Python gives; it is not listed by default. Circuits are searched by
    the `metric`, if there is one, in place of the cross-entropy of the two answers.
    Raises `DataError` for a template without a fork or with a slot of unknown kind.
    """

    name: str
    description: str
    answers: tuple[str, str]
    search: tuple[str, ...]
    heldout: tuple[str, ...]
    validation: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    same_last_token: bool = True
    search_words: WordPools = field(default_factory=lambda: SEARCH_WORDS, repr=False, hash=False)
    heldout_words: WordPools = field(default_factory=lambda: HELDOUT_WORDS, repr=False, hash=False)
    control: bool = False
    metric: Metric | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for split in SPLITS:
            templates, words = self._split(split)
            for template in templates:
                unknown = slot_kinds(template) - set(words)
                if unknown or not has_fork(template):
                    problem = f"slots of unknown kind {sorted(unknown)}" if unknown else "no fork «A|B»"
                    raise DataError(f"task {self.name!r}: template {template!r} has {problem}")

    def sample(self, tokenizer: Any, n: int, *, seed: int, split: str) -> TaskBatch:
        """Sample `n` distinct pairs; the two answers alternate, so half of the clean prompts carry each.

        `tokenizer` is a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer, `split` is "search", "validation",
        "heldout", or "rephrased" (held-out templates behind unrelated lines, with the search's words). The result depends only
        on the arguments. Raises `DataError` if an answer is not a single token, or if the templates do not give `n` distinct
        pairs of equal token length in this tokenizer, and `UnknownNameError` for another split.
        """
        self._split(split)
        encoder, unspelled, unmade = Encoder(tokenizer), [], []
        for answers in self.spellings or (self.answers,):
            try:
                answer_ids = encoder.answers(answers, self.name)
            except DataError as problem:
                unspelled.append(problem)
                continue
            try:
                return self._sample(encoder, answer_ids, n, seed, split)
            except DataError as problem:
                unmade.append(problem)
        raise [*unmade, *unspelled][0]

    def _split(self, split: str) -> tuple[tuple[str, ...], WordPools]:
        """Templates and words of a split."""
        if split == "search" or (split == "validation" and not self.validation):
            return self.search, self.search_words
        if split == "validation":
            return self.validation, self.search_words
        if split == "heldout":
            return self.heldout, self.heldout_words
        if split == "rephrased":
            words = {**self.heldout_words, **self.search_words}
            return rephrasings(self.heldout, words), words
        raise UnknownNameError("task split", split, SPLITS)

    def _sample(self, encoder: Encoder, answer_ids: dict[str, int], n: int, seed: int, split: str) -> TaskBatch:
        rows: dict[PromptPair, EncodedPair] = {}
        seen: set[str] = set()
        for attempts in self._attempts(random.Random(f"{self.name}:{split}:{seed}"), tuple(answer_ids), split, n):
            fresh = (pair for pair in attempts if not seen & {pair.clean, pair.corrupt})
            encoded = ((pair, encode_pair(pair, encoder, answer_ids)) for pair in fresh)
            found = next(((pair, ids) for pair, ids in encoded if ids is not None and self._fits(ids)), None)
            if found is None:
                raise DataError(
                    f"task {self.name!r}, split {split!r}: found {len(rows)} distinct pairs of equal token "
                    f"length, not {n}; ask for fewer, or use a tokenizer of sparse_lens.data.train_tokenizer"
                )
            pair, rows[pair] = found
            seen |= {pair.clean, pair.corrupt}
        return make_batch(rows, {pair: (answer_ids[pair.target], answer_ids[pair.distractor]) for pair in rows}, encoder.end)

    def _fits(self, pair: EncodedPair) -> bool:
        (clean, _), (corrupt, _) = pair
        return len(clean) <= MAX_TOKENS and (clean[-1] == corrupt[-1] or not self.same_last_token)

    def _attempts(self, rng: random.Random, answers: tuple[str, ...], split: str, n: int) -> Iterator[Iterator[PromptPair]]:
        """Yield, for each row, an iterator of attempts: its own template first, then the others.

        Answers alternate and templates rotate after every two rows, so each template has both answers alike.
        """
        templates, words = self._split(split)
        for row in range(n):
            start = row // 2 % len(templates)
            ordered = (*templates[start:], *templates[:start])
            yield (_pair(template, words, rng, answers, row % 2) for template in ordered for _ in range(_TRIES))


def _pair(template: str, words: WordPools, rng: random.Random, answers: tuple[str, ...], side: int) -> PromptPair:
    filled = fill(template, words, rng)
    (clean, clean_forks), (corrupt, corrupt_forks) = take_side(filled, side), take_side(filled, 1 - side)
    return PromptPair(clean, corrupt, answers[side], answers[1 - side], clean_forks, corrupt_forks)
