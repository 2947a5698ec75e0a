"""A corpus with generated texts mixed in: some rows of each batch hold a text of their own, cut to the window."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer

from sparse_lens.data import END_OF_TEXT, TokenData
from sparse_lens.errors import ConfigError

Windows = Int64[np.ndarray, "batch pos"]
Texts = Callable[[Tokenizer, random.Random], Iterator[str]]
"""Endless texts from a tokenizer and a source of randomness."""


@dataclass(frozen=True)
class MixedData:
    """A corpus of which a `share` of each batch's rows is replaced by `texts`, from step `corpus_first` on.

    A row holds the end-of-text token and one text, and more texts only if that ends before the window does. What a step reads
    depends on the seed and the step alone. Held-out windows are the corpus's own: real Python files. Raises `ConfigError` for a
    share outside [0, 1] or a step below 0.
    """

    corpus: TokenData
    texts: Texts
    share: float
    corpus_first: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.corpus_first < 0:
            raise ConfigError(f"a share is in [0, 1] and corpus_first 0 or more, got {self.share} and {self.corpus_first}")

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The corpus's, with what is mixed in."""
        mixed = {"texts": self.texts.__name__, "share": self.share, "corpus_first": self.corpus_first}
        text = json.dumps([self.corpus.manifest["config_hash"], mixed], sort_keys=True)
        return {**self.corpus.manifest, "mixed": mixed, "config_hash": hashlib.sha256(text.encode()).hexdigest()}

    @property
    def tokenizer(self) -> Tokenizer:
        """The corpus's."""
        return self.corpus.tokenizer

    @property
    def vocab_size(self) -> int:
        """The corpus's."""
        return self.corpus.vocab_size

    def validation_windows(self, context: int, n_windows: int) -> Windows:
        """The corpus's, `[n_windows, context + 1]`."""
        return self.corpus.validation_windows(context, n_windows)

    def resumable_batches(
        self, *, context: int, batch_size: int, seed: int, start_step: int, n_steps: int, state: Any
    ) -> Iterator[tuple[Windows, Any]]:
        """As `TokenData.resumable_batches`, the first rows of each batch replaced."""
        batches = self.corpus.batches(context=context, batch_size=batch_size, seed=seed, start_step=start_step, n_steps=n_steps)
        for step, batch in enumerate(batches, start_step):
            n_rows = self._rows_at(step, batch_size)
            rows = [self._row(random.Random(f"{seed}:{step}:{row}"), context + 1) for row in range(n_rows)]
            yield np.concatenate([*rows, *batch[n_rows:]]).reshape(batch.shape), state

    def _rows_at(self, step: int, batch_size: int) -> int:
        """Rows to replace: `share` of all of them over the steps, where a batch has no whole number of them."""
        if step < self.corpus_first:
            return 0
        return int((step + 1) * self.share * batch_size) - int(step * self.share * batch_size)

    def _row(self, rng: random.Random, length: int) -> Int64[np.ndarray, " pos"]:
        end, ids = self.tokenizer.token_to_id(END_OF_TEXT), []
        texts = self.texts(self.tokenizer, rng)
        while len(ids) < length:
            ids += [end, *self.tokenizer.encode(next(texts), add_special_tokens=False).ids]
        return np.array(ids[:length], dtype=np.int64)
