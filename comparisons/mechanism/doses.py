"""Dose and response: does a measure rise or fall with the density of weights, among models that are equally good?

A model is compared at the loss of a target model only. Of several at one density and seed (widths, checkpoints) the one whose loss
is nearest is taken if it is near enough, or two on either side are interpolated; doses that allow neither are named, not used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sparse_lens.comparisons.curves.loss_matching import TOLERANCE, Matched, match_losses
from sparse_lens.comparisons.rank_correlation import rank_correlation
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.results import NOISE, Result, bootstrap_mean, exact, not_measurable
from sparse_lens.training import window_losses

FEWEST_DOSES = 4
"""Densities below which no order says anything: of three, a third of all orders is monotone."""

_ENUMERATED, _DRAWN = 7, 5000
_MEASURES = ("spearman", "slope_per_decade", "permutation_p")


@dataclass(frozen=True)
class Dose:
    """One model: the density of its matrices, its loss in nats a token, what the measure gives for it, and its training seed."""

    density: float
    loss: Result
    value: Result
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(f"a density is a share of nonzeros above 0 and up to 1, got {self.density}")


@dataclass(frozen=True, eq=False)
class DoseResponse:
    """The order in `results`; the points behind it, and how each density and seed was matched to the target's loss.

    `points` are `(density, value)` at the matched loss, by rising density.
    """

    results: Mapping[str, Result]
    points: tuple[tuple[float, Result], ...]
    matches: Mapping[tuple[float, int], Matched]

    @property
    def apart(self) -> dict[tuple[float, int], str]:
        """The densities and seeds that are not used as no model of theirs is as good as the target, and why."""
        return {place: match.reason for place, match in self.matches.items() if not match.comparable}


def measure_doses(
    models: Mapping[str, tuple[float, int, Any]],
    estimator: Callable[[Any], Result],
    heldout: Int[np.ndarray, "window pos"],
) -> dict[str, Dose]:
    """A dose of each model, given as `(density, training seed, bridge)`: loss on windows of token ids, and what `estimator` gives.

    Example: `measure_doses(models, lambda bridge: measure_superposition(bridge, sae(bridge), tokens)["psi"], heldout)`.
    """
    found = {}
    for name, (density, seed, bridge) in models.items():
        loss = bootstrap_mean(np.asarray(window_losses(bridge, heldout), dtype=np.float64))
        found[name] = Dose(density, loss, estimator(bridge), seed)
    return found


def dose_response(
    doses: Mapping[str, Dose], *, target: str, tolerance: float = TOLERANCE, n_resamples: int = 1000, seed: int = 0
) -> DoseResponse:
    """Spearman's correlation of a measure with the density of weights, among models at the loss of the model `target`.

    `spearman` and `slope_per_decade` (of the measure, for ten times the density) have a 95 % bootstrap interval over models, in
    which each value also varies within its own interval; `permutation_p` is the share of all orders that are as strong (two-sided),
    `doses` the number of densities used. Not measurable from fewer than 4 densities.
    Raises `UnknownNameError` for a target that is no model, and as `match_losses` does.
    """
    if target not in doses:
        raise UnknownNameError("model", target, doses)
    aim = doses[target].loss
    places = sorted({(dose.density, dose.seed) for dose in doses.values()})
    matches, points = {}, []
    for place in places:
        here = {name: dose for name, dose in doses.items() if (dose.density, dose.seed) == place}
        match = match_losses(aim, {name: dose.loss for name, dose in here.items()}, tolerance=tolerance)
        matches[place] = match
        value = match.value({name: dose.value for name, dose in here.items()})
        if value.value is not None:
            points.append((place, value))
    densities = [place[0] for place, _ in points]
    results = _measured(np.array(densities), [value for _, value in points], n_resamples, seed)
    seeds = len({place[1] for place, _ in points})
    results["doses"] = exact(len(set(densities)), n=len(places), seeds=max(1, seeds))
    return DoseResponse(results, tuple(zip(densities, (value for _, value in points), strict=True)), matches)


def _measured(density: Float[np.ndarray, " point"], found: list[Result], n_resamples: int, seed: int) -> dict[str, Result]:
    values = np.array([result.value for result in found], dtype=np.float64)
    if (n_doses := len(np.unique(density))) < FEWEST_DOSES:
        reason = f"{n_doses} densities have a value at the target's loss, {FEWEST_DOSES} are needed"
        return dict.fromkeys(_MEASURES, not_measurable(reason, n=len(values)))
    if np.ptp(values) <= NOISE * max(np.abs(values).max(), 1.0):
        return dict.fromkeys(_MEASURES, not_measurable("the measure is the same at every density", n=len(values)))
    rng, dose = np.random.default_rng(seed), np.log10(density)
    errors = np.array([_error(result) for result in found])
    picks = rng.integers(0, len(values), (n_resamples, len(values)))
    noisy = values[picks] + errors[picks] * rng.standard_normal(picks.shape)
    varied = (np.ptp(dose[picks], axis=1) > 0) & (np.ptp(noisy, axis=1) > 0)
    drawn = [measure(dose[picks[varied]], noisy[varied]) for measure in (rank_correlation, _slope)]
    ends = np.percentile(np.stack(drawn, axis=1), [2.5, 97.5], axis=0)
    rho, slope = (float(measure(dose[None], values[None])[0]) for measure in (rank_correlation, _slope))
    n = len(values)
    return {
        "spearman": Result(rho, float(ends[0, 0]), float(ends[1, 0]), 0.0, n),
        "slope_per_decade": Result(slope, float(ends[0, 1]), float(ends[1, 1]), 0.0, n),
        "permutation_p": exact(_permutation_p(dose, values, abs(rho), rng), n=n),
    }


def _error(result: Result) -> float:
    """Standard error of a value from its interval; 0 without one."""
    return 0.0 if result.lo is None or result.hi is None else (result.hi - result.lo) / (2 * 1.96)


def _slope(dose: Float[np.ndarray, "row point"], values: Float[np.ndarray, "row point"]) -> Float[np.ndarray, " row"]:
    """Of least squares, row by row."""
    centred = dose - dose.mean(-1, keepdims=True)
    return (centred * values).sum(-1) / (centred * centred).sum(-1)


def _permutation_p(
    dose: Float[np.ndarray, " point"], values: Float[np.ndarray, " point"], strength: float, rng: np.random.Generator
) -> float:
    """Share of orders of the values as strong as that found: all of up to 7, else so many drawn ones and that found."""
    n, everything = len(values), len(values) <= _ENUMERATED
    orders = (
        np.array(list(itertools.permutations(range(n)))) if everything else rng.permuted(np.tile(np.arange(n), (_DRAWN, 1)), axis=1)
    )
    strong = int((np.abs(rank_correlation(np.broadcast_to(dose, orders.shape), values[orders])) >= strength - 1e-9).sum())
    return strong / len(orders) if everything else (strong + 1) / (_DRAWN + 1)
