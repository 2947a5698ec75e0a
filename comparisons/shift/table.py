"""`shift_table`: sparsity along one ladder for several models, with controls and differences of slopes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.comparisons.shift.ladder import ShiftLadder
from sparse_lens.comparisons.shift.measuring import ShiftMeasurement, shift_sparsity, slope_differences
from sparse_lens.comparisons.shift.metrics import METRICS
from sparse_lens.dictionaries import Dictionary
from sparse_lens.results import Result

KINDS = ("slope", "rank_correlation")
"""What is also measured with random weights."""


def shift_table(
    columns: Mapping[str, Any | tuple[Any, Dictionary]],
    ladder: ShiftLadder,
    *,
    site: str = "ln_final",
    pos: str = "last",
    batch_size: int = 32,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Result]]:
    """`shift_sparsity` of several bridges (or bridges with a dictionary each) on one ladder.

    A row for each column: the numbers of `ShiftMeasurement.results`, among them the control `rotated_…`, the control
    `random_weights_…` (every tensor's nonzero weights change places; no mask is learned, so that there is none to draw at random),
    and the means by level, `hoyer_at_50%`. A row `A - B` for the first column against each other one, with intervals over the
    same draws of texts: the claim is about these differences, levels of two models do not compare.
    """
    settings: dict[str, Any] = {"pos": pos, "batch_size": batch_size, "n_boot": n_boot, "seed": seed}
    found: dict[str, dict[str, Result]] = {}
    measured: dict[str, tuple[ShiftMeasurement, ShiftMeasurement]] = {}
    for name, column in columns.items():
        bridge, place = column if isinstance(column, tuple) else (column, site)
        model = shift_sparsity(bridge, ladder, site=place, **settings)
        with random_weights(bridge, seed=seed):
            shuffled = shift_sparsity(bridge, ladder, site=place, **settings)
        measured[name] = model, shuffled
        by_level = {f"{key}_at_{level}": result for level, results in model.levels.items() for key, result in results.items()}
        found[name] = model.results | _controlled(shuffled.results) | by_level
    first, *others = measured
    for other in others:
        model, shuffled = (slope_differences(*both) for both in zip(measured[first], measured[other], strict=True))
        found[f"{first} - {other}"] = model | _controlled(shuffled)
    return found


def _controlled(shuffled: Mapping[str, Result]) -> dict[str, Result]:
    names = [f"{metric}_{kind}" for metric in (*METRICS, "loss") for kind in KINDS]
    return {f"random_weights_{name}": shuffled[name] for name in names}
