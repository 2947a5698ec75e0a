"""A ratio over training seeds, tasks and search seeds, with an interval that knows which levels are nested and which crossed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sparse_lens.errors import DataError
from sparse_lens.results import Result, not_measurable

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Values by training seed, then task; one for each search seed."""

N_RESAMPLES = 2000


def hierarchical_ratio(ratios: Samples, *, null: float | None = 1.0, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Result:
    """Geometric mean of positive `ratios`, with a 95 % hierarchical bootstrap interval over training seeds, tasks, search seeds.

    All training seeds do the same tasks, so that a resample draws tasks once, for all of its training seeds: a training seed more
    is no task more. Search seeds are nested in both. Every task weighs the same within a training seed, every training seed the
    same in the whole. A level of k units is resampled with k - 1 draws (Rao and Wu 1988, J. Am. Stat. Assoc. 83:231): with k draws
    a handful of units would give an interval that is too narrow by sqrt((k - 1) / k). A level of one unit adds nothing: with one
    training seed the interval does not say what another training would give (`seeds` is the number of training seeds, `n` that of
    tasks).

    Raises `DataError` for a ratio that is not positive and finite. Not measurable with fewer than two tasks.
    """
    logs = {run: {task: _logs(values) for task, values in tasks.items() if len(values)} for run, tasks in ratios.items()}
    logs = {run: tasks for run, tasks in logs.items() if tasks}
    names = {task for tasks in logs.values() for task in tasks}
    if len(names) < 2:
        return not_measurable(f"{len(names)} task(s) with circuits on both sides; a mean over tasks needs two", n=len(names))
    generator = np.random.default_rng(seed)
    means = np.array([_resampled(logs, generator) for _ in range(n_resamples)])
    value = float(np.mean([np.mean([values.mean() for values in tasks.values()]) for tasks in logs.values()]))
    lo, hi = np.percentile(means, [2.5, 97.5])
    return Result(math.exp(value), math.exp(lo), math.exp(hi), null, n=len(names), seeds=len(logs))


def _logs(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise DataError(f"ratios are positive and finite, got {[float(v) for v in array]}; leave out what was not measured")
    return np.log(array)


def _resampled(logs: Mapping[str, Mapping[str, np.ndarray]], generator: np.random.Generator) -> float:
    """The mean of one resample: of training seeds and tasks, and in each of both of search seeds."""
    runs, names = list(logs.values()), sorted({task for tasks in logs.values() for task in tasks})
    means: list[float] = []
    while not means:  # a training seed may have none of the tasks drawn
        drawn = [names[place] for place in _drawn(len(names), generator)]
        for run in _drawn(len(runs), generator):
            of_tasks = [_mean_of(runs[run][task], generator) for task in drawn if task in runs[run]]
            means += [float(np.mean(of_tasks))] if of_tasks else []
    return float(np.mean(means))


def _mean_of(values: np.ndarray, generator: np.random.Generator) -> float:
    return float(values[_drawn(len(values), generator)].mean())


def _drawn(k: int, generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, k, max(k - 1, 1))
