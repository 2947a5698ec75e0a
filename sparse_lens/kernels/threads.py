"""Rows of a compiled loop shared out to as many threads as torch uses; the loops release the interpreter's lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

_inside = threading.local()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def share_rows(work: Callable[[slice], None], n_rows: int, *, least: int = 256) -> None:
    """Call `work` on slices that cover `n_rows` rows, at least `least` in each, on torch's number of threads.

    Every row must be independent of the others, so that the result does not depend on how many threads there are.
    """
    parts = min(torch.get_num_threads(), n_rows // least)
    if parts < 2 or getattr(_inside, "pool", False):  # a thread that waits for its own pool would wait for ever
        work(slice(0, n_rows))
        return
    cuts = [n_rows * part // parts for part in range(parts + 1)]
    slices = [slice(first, last) for first, last in pairwise(cuts)]
    others = [_pool(parts - 1).submit(work, rows) for rows in slices[1:]]
    try:
        work(slices[0])
    finally:
        for other in others:
            other.result()


def _pool(size: int) -> ThreadPoolExecutor:
    """A pool of this process: threads do not survive a fork."""
    key = (os.getpid(), size)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(size, initializer=_enter)
    return _pools[key]


def _enter() -> None:
    _inside.pool = True
