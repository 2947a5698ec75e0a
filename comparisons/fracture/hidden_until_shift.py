"""Hidden until shift: do fractured models, as good as others on what they are tested on, lose more where something changes?

arXiv:2505.11581 warns of this and does not measure it. Here: the fracture of several models against what they lose when their
weights are disturbed, and when the prompts are rephrased.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sparse_lens.circuits.prompts import both_sides, per_pair
from sparse_lens.circuits.scoring import answer_differences, answer_logits, task_loss
from sparse_lens.comparisons.rank_correlation import rank_correlation
from sparse_lens.errors import ConfigError
from sparse_lens.results import Result, bootstrap_mean, not_measurable
from sparse_lens.tasks import get_task

NOISE = 0.3
"""Every weight `w` becomes `w (1 + 0.3 g)` with a standard normal `g`: zeros stay zeros, and small weights small."""

_FEWEST_MODELS, _FEWEST_PARTIAL = 5, 12
_RESAMPLES, _UNDEFINED = 2000, 0.05
LOSSES = ("accuracy_lost_to_noise", "accuracy_lost_to_shift", "loss_rise_by_noise", "loss_rise_by_shift")


def losses_under_change(
    bridge: Any, tasks: Sequence[str], *, n_pairs: int = 64, noise: float = NOISE, draws: int = 3, seed: int = 0
) -> dict[str, Result]:
    """What a model loses on `tasks`: accuracies (two-way, as shares) and rises of the task loss (nats), means over pairs of
    prompts.

    Noise: `draws` disturbances of all weights, on the held-out prompts. Shift: the held-out templates in other words behind
    unrelated lines, against the held-out ones as they are. Beside them `accuracy` on the latter. Raises `ConfigError` without a
    task or draw.
    """
    if not tasks or draws < 1 or not noise > 0:
        raise ConfigError(f"give at least one task, one draw and a noise above 0, got {list(tasks)}, {draws} and {noise}")
    plain = _scores(bridge, tasks, "heldout", n_pairs, seed)
    shifted = _scores(bridge, tasks, "rephrased", n_pairs, seed)
    disturbed = np.zeros_like(plain)
    for draw in range(draws):
        with disturbed_weights(bridge, noise, seed=seed * draws + draw):
            disturbed += _scores(bridge, tasks, "heldout", n_pairs, seed) / draws
    return {
        "accuracy": bootstrap_mean(plain[0], null=0.5),
        "accuracy_lost_to_noise": bootstrap_mean(plain[0] - disturbed[0], null=0.0),
        "accuracy_lost_to_shift": _difference(plain[0], shifted[0]),
        "loss_rise_by_noise": bootstrap_mean(disturbed[1] - plain[1], null=0.0),
        "loss_rise_by_shift": _difference(shifted[1], plain[1]),
    }


@contextmanager
def disturbed_weights(bridge: Any, noise: float, *, seed: int = 0) -> Iterator[None]:
    """Inside the block every weight of the model is multiplied by `1 + noise g`, `g` standard normal; then it has its own again."""
    parameters, generator = dict(bridge.named_parameters()), torch.Generator().manual_seed(seed)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        for name in sorted(parameters):
            factor = 1 + noise * torch.randn(before[name].shape, generator=generator)
            parameters[name].detach().mul_(factor.to(before[name]))
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.detach().copy_(before[name])


@dataclass(frozen=True)
class ShiftPoint:
    """A model in the plot: its fracture, its loss on what it is tested on, and what it loses when something changes."""

    name: str
    fracture: float
    task_loss: float
    lost: float


def hidden_until_shift(points: Sequence[ShiftPoint]) -> dict[str, Result]:
    """Spearman's rank correlation over models of fracture with what is lost, and with the loss before anything changed.

    Hidden means that the second is small and the first is not. `fracture_with_lost_given_loss` is the partial correlation that
    holds the loss before the change constant. Intervals are a bootstrap over models; fewer than five say nothing, and of fewer
    than twelve the partial correlation has none: resamples of few models often order two of the three columns alike, where it is
    not defined, and what is left of them excludes 0 far too often.
    """
    names = ("fracture_with_lost", "fracture_with_loss", "fracture_with_lost_given_loss")
    if len(points) < _FEWEST_MODELS:
        few = not_measurable(f"{len(points)} models, a correlation over fewer than {_FEWEST_MODELS} says nothing", n=len(points))
        return dict.fromkeys(names, few)
    columns = np.array([[point.fracture, point.lost, point.task_loss] for point in points])
    statistics: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
        lambda rows: rank_correlation(rows[..., 0], rows[..., 1]),
        lambda rows: rank_correlation(rows[..., 0], rows[..., 2]),
        _partial,
    )
    found = {name: _bootstrapped(statistic, columns) for name, statistic in zip(names, statistics, strict=True)}
    if len(points) < _FEWEST_PARTIAL:
        found[names[-1]] = replace(found[names[-1]], lo=None, hi=None)
    return found


def _partial(rows: Float[np.ndarray, "draw model 3"]) -> Float[np.ndarray, " draw"]:
    """Of the first two columns, the third held constant."""
    a, b, c = (rank_correlation(rows[..., i], rows[..., j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    rest = (1 - b**2) * (1 - c**2)
    return (a - b * c) / np.sqrt(np.where(rest > 1e-12, rest, np.nan))


def _bootstrapped(statistic: Callable[[np.ndarray], np.ndarray], rows: Float[np.ndarray, "model 3"]) -> Result:
    value = float(statistic(rows[None])[0])
    if not np.isfinite(value):
        same = (rows == rows[0]).all(0).any()
        why = "all models have the same fracture, loss or change" if same else "two of fracture, loss and change order models alike"
        return not_measurable(f"{why}, so there is nothing to correlate", n=len(rows))
    picks = np.random.default_rng(0).integers(0, len(rows), (_RESAMPLES, len(rows)))
    drawn = statistic(rows[picks])
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < (1 - _UNDEFINED) * len(drawn):
        return Result(value, null=0.0, n=len(rows))
    lo, hi = np.percentile(defined, [2.5, 97.5])
    return Result(value, float(lo), float(hi), 0.0, len(rows))


@torch.no_grad()
def _scores(bridge: Any, tasks: Sequence[str], split: str, n_pairs: int, seed: int) -> Float[np.ndarray, "2 pair"]:
    """Accuracy and task loss of every pair of prompts of all tasks."""
    found = []
    for name in tasks:
        prompts = both_sides(get_task(name).sample(bridge.tokenizer, n_pairs, seed=seed, split=split))
        differences = answer_differences(answer_logits(bridge, prompts, [], alike=True), prompts)
        found.append(np.stack([per_pair((differences > 0).float(), prompts), per_pair(task_loss(differences), prompts)]))
    return np.concatenate(found, axis=1)


def _difference(before: Float[np.ndarray, " pair"], after: Float[np.ndarray, " other"]) -> Result:
    """Difference of two means over different prompts, each bootstrapped on its own."""
    generator = np.random.default_rng(0)
    means = [values[generator.integers(0, len(values), (1000, len(values)))].mean(1) for values in (before, after)]
    lo, hi = np.percentile(means[0] - means[1], [2.5, 97.5])
    return Result(float(before.mean() - after.mean()), float(lo), float(hi), 0.0, min(len(before), len(after)))
