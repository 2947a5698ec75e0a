"""Which binding programs are drawn: names, values, order and distractors at random, the question balanced over positions.

Some pairs of a name and a value are kept out of training (`held_out`): they tell a model that composes from one that has learned
pairs by heart.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sparse_lens.comparisons.binding.programs import KINDS, VALUES, BindingProgram, usable_names
from sparse_lens.errors import ConfigError, DataError, UnknownNameError

MOST_DISTRACTORS = 3
"""Lines beside the assignments that a program may have."""

MOST_VARIABLES = 6
"""Variables that a program may have. With two or three a guess among the values is worth much, and a model that has learned to
guess is slow to learn to look the name up: training takes all numbers."""

_PAIRS = ("seen", "held_out", "any")
_HELD_OUT_OF = 5
_VALUE_SHARE = 0.75
_QUESTIONS = 12


def held_out(name: str, value: str) -> bool:
    """Whether this pair is kept out of training: for each name about every fifth value, and never both types."""
    values = next(pool for pool in VALUES.values() if value in pool)
    place = hashlib.sha256(name.encode()).digest()[0] + values.index(value)
    return place % _HELD_OUT_OF == 0


@dataclass(frozen=True)
class ProgramDraw:
    """How programs are drawn: names, kind, number of variables, number of distractor lines, and which pairs are allowed.

    `pairs` is `seen` for programs of pairs that training may hold, `held_out` for questions about a pair that it may not,
    `any` for both. Raises `UnknownNameError` or `ConfigError` for a draw that there is not.
    """

    names: tuple[str, ...]
    kind: str = "value"
    n_vars: int = 2
    distractors: int = 0
    pairs: str = "seen"

    def __post_init__(self) -> None:
        for what, name, known in (("kind of binding", self.kind, KINDS), ("choice of pairs", self.pairs, _PAIRS)):
            if name not in known:
                raise UnknownNameError(what, name, known)
        if not (2 <= self.n_vars <= MOST_VARIABLES and 0 <= self.distractors <= MOST_DISTRACTORS):
            raise ConfigError(
                f"binding programs have 2 to {MOST_VARIABLES} variables and up to {MOST_DISTRACTORS} distractors, "
                f"got {self.n_vars} and {self.distractors}"
            )

    def program(self, rng: random.Random, query: int) -> BindingProgram:
        """One program with the question about variable `query`."""
        while True:
            program = self._any_program(rng, query)
            kept_out = [held_out(*pair) for pair in zip(program.names, program.values, strict=True)]
            asked = kept_out.pop(query)
            if self.pairs == "any" or (not any(kept_out) and asked == (self.pairs == "held_out")):
                return program

    def programs(self, n: int, *, seed: int) -> list[BindingProgram]:
        """`n` distinct prompts; the question goes about the variables in turn, so that no position answers more than another."""
        if n < self.n_vars:
            raise ConfigError(f"{n} programs do not ask for each of {self.n_vars} variables; draw at least {self.n_vars}")
        rng = random.Random(f"binding:{self.kind}:{self.n_vars}:{self.distractors}:{self.pairs}:{seed}")
        found: dict[str, BindingProgram] = {}
        for _ in range(50 * n):
            program = self.program(rng, len(found) % self.n_vars)
            found.setdefault(program.prompt(), program)
            if len(found) == n:
                return list(found.values())
        raise DataError(f"found {len(found)} distinct binding programs, not {n}; ask for fewer")

    def _any_program(self, rng: random.Random, query: int) -> BindingProgram:
        names = rng.sample(self.names, self.n_vars + self.distractors)
        values = rng.sample(VALUES["value"], self.n_vars) if self.kind == "value" else self._types(rng)
        numbers = rng.sample([number for number in VALUES["value"] if number not in values], self.distractors)
        places = sorted(rng.randint(0, self.n_vars) for _ in range(self.distractors))
        distractors = tuple(zip(places, names[self.n_vars :], numbers, strict=True))
        return BindingProgram(self.kind, tuple(names[: self.n_vars]), tuple(values), query, distractors)

    def _types(self, rng: random.Random) -> list[str]:
        """Both types at least once."""
        values = [*VALUES["type"], *rng.choices(VALUES["type"], k=self.n_vars - 2)]
        rng.shuffle(values)
        return values


def training_texts(tokenizer: Any, rng: random.Random) -> Iterator[str]:
    """Programs to train on, without end: 2 to 6 variables, up to 2 distractors, 3 in 4 of the kind `value`, no held-out pair.

    Each is followed by many questions, so that a large share of the tokens is a look-up.
    """
    while True:
        kind = "value" if rng.random() < _VALUE_SHARE else "type"
        n_vars = rng.randint(2, MOST_VARIABLES)
        program = ProgramDraw(_names(tokenizer, kind), kind, n_vars, rng.choice((0, 0, 1, 2))).program(rng, 0)
        yield program.text(rng.choices(range(n_vars), k=_QUESTIONS))


@lru_cache(maxsize=8)
def _names(tokenizer: Any, kind: str) -> tuple[str, ...]:
    """`usable_names`, looked up once for each tokenizer: every row of a batch asks for them."""
    return usable_names(tokenizer, kind)
