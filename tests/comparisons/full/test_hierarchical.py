"""The hierarchical bootstrap: known means, known variances, and what it must not do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparse_lens.comparisons.full import hierarchical
from sparse_lens.comparisons.full.hierarchical import hierarchical_ratio
from sparse_lens.errors import DataError


def test_equal_ratios_give_that_ratio_and_no_width() -> None:
    result = hierarchical_ratio({"0": {"a": [2.0, 2.0], "b": [2.0], "c": [2.0]}, "1": {"a": [2.0], "b": [2.0] * 3}})
    assert result.value == pytest.approx(2) and result.lo == pytest.approx(2) and result.hi == pytest.approx(2)
    assert (result.n, result.seeds, result.null) == (3, 2, 1.0)


def test_every_task_weighs_the_same_whatever_its_search_seeds() -> None:
    result = hierarchical_ratio({"0": {"a": [4.0, 4.0, 4.0, 4.0], "b": [1.0], "c": [2.0]}})
    assert result.value == pytest.approx(2)


def test_the_interval_has_the_width_of_the_standard_error_of_nested_means() -> None:
    """One training seed, many tasks, one search seed: the bootstrap must give the plain standard error of a mean."""
    logs = np.random.default_rng(0).normal(0.5, 0.8, 40)
    result = hierarchical_ratio({"0": {str(i): [float(math.exp(v))] for i, v in enumerate(logs)}}, n_resamples=8000)
    assert result.lo is not None and result.hi is not None
    width = math.log(result.hi / result.lo)
    assert width == pytest.approx(2 * 2.023 * logs.std(ddof=1) / math.sqrt(len(logs)), rel=0.05)


@pytest.mark.parametrize(
    ("tasks", "trainings", "by_task", "by_training"),
    [(3, 1, 1.0, 0.0), (5, 1, 1.0, 0.0), (5, 3, 1.0, 0.3), (3, 3, 1.0, 1.0), (20, 3, 0.3, 1.0), (20, 3, 1.0, 0.5)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(tasks: int, trainings: int, by_task: float, by_training: float) -> None:
    """Tasks and trainings differ so much from another, each of both by 0.3: 1 is inside in some nineteen of twenty draws.

    Of one training the interval promises nothing beyond it: its own deviation is left out.
    """
    draw, held = np.random.default_rng(1), 0
    for trial in range(600):
        of_tasks, of_trainings = by_task * draw.normal(size=tasks), by_training * draw.normal(size=trainings)
        logs = of_tasks + of_trainings[:, None] + 0.3 * draw.normal(size=(trainings, tasks))
        ratios = {str(run): {str(task): [math.exp(value)] for task, value in enumerate(row)} for run, row in enumerate(logs)}
        result = hierarchical_ratio(ratios, n_resamples=400, seed=trial)
        assert result.lo is not None and result.hi is not None
        held += result.lo <= 1 <= result.hi
    assert 0.93 <= held / 600 <= 0.99


def test_few_tasks_do_not_make_the_interval_too_narrow() -> None:
    """The variance at k = 4 tasks is that of a mean, s^2 / 4; draws of k would give three quarters of it."""
    logs = np.array([-1.0, 0.0, 0.5, 1.5])
    generator = np.random.default_rng(1)
    nested = {"0": {str(i): np.array([v]) for i, v in enumerate(logs)}}
    means = hierarchical._resampled(nested, generator, 20000)
    assert np.var(means) == pytest.approx(logs.var(ddof=1) / 4, rel=0.05)


def test_spread_between_training_seeds_widens_the_interval() -> None:
    one = {"0": {str(i): [2.0 + 0.1 * i] for i in range(6)}}
    three = one | {"1": {str(i): [4.0 + 0.1 * i] for i in range(6)}, "2": {str(i): [1.0 + 0.1 * i] for i in range(6)}}
    narrow, wide = hierarchical_ratio(one), hierarchical_ratio(three)
    assert narrow.lo is not None and narrow.hi is not None and wide.lo is not None and wide.hi is not None
    assert wide.hi / wide.lo > 2 * narrow.hi / narrow.lo


def test_copies_of_a_training_seed_do_not_narrow_the_interval() -> None:
    """All training seeds do the same tasks: three equal ones know of these tasks what one does."""
    one = {task: [ratio] for task, ratio in zip("abcde", (0.5, 0.8, 1.5, 3.0, 6.0), strict=True)}
    alone, copied = hierarchical_ratio({"0": one}), hierarchical_ratio({"0": one, "1": one, "2": one})
    assert alone.lo is not None and alone.hi is not None and copied.lo is not None and copied.hi is not None
    assert copied.value == pytest.approx(alone.value)
    assert math.log(copied.hi / copied.lo) == pytest.approx(math.log(alone.hi / alone.lo), rel=0.05)


def test_training_seeds_may_have_tasks_of_their_own() -> None:
    result = hierarchical_ratio({"0": {"a": [2.0], "b": [2.0]}, "1": {"c": [2.0]}})
    assert result.value == pytest.approx(2) and (result.n, result.seeds) == (3, 2)


def test_two_tasks_are_no_mean_and_a_ratio_of_zero_is_an_error() -> None:
    assert not hierarchical_ratio({"0": {"a": [2.0, 3.0]}, "1": {"b": [2.0]}}).measurable
    assert not hierarchical_ratio({"0": {"a": [2.0], "b": [3.0], "c": []}}).measurable
    with pytest.raises(DataError, match="positive"):
        hierarchical_ratio({"0": {"a": [0.0], "b": [1.0], "c": [1.0]}})


def plain_resample(logs: dict[str, dict[str, np.ndarray]], generator: np.random.Generator) -> float:
    """One resample as it is told: tasks once for all training seeds, search seeds anew wherever a task is drawn."""

    def drawn(k: int) -> np.ndarray:
        return generator.integers(0, k, max(k - 1, 1))

    names, runs = sorted({task for tasks in logs.values() for task in tasks}), list(logs.values())
    means: list[float] = []
    while not means:
        tasks = [names[place] for place in drawn(len(names))]
        for run in drawn(len(runs)):
            found = [float(runs[run][task][drawn(len(runs[run][task]))].mean()) for task in tasks if task in runs[run]]
            means += [float(np.mean(found))] if found else []
    return float(np.mean(means))


def test_all_resamples_at_once_are_resamples_one_by_one() -> None:
    """Uneven tables: tasks that a training seed lacks, one to four search seeds."""
    draw = np.random.default_rng(3)
    logs = {
        run: {task: draw.normal(size=1 + (place + int(run)) % 4) for place, task in enumerate("abcde") if (place + int(run)) % 5}
        for run in ("0", "1", "2")
    }
    fast = hierarchical._resampled(logs, np.random.default_rng(0), 8000)
    generator = np.random.default_rng(1)
    slow = np.array([plain_resample(logs, generator) for _ in range(8000)])
    assert fast.mean() == pytest.approx(slow.mean(), abs=4 * slow.std() / math.sqrt(8000))
    assert np.percentile(fast, [5, 25, 75, 95]) == pytest.approx(np.percentile(slow, [5, 25, 75, 95]), abs=0.05)
