"""What the measures behind the claims cost: EASE over as many features as it is ever run on."""

from __future__ import annotations

from sparse_lens.benchmarks.large import cost_of
from sparse_lens.benchmarks.timing import Row, row

_FEATURES, _WINDOWS, _LENGTH = 4096, 256, 128
_SECONDS, _GIGABYTES = 90, 1.5

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
