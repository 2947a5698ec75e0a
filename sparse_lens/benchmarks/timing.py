"""Timing of functions and of whole processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from sparse_lens.errors import SparseLensError

Row = dict[str, str]
"""What was measured, against what, and the ratio."""


def row(name: str, measured: str, compared_with: str, ratio: float) -> Row:
    """A row of the table of benchmarks; a ratio above 1 is faster than the alternative, or within the bound."""
    return {"name": name, "measured": measured, "compared_with": compared_with, "ratio": f"{ratio:.1f}x"}


def fastest(function: Callable[[], Any], *, repeats: int = 7, warm_up: bool = True) -> float:
    """Least wall time of `repeats` calls after a first one, in seconds: the least disturbed of them."""
    if warm_up:
        function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def process_cost(arguments: Sequence[str], *, threads: int | None = None) -> tuple[float, float]:
    """Wall seconds and peak resident gigabytes of `python ARGUMENTS` as a process of its own."""
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise SparseLensError(f"`python {' '.join(arguments)}` ended with status {process.returncode}; run it by hand to see why")
    return seconds, usage.ru_maxrss / (1e6 if sys.platform != "darwin" else 1e9)
