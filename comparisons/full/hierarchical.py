"""A ratio over training seeds, tasks and search seeds, with an interval that knows which levels are nested and which crossed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

from sparse_lens.errors import DataError
from sparse_lens.results import Result, not_measurable

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Values by training seed, then task; one for each search seed."""

N_RESAMPLES = 2000

LEAST_TASKS = 3
"""A mean over fewer tasks would be read as one over tasks in general."""


def hierarchical_ratio(ratios: Samples, *, null: float | None = 1.0, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Result:
    """Geometric mean of positive `ratios`, with a 95 % hierarchical bootstrap interval over training seeds, tasks, search seeds.

    All training seeds do the same tasks, so that a resample draws tasks once, for all of its training seeds: a training seed more
    is no task more. Search seeds are nested in both. Every task weighs the same within a training seed, every training seed the
    same in the whole. A level of k units is resampled with k - 1 draws (Rao and Wu 1988, J. Am. Stat. Assoc. 83:231): with k draws
    a handful of units would give an interval that is too narrow by sqrt((k - 1) / k). A level of one unit adds nothing: with one
    training seed the interval does not say what another training would give (`seeds` is the number of training seeds, `n` that of
    tasks). The interval is Student's on the logarithm, with the standard deviation of the resamples for an error: percentiles of a
    handful of units stay within the range of these. Its degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2:110),
    those of the tasks and of the training seeds by what each adds to the variance: three trainings that differ more than many
    tasks do leave two.

    Raises `DataError` for a ratio that is not positive and finite. Not measurable with fewer than `LEAST_TASKS` tasks.
    """
    logs = {run: {task: _logs(values) for task, values in tasks.items() if len(values)} for run, tasks in ratios.items()}
    logs = {run: tasks for run, tasks in logs.items() if tasks}
    names = {task for tasks in logs.values() for task in tasks}
    if len(names) < LEAST_TASKS:
        reason = f"{len(names)} task(s) with circuits on both sides; a mean over tasks needs {LEAST_TASKS}"
        return not_measurable(reason, n=len(names))
    generator = np.random.default_rng(seed)
    error = float(_resampled(logs, generator, n_resamples).std())
    value = float(np.mean([np.mean([values.mean() for values in tasks.values()]) for tasks in logs.values()]))
    reach = float(t.ppf(0.975, _degrees_of_freedom(*_table(logs)))) * error
    return Result(math.exp(value), math.exp(value - reach), math.exp(value + reach), null, n=len(names), seeds=len(logs))


def _degrees_of_freedom(values: Float[np.ndarray, "run task search"], counts: Int[np.ndarray, "run task"]) -> float:
    """Satterthwaite's, of a variance that is the sum of those of the means over tasks and over training seeds."""
    means = _mean_where(values, np.arange(values.shape[-1]) < counts[..., None])
    parts = []
    for axis in (1, 0):
        of_units = _mean_where(np.moveaxis(means, 1 - axis, -1), np.moveaxis(counts > 0, 1 - axis, -1))
        if len(of_units) > 1:
            parts.append((float(of_units.var(ddof=1)) / len(of_units), len(of_units) - 1))
    total = sum(variance for variance, _ in parts)
    if not total:
        return float(values.shape[1] - 1)
    return total**2 / sum(variance**2 / freedom for variance, freedom in parts)


def _logs(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise DataError(f"ratios are positive and finite, got {[float(v) for v in array]}; leave out what was not measured")
    return np.log(array)


def _resampled(logs: Mapping[str, Mapping[str, np.ndarray]], generator: np.random.Generator, n: int) -> Float[np.ndarray, " n"]:
    """The means of `n` resamples: of training seeds and tasks, and in each of both of search seeds."""
    values, counts = _table(logs)
    n_runs, n_tasks, _ = values.shape
    means = np.full(n, np.nan)
    while (missing := np.isnan(means)).any():  # a training seed may have none of the tasks drawn
        rows = int(missing.sum())
        tasks = generator.integers(0, n_tasks, (rows, 1, max(n_tasks - 1, 1)))
        runs = generator.integers(0, n_runs, (rows, max(n_runs - 1, 1), 1))
        drawn, there = _of_search_seeds(values[runs, tasks], counts[runs, tasks], generator), counts[runs, tasks] > 0
        of_runs = _mean_where(drawn, there)
        means[missing] = _mean_where(of_runs, np.asarray(there.any(-1)))
    return means


def _table(logs: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Values `[training seed, task, search seed]`, and how many of the last there are."""
    names = sorted({task for tasks in logs.values() for task in tasks})
    counts = np.array([[len(tasks.get(name, ())) for name in names] for tasks in logs.values()])
    values = np.zeros((*counts.shape, counts.max()))
    for run, tasks in enumerate(logs.values()):
        for place, name in enumerate(names):
            values[run, place, : counts[run, place]] = tasks.get(name, ())
    return values, counts


def _of_search_seeds(values: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means over a draw of the search seeds that there are, one less than there are; over the last axis."""
    draws = np.arange(max(values.shape[-1] - 1, 1))
    picks = (generator.random((*counts.shape, len(draws))) * counts[..., None]).astype(np.int64)
    return _mean_where(np.take_along_axis(values, picks, -1), draws < np.maximum(counts - 1, 1)[..., None])


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Means over the last axis of what counts; NaN where nothing does."""
    n = where.sum(-1)
    return np.where(n > 0, np.where(where, values, 0.0).sum(-1) / np.maximum(n, 1), np.nan)
