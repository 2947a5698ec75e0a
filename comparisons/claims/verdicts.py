"""The verdict on a claim about a sparse and a dense model, by a rule that was fixed before anything was measured.

The rule: a claim is decided only where the losses are matched (|difference| <= 0.05 nats per token in every pair), at least three
training seeds were measured, and every control was passed. Then the 95 % interval of the difference over training seeds decides:
above 0 in the direction of the claim it *supports* it, below 0 it *contradicts* it, and with 0 inside it is *indistinguishable*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from sparse_lens.errors import DataError
from sparse_lens.results import Result, not_measurable

Verdict = Literal["supports", "contradicts", "indistinguishable", "not measurable"]

LOSS_TOLERANCE = 0.05
"""Nats per token that the two models of a pair may differ by."""

FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Judgement:
    """A verdict, the difference that it rests on, and why, in words."""

    verdict: Verdict
    difference: Result
    reasons: tuple[str, ...] = ()


def judge(
    sparse: Sequence[float | None],
    dense: Sequence[float | None],
    *,
    loss_gaps: Sequence[float],
    larger: Literal["sparse", "dense"],
    controls: Mapping[str, bool] | None = None,
) -> Judgement:
    """The verdict on the claim that the estimator is larger in the `larger` model, given its values by training seed.

    `loss_gaps` are the dense model's loss less the sparse one's, in nats per token, for each pair; a value of None was not
    measurable. `controls` says of each whether it was passed. Raises `DataError` where the sequences are of unlike length.
    """
    if not len(sparse) == len(dense) == len(loss_gaps):
        raise DataError(f"one value and one gap for each training seed, got {len(sparse)}, {len(dense)} and {len(loss_gaps)}")
    both = [(s, d, gap) for s, d, gap in zip(sparse, dense, loss_gaps, strict=True) if s is not None and d is not None]
    difference = difference_over_seeds([s - d for s, d, _ in both])
    if not both:
        return Judgement("not measurable", difference, ("no training seed has a number on both sides",))
    reasons = [*_unmatched([gap for _, _, gap in both]), *_few(len(both)), *_failed(controls or {})]
    if reasons:
        return Judgement("not measurable", difference, tuple(reasons))
    return Judgement(_by_interval(difference, larger), difference)


def difference_over_seeds(differences: Sequence[float]) -> Result:
    """Mean difference with Student's 95 % interval over training seeds; without an interval for a single one."""
    if not differences:
        return not_measurable("no training seed has a number on both sides")
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return Result(float(values.mean()), null=0.0, n=1, seeds=1)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Result(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half, 0.0, len(values), len(values))


def _by_interval(difference: Result, larger: Literal["sparse", "dense"]) -> Verdict:
    assert difference.lo is not None and difference.hi is not None
    if difference.lo <= 0 <= difference.hi:
        return "indistinguishable"
    return "supports" if (difference.lo > 0) == (larger == "sparse") else "contradicts"


def _unmatched(gaps: Sequence[float]) -> list[str]:
    far = [gap for gap in gaps if not abs(gap) <= LOSS_TOLERANCE]
    if not far:
        return []
    apart = f"{len(far)} of {len(gaps)} pairs are apart, by {max(far, key=abs):+.3f} nats at most"
    return [f"losses are not matched: {apart} (allowed {LOSS_TOLERANCE})"]


def _few(seeds: int) -> list[str]:
    return [f"{seeds} training seed(s), {FEWEST_SEEDS} are needed for an interval"] if seeds < FEWEST_SEEDS else []


def _failed(controls: Mapping[str, bool]) -> list[str]:
    return [f"control failed: {name}" for name, passed in controls.items() if not passed]
