"""A model of n-grams: how unlike the training text a text is, said by a third party that neither model of a pair is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sparse_lens.errors import DataError

Context = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NgramModel:
    """Next-token probabilities from counts, interpolated down to a uniform one (Witten and Bell 1991); nothing to tune.

    `P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h))` with `T(h)` the number of different tokens seen after `h`, and `h'` the
    context `h` without its first token. It is as large as the text it was counted on, not as what it is asked about.
    """

    counts: dict[Context, Counter[int]]
    totals: dict[Context, int]
    n_vocab: int
    order: int

    @classmethod
    def of(cls, windows: Iterable[Int[np.ndarray, " pos"]], n_vocab: int, *, order: int = 3) -> NgramModel:
        """Count the n-grams of token windows; raises `DataError` without a token, or for an order below 1."""
        counts: defaultdict[Context, Counter[int]] = defaultdict(Counter)
        for window in windows:
            tokens = tuple(int(token) for token in window)
            for place, token in enumerate(tokens):
                for length in range(min(order, place + 1)):
                    counts[tokens[place - length : place]][token] += 1
        if order < 1 or not counts:
            raise DataError(f"n-grams need an order of at least 1 and some text, got order {order} and {len(counts)} contexts")
        return cls(dict(counts), {context: seen.total() for context, seen in counts.items()}, n_vocab, order)

    def surprises(self, window: Int[np.ndarray, " pos"]) -> Float[np.ndarray, " pos"]:
        """`-log P` of each token of a window in nats, given those before it."""
        tokens = tuple(int(token) for token in window)
        return -np.log([self._probability(tokens, place) for place in range(len(tokens))])

    def mean_surprise(self, windows: Iterable[Int[np.ndarray, " pos"]]) -> float:
        """Mean over all tokens but the first of each window, in nats per token."""
        return float(np.concatenate([self.surprises(window)[1:] for window in windows]).mean())

    def _probability(self, tokens: Context, place: int) -> float:
        found = 1 / self.n_vocab
        for length in range(min(self.order, place + 1)):
            context = tokens[place - length : place]
            seen = self.counts.get(context)
            if seen is None:
                break
            found = (seen[tokens[place]] + len(seen) * found) / (self.totals[context] + len(seen))
        return found
