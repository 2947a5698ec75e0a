"""The errors a user can meet: each says what was wrong, what was seen, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparseLensError(Exception):
    """Base of every error this package raises on purpose; the command line prints it without a traceback."""


class ConfigError(SparseLensError):
    """A configuration holds an impossible or unsupported value."""


class DivergedError(ConfigError):
    """A training whose loss is no longer finite; what was good before is kept."""


class CheckpointError(SparseLensError):
    """A checkpoint cannot be read, or does not hold what its configuration promises."""


class DataError(SparseLensError):
    """A corpus, tokenizer or prompt set cannot be used as asked."""


class CircuitError(SparseLensError):
    """A circuit, node space or search does not fit the model or task it is used with."""


class OutputError(SparseLensError):
    """A result cannot be written where it was asked for."""


class UnknownNameError(SparseLensError):
    """A name that is not in its registry; the message offers the nearest known names.

    `kind` is what the name stands for ("model", "task"), `known` all the names that would have worked.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        if near:
            hint = "did you mean " + " or ".join(repr(n) for n in near) + "?"
        else:
            hint = "known: " + (", ".join(names) if names else "none")
        super().__init__(f"unknown {kind} {name!r}: {hint}")
        self.kind, self.name, self.known = kind, name, names

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        """Errors cross from one process to another as they were made."""
        return type(self), (self.kind, self.name, self.known)
