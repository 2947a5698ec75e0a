"""Random draws for the program generator: words, names, and choices, all from one `random.Random`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from sparse_lens.data.words import ADJECTIVES, LETTERS, NOUNS, VERBS

T = TypeVar("T")


class Draw:
    """A fast front of `random.Random`: one uniform number per decision."""

    def __init__(self, rng: random.Random) -> None:
        self._uniform = rng.random

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._uniform() < probability

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(self._uniform() * len(options))]

    def noun(self) -> str:
        """Return a noun."""
        return self.pick(NOUNS)

    def plural(self) -> str:
        """Return a plural, as a name for a collection."""
        noun = self.pick(NOUNS)
        if noun.endswith("y") and noun[-2] not in "aeiou":
            return f"{noun[:-1]}ies"
        return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"

    def variable(self) -> str:
        """Return a name for a value: a noun, a pair of words, or a letter."""
        uniform = self._uniform()
        if uniform < 0.55:
            return self.noun()
        if uniform < 0.70:
            return f"{self.pick(ADJECTIVES)}_{self.noun()}"
        if uniform < 0.80:
            return f"{self.noun()}_{self.noun()}"
        return self.pick(LETTERS)

    def function(self) -> str:
        """Return a name for a function."""
        uniform = self._uniform()
        if uniform < 0.3:
            return self.pick(VERBS)
        if uniform < 0.8:
            return f"{self.pick(VERBS)}_{self.noun()}"
        return f"{self.pick(VERBS)}_{self.plural()}"

    def class_name(self) -> str:
        """Return a name for a class."""
        first = self.pick(ADJECTIVES if self.chance(0.4) else NOUNS)
        return first.capitalize() + (self.noun().capitalize() if self.chance(0.7) else "")

    def phrase(self, low: int, high: int) -> str:
        """Return `low` to `high` words with spaces between."""
        pools = (NOUNS, NOUNS, VERBS, ADJECTIVES)
        return " ".join([self.pick(self.pick(pools)) for _ in range(self.between(low, high))])
