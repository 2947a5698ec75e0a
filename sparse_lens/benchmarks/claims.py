"""What the measures behind the claims cost: EASE over as many features as it is ever run on, and the slow ones on the main pair."""

from __future__ import annotations

import time

from sparse_lens.benchmarks.large import cost_of
from sparse_lens.benchmarks.timing import Row, row

_FEATURES, _WINDOWS, _LENGTH = 4096, 256, 128
_SECONDS, _GIGABYTES = 90, 1.5

_TOGETHER = ("compositionality", "predictability", "fracture", "binding", "shift", "robustness")
_MINUTES, _WORKERS = 20, 2

_EASE = f"""
import torch
from sparse_lens.comparisons.predictability.measuring import PredictabilitySums
from sparse_lens.dictionaries import IdentityDictionary

def model():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, {_FEATURES}, generator=generator) / 16
    sums = PredictabilitySums(IdentityDictionary({_FEATURES}, "features"))
    for first in range(0, {_WINDOWS}, 16):
        tokens = torch.arange(first, first + 16)[:, None].expand(-1, {_LENGTH})
        sums.add(tokens, (torch.randn(16 * {_LENGTH}, 256, generator=generator) @ mixing).relu())
    return sums.measure()
"""


def ease_rows() -> list[Row]:
    """Time and memory of held-out predictability of 4,096 features over 32,768 tokens, five ridges tried, in a process of its own.

    A minute on two cores; memory is over that of the interpreter that had imported everything.
    """
    cost = cost_of(_EASE)
    what = f"EASE of {_FEATURES:,} features over {_WINDOWS * _LENGTH:,} tokens"
    return [
        row(f"{what}, time", f"{cost.seconds:.0f} s", f"bound {_SECONDS} s", _SECONDS / cost.seconds),
        row(f"{what}, memory", f"{cost.peak:.2f} GB", f"bound {_GIGABYTES} GB", _GIGABYTES / cost.peak),
    ]


def measure_rows() -> list[Row]:
    """Time of the measures of structure, prediction, fracture, binding and shift on the shipped main pair, in two processes."""
    from sparse_lens.comparisons.instrument.measuring_jobs import measuring_job
    from sparse_lens.comparisons.jobs import run_jobs
    from sparse_lens.comparisons.pair import ModelPair

    pair = ModelPair.open()
    jobs = [measuring_job(pair, measure, measure, smoke=False) for measure in _TOGETHER]
    begun = time.perf_counter()
    run_jobs(jobs, workers=_WORKERS)
    minutes = (time.perf_counter() - begun) / 60
    return [
        row(f"{len(_TOGETHER)} measures of the claims, one pair", f"{minutes:.1f} min", f"bound {_MINUTES} min", _MINUTES / minutes)
    ]
