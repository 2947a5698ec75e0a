"""What would another seed have given? Means and spreads over seeds and resamples, units matched over seeds, overlap of circuits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.comparisons.rows.correspondence import match_each_pair
from sparse_lens.dictionaries import Bridge, Dictionary
from sparse_lens.errors import DataError
from sparse_lens.results import Result, exact, not_measurable

LEAST_SEEDS = 3
"""Fewer are summarized, too, but their spread is not called one."""


def spread(runs: Sequence[Mapping[str, Result]]) -> dict[str, Result]:
    """Mean and standard deviation of each metric over runs that differ in one thing: dictionary seed, model seed, resample.

    Each metric becomes its mean (`lo`, `hi`: least and largest run, `null`: mean of the runs' nulls, `seeds`: runs), and
    `METRIC_sd`, the sample standard deviation, measurable from three runs on. A metric that is not measurable in one run is not
    in the whole: a mean over the others would be a mean over the runs that went well. Raises `DataError` without runs, or for
    runs with other metrics.
    """
    if not runs:
        raise DataError("no runs to take a mean over; give the results of at least one")
    if odd := sorted(set.union(*map(set, runs)) - set.intersection(*map(set, runs))):
        raise DataError(f"the runs do not have the same metrics ({', '.join(odd[:5])}); give results of one measure")
    results: dict[str, Result] = {}
    for name in runs[0]:
        results |= _spread_of(name, [run[name] for run in runs])
    return results


def _spread_of(name: str, values: Sequence[Result]) -> dict[str, Result]:
    if missing := [value for value in values if value.value is None]:
        reason = f"not measurable in {len(missing)} of {len(values)} runs: {missing[0].reason}"
        return {metric: not_measurable(reason, seeds=len(values)) for metric in (name, f"{name}_sd")}
    numbers = np.array([value.value for value in values], dtype=np.float64)
    nulls = [value.null for value in values if value.null is not None]
    null = float(np.mean(nulls)) if len(nulls) == len(values) else None
    n, seeds = values[0].n, len(values)
    results = {name: Result(float(numbers.mean()), float(numbers.min()), float(numbers.max()), null, n, seeds)}
    if seeds < LEAST_SEEDS:
        return results | {f"{name}_sd": not_measurable(f"{seeds} run(s); a spread needs {LEAST_SEEDS}", seeds=seeds)}
    return results | {f"{name}_sd": exact(float(numbers.std(ddof=1)), n=n, seeds=seeds)}


def stability(
    *,
    dictionary_seeds: Sequence[Mapping[str, Result]] = (),
    model_seeds: Sequence[Mapping[str, Result]] = (),
    resamples: Sequence[Mapping[str, Result]] = (),
) -> dict[str, dict[str, Result]]:
    """`spread` over each thing that could have come out otherwise, by its name; what was not varied is left out."""
    varied = {"dictionary_seeds": dictionary_seeds, "model_seeds": model_seeds, "resamples": resamples}
    return {name: spread(runs) for name, runs in varied.items() if runs}


def matched_units(columns: Sequence[tuple[Bridge, Dictionary]], token_batches: Iterable[Any]) -> dict[str, Result]:
    """Do the same units come back? `Correspondence` of every pair of seeds, and the mean of each of its numbers over the pairs.

    `columns` are one dictionary a seed with the model it belongs to (the same model for dictionary seeds), `token_batches` ids
    `[batch, pos]`. `seeds` counts seeds, `lo` and `hi` are over pairs, which share seeds and so are not independent. The null of
    turned tokens is not enough here: where a few directions carry most of the variance, rotated neurons correlate, too; match
    three rotations beside. Raises `DataError` for fewer than two, and what `measure_correspondence` raises.
    """
    if len(columns) < 2:
        raise DataError(f"{len(columns)} seed(s) cannot be matched with each other; give at least two")
    found = [pair.results for pair in match_each_pair(columns, token_batches)]
    means = {name: result for name, result in spread(found).items() if not name.endswith("_sd")}
    return {name: replace(result, seeds=len(columns)) for name, result in means.items()}


def circuit_overlap(masks: Sequence[Bool[Tensor, " node"]]) -> Result:
    """Mean Jaccard index `|A and B| / |A or B|` over the pairs of circuits of one task in one node space (arXiv:2606.16920).

    `masks` are the kept nodes, one for each search seed, resample or rephrasing. `null` is the index of random circuits of these
    sizes at their expected overlap, `lo` and `hi` are over pairs. Raises `DataError` for masks of different node spaces.
    """
    if len({len(mask) for mask in masks}) > 1:
        raise DataError(f"circuits of {sorted({len(mask) for mask in masks})} nodes are of different node spaces; give one model's")
    pairs = [pair for pair in combinations(masks, 2) if bool((pair[0] | pair[1]).any())]
    if not pairs:
        return not_measurable("fewer than two circuits that keep a node", seeds=len(masks))
    values = np.array([float((a & b).sum()) / float((a | b).sum()) for a, b in pairs])
    null = float(np.mean([_chance(int(a.sum()), int(b.sum()), len(a)) for a, b in pairs]))
    return Result(float(values.mean()), float(values.min()), float(values.max()), null, len(pairs), len(masks))


def _chance(a: int, b: int, n: int) -> float:
    shared = a * b / n
    return shared / (a + b - shared)
