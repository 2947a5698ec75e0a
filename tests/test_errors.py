"""Errors: what they say, and that they cross between processes."""

from __future__ import annotations

import pickle

from sparse_lens.errors import ConfigError, UnknownNameError


def test_errors_cross_between_processes() -> None:
    """A worker's error is the caller's: pickling keeps the message and what it was made of."""
    error = UnknownNameError("task", "if_equal", ["if_equals", "with_as"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and (again.kind, again.name, again.known) == (error.kind, error.name, error.known)
    assert str(pickle.loads(pickle.dumps(ConfigError("no")))) == "no"
