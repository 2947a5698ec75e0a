"""SHIFT in every metric: does it depend on which one says how sparse a representation is?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparse_lens.comparisons.instrument.claim import CLAIMS
from sparse_lens.comparisons.instrument.literature import Literature
from sparse_lens.comparisons.instrument.rows import ClaimRow, Seed, claim_rows
from sparse_lens.comparisons.shift import METRICS
from sparse_lens.comparisons.shift.metrics import HIGHER_IS_SPARSER
from sparse_lens.results import Result, not_measurable

_NOTHING = not_measurable("not measured in this run")


def shift_rows(seeds: Sequence[Seed]) -> dict[str, ClaimRow]:
    """SHIFT's row for each of the `METRICS`, by the same rule: the sparse model grows sparser with shift, and more so.

    Where less is sparser, the claim's direction is turned.
    """
    [claim] = [claim for claim in CLAIMS if claim.id == "SHIFT"]
    asked = [
        replace(claim, metric=f"{metric}_slope", larger="sparse" if metric in HIGHER_IS_SPARSER else "dense") for metric in METRICS
    ]
    nothing = Literature((), "", {}, ())
    return dict(zip(METRICS, claim_rows(seeds, nothing, asked), strict=True))


def shift_metrics_page(seeds: Sequence[Seed]) -> str:
    """The table: slopes, their difference and its controls, the verdict, and the level before any shift beside a Gaussian's."""
    head = ["metric", "sparser is", "sparse", "dense", "difference", "weights shuffled", "rotated", "verdict"]
    head += ["level, sparse (Gaussian)", "level, dense (Gaussian)"]
    rows = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for metric, row in shift_rows(seeds).items():
        sides = [row.sparse, row.dense, row.judgement.difference, *(row.controls[name] for name in row.claim.controls)]
        levels = [_level([seed["shift"][side].get(f"{metric}_at_0%", _NOTHING) for seed in seeds]) for side in ("sparse", "dense")]
        direction = "more" if metric in HIGHER_IS_SPARSER else "less"
        rows.append("| " + " | ".join([f"`{metric}`", direction, *map(_short, sides), row.verdict, *levels]) + " |")
    return "\n".join(rows)


def _short(result: Result) -> str:
    """Two digits: eleven metrics with their intervals stand side by side."""
    if result.value is None:
        return "—"
    return f"{result.value:.2g}" + ("" if result.lo is None or result.hi is None else f" [{result.lo:.2g}, {result.hi:.2g}]")


def _level(results: Sequence[Result]) -> str:
    """The mean over training seeds, with what normal vectors of this width give."""
    means = [
        np.mean([np.nan if value is None else value for value in of])
        for of in zip(*((r.value, r.null) for r in results), strict=True)
    ]
    return "—" if np.isnan(means).any() else "{:.3g} ({:.3g})".format(*means)
