"""Ctrl-C during a search: what has been done so far is kept by those who ask for it, everyone else is interrupted as ever."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


class SearchInterrupted(KeyboardInterrupt):
    """A search was interrupted; `found` holds what it had by then, and is never empty."""

    def __init__(self, found: list[Any]) -> None:
        super().__init__("the search was interrupted")
        self.found = found


def so_far(work: Callable[[], list[T]], *, keep: bool) -> tuple[list[T], bool]:
    """What `work` returns, or, if `keep`, what it had when it was interrupted; and whether it was."""
    try:
        return work(), False
    except SearchInterrupted as stop:
        if not keep:
            raise
        _LOG.warning("interrupted: scoring what has been found so far (interrupt again to stop at once)")
        return stop.found, True


def collected(jobs: list[Callable[[], T]]) -> list[T]:
    """The results of all jobs, one after another; `SearchInterrupted` with those that are there if one is interrupted."""
    done: list[T] = []
    for job in jobs:
        try:
            done.append(job())
        except SearchInterrupted as stop:
            raise SearchInterrupted([*done, *stop.found]) from None
        except KeyboardInterrupt:
            if done:
                raise SearchInterrupted(done) from None
            raise
    return done
