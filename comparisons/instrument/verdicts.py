"""The verdict on a claim about a sparse and a dense model, by a rule that was fixed before anything was measured.

The rule: a claim is decided only where the losses are matched (|difference| <= 0.05 nats per token in every pair) and at least
three training seeds were measured, each with a number on both sides. Then the 95 % interval of the difference over training seeds
decides: with 0 inside, the models are *indistinguishable*; so they are where a control shows as much, or is too uncertain to
exclude it: where the interval of the difference less the control's own does not lie beyond 0 on the same side. Otherwise the
interval *supports* the claim or *contradicts* it. A control that has no number where one is needed leaves the claim *not
measurable*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from sparse_lens.comparisons.curves.loss_matching import TOLERANCE
from sparse_lens.errors import DataError
from sparse_lens.results import NOISE, Result, less, not_measurable

Verdict = Literal["supports", "contradicts", "indistinguishable", "not measurable"]

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
    controls: Mapping[str, Sequence[float | None]] | None = None,
) -> Judgement:
    """The verdict on the claim that the estimator is larger in the `larger` model, given its values by training seed.

    `loss_gaps` are the dense model's loss less the sparse one's, in nats per token, for each pair; a value of None was not
    measurable. `controls` has for each control the same difference, sparse less dense, in it. Raises `DataError` where the
    sequences are of unlike length.
    """
    controls = controls or {}
    lengths = [len(sparse), len(dense), len(loss_gaps), *(len(values) for values in controls.values())]
    if len(set(lengths)) != 1:
        raise DataError(f"one value and one gap for each training seed, got {', '.join(map(str, lengths))}")
    found = [_less(s, d) for s, d in zip(sparse, dense, strict=True)]
    differences = [value for value in found if value is not None]
    difference = difference_over_seeds(differences)
    if not differences:
        return Judgement("not measurable", difference, ("no training seed has a number on both sides",))
    if reasons := [*undecidable(loss_gaps), *incomplete(len(found) - len(differences), len(found))]:
        return Judgement("not measurable", difference, tuple(reasons))
    verdict = _by_interval(difference, larger)
    if verdict == "indistinguishable":
        return Judgement(verdict, difference)
    excesses = {name: [_less(*both) for both in zip(found, values, strict=True)] for name, values in controls.items()}
    return _against_controls(verdict, difference, excesses)


def _less(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else less(first, second)


def _against_controls(verdict: Verdict, difference: Result, excesses: Mapping[str, Sequence[float | None]]) -> Judgement:
    """The verdict, unless a control has no number or is not told apart; `excesses` are the differences less the controls' own."""
    missing = [name for name, values in excesses.items() if None in values]
    if missing:
        return Judgement("not measurable", difference, tuple(f"the control {name} has no number" for name in missing))
    failed = []
    for name, values in excesses.items():
        excess = difference_over_seeds([value for value in values if value is not None])
        if not _beyond_zero(excess, positive=(difference.value or 0) > 0):
            failed.append(f"not told apart from the control {name}: what is beyond it is {excess}")
    return Judgement("indistinguishable", difference, tuple(failed)) if failed else Judgement(verdict, difference)


def _beyond_zero(result: Result, *, positive: bool) -> bool:
    assert result.lo is not None and result.hi is not None
    return result.lo > 0 if positive else result.hi < 0


def difference_over_seeds(differences: Sequence[float]) -> Result:
    """Mean difference with Student's 95 % interval over training seeds; without an interval for a single one."""
    if not differences:
        return not_measurable("no training seed has a number on both sides")
    values = np.asarray(differences, dtype=np.float64)
    mean = 0.0 if abs(values.mean()) <= NOISE * max(np.abs(values).max(), 1.0) else float(values.mean())
    if len(values) < 2:
        return Result(mean, null=0.0, n=1, seeds=1)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Result(mean, mean - half, mean + half, 0.0, len(values), len(values))


def _by_interval(difference: Result, larger: Literal["sparse", "dense"]) -> Verdict:
    assert difference.lo is not None and difference.hi is not None
    if difference.lo <= 0 <= difference.hi:
        return "indistinguishable"
    return "supports" if (difference.lo > 0) == (larger == "sparse") else "contradicts"


def undecidable(loss_gaps: Sequence[float]) -> list[str]:
    """Why nothing can be decided on pairs with these differences in loss, one for each training seed; empty where it can."""
    return [*_unmatched(loss_gaps), *_few(len(loss_gaps))]


def incomplete(missing: int, of: int) -> list[str]:
    """Why nothing can be decided where so many training seeds have no number; empty where all have one."""
    return [f"{missing} of {of} training seeds have no number on both sides"] if missing else []


def _unmatched(gaps: Sequence[float]) -> list[str]:
    far = [gap for gap in gaps if not abs(gap) <= TOLERANCE]
    if not far:
        return []
    apart = f"{len(far)} of {len(gaps)} pairs are apart, by {max(far, key=abs):+.3f} nats at most"
    return [f"losses are not matched: {apart} (allowed {TOLERANCE})"]


def _few(seeds: int) -> list[str]:
    return [f"{seeds} training seed(s), {FEWEST_SEEDS} are needed for an interval"] if seeds < FEWEST_SEEDS else []
