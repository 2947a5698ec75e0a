"""SHIFT in every metric: directions, verdicts by the claims' rule, and the Gaussian beside the levels."""

from __future__ import annotations

import numpy as np

from sparse_lens.comparisons.instrument.rows import Seed
from sparse_lens.comparisons.shift import METRICS
from sparse_lens.comparisons.shift.metrics import HIGHER_IS_SPARSER, gaussian_null, sparsity_metrics
from sparse_lens.comparisons.shipped.shift_metrics import shift_metrics_page, shift_rows
from sparse_lens.results import exact


def planted(sparser: float) -> list[Seed]:
    """Three seeds whose sparse model grows sparser by that much, in every metric's own direction; the dense one does not."""
    seeds = []
    for seed in range(3):
        sides: dict[str, dict] = {"sparse": {}, "dense": {}}
        for metric in METRICS:
            sign = 1 if metric in HIGHER_IS_SPARSER else -1
            for side, slope in (("sparse", sparser), ("dense", 0.0)):
                names = (f"{metric}_slope", f"random_weights_{metric}_slope", f"rotated_{metric}_slope")
                sides[side] |= {names[0]: exact(sign * slope + 0.001 * seed), names[1]: exact(0.0), names[2]: exact(0.0)}
        losses = {side: {"loss": exact(3.0)} for side in sides}
        seeds.append({"shift": sides, "losses": losses})
    return seeds


def test_directions_are_turned_where_less_is_sparser() -> None:
    assert {row.verdict for row in shift_rows(planted(0.1)).values()} == {"supports"}
    assert {row.verdict for row in shift_rows(planted(-0.1)).values()} == {"contradicts"}
    page = shift_metrics_page(planted(0.1)).splitlines()
    assert len(page) == 2 + len(METRICS) and all("| supports | — | — |" in row for row in page[2:])


def test_what_is_sparser_is_so_in_its_metric() -> None:
    """One channel of a hundred against normal vectors, which is the witness for every direction."""
    import torch

    one = torch.full((1, 100), 1e-3)
    one[0, 0] = 1.0
    values = dict(zip(METRICS, sparsity_metrics(one / one.norm())[0].tolist(), strict=True))
    for metric, null in gaussian_null(100).items():
        assert np.sign(values[metric] - null) == (1 if metric in HIGHER_IS_SPARSER else -1), metric
