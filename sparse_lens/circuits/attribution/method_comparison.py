"""How well fast attribution agrees with ablating every node: rank correlation and overlap of the dearest nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparse_lens.circuits.attribution.nodes import NodeAttribution, attribute_nodes
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result, not_measurable, to_frame
from sparse_lens.tasks import AnyTask, TaskBatch

if TYPE_CHECKING:
    import pandas as pd

FAST_METHODS = ("eap", "eap_ig", "relp")


def spearman(scores: Tensor, exact: Tensor) -> float:
    """Spearman's rank correlation of two vectors, equal values at their mean rank; not a number if one is constant.

    Raises `CircuitError` for vectors of different length.
    """
    if scores.shape != exact.shape or scores.ndim != 1:
        raise CircuitError(f"scores of the same nodes are needed, got shapes {tuple(scores.shape)} and {tuple(exact.shape)}")
    first, second = (_ranks(values.double()) for values in (scores, exact))
    first, second = first - first.mean(), second - second.mean()
    norm = float(first.norm() * second.norm())
    return float(first @ second) / norm if norm > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    """Rank of every value, equal values at the mean of their ranks."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[group]


def compare_methods(
    bridge: Any,
    task: str | AnyTask | TaskBatch | Prompts,
    *,
    methods: Sequence[str] = FAST_METHODS,
    top: int = 50,
    exact: NodeAttribution | None = None,
    n_resamples: int = 200,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Each method against brute-force ablation on the same prompts; `options` go to `attribute_nodes`.

    One row for each method and metric, with a 95 % bootstrap interval over pairs of prompts (`n` pairs): `spearman` over all nodes,
    `spearman_top` over the `top` nodes of largest exact effect (up or down), and `overlap`, the share of those that are among the
    `top` of the method, too (`null`: by chance). `exact` saves the ablations if they were made already on the same prompts. Raises
    as `attribute_nodes`, and `CircuitError` if `exact` is of other nodes or pairs.
    """
    if exact is None:
        exact = attribute_nodes(bridge, task, method="exact", seed=seed, **options)
    results: dict[str, dict[str, Result]] = {}
    for method in methods:
        found = attribute_nodes(bridge, task, method=method, seed=seed, **options)
        if found.per_pair.shape != exact.per_pair.shape:
            raise CircuitError(
                f"the exact scores are of {tuple(exact.per_pair.shape)} pairs and nodes, these of {tuple(found.per_pair.shape)}; "
                "give those of the same prompts and node space"
            )
        results[method] = agreement(found.per_pair, exact.per_pair, top=top, n_resamples=n_resamples, seed=seed)
    return to_frame(results, ("method",))


def agreement(found: Tensor, exact: Tensor, *, top: int, n_resamples: int = 200, seed: int = 0) -> dict[str, Result]:
    """The three metrics of `compare_methods` for scores `[pair node]`."""
    top = min(top, exact.shape[1])

    def strongest(scores: Tensor) -> Tensor:
        return scores.abs().argsort(descending=True, stable=True)[:top]

    def spearman_top(scores: Tensor, truth: Tensor) -> float:
        chosen = strongest(truth)
        return spearman(scores[chosen], truth[chosen])

    def overlap(scores: Tensor, truth: Tensor) -> float:
        return len({*strongest(scores).tolist()} & {*strongest(truth).tolist()}) / top

    metrics = {"spearman": (spearman, 0.0), "spearman_top": (spearman_top, 0.0), "overlap": (overlap, top / exact.shape[1])}
    return {name: _resampled(metric, found, exact, null, n_resamples, seed) for name, (metric, null) in metrics.items()}


def _resampled(
    metric: Callable[[Tensor, Tensor], float], found: Tensor, exact: Tensor, null: float, n_resamples: int, seed: int
) -> Result:
    """A metric of mean scores with its percentile interval over pairs of prompts, drawn alike for both."""
    n = len(exact)
    value = metric(found.mean(0), exact.mean(0))
    if math.isnan(value):
        return not_measurable("all scores are equal, they rank nothing", n=n)
    weights = torch.from_numpy(np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples) / n).float()
    draws = [metric(some, truth) for some, truth in zip(weights @ found, weights @ exact, strict=True)]
    lo, hi = np.nanpercentile(draws, [2.5, 97.5])
    return Result(value, float(lo), float(hi), null, n)
