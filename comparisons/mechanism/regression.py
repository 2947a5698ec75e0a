"""Few wires per neuron, or few weights? Least squares of what neurons stand for on how they are wired.

Fans and weights go in by their logarithms, so that a coefficient speaks of doublings. The number of weights is the model's, the
same for all of its neurons: that of a neuron is its two fans again. What weights explain is therefore a difference between models,
and thousands of neurons of ten models are ten numbers of weights: its interval is over recipes, and its null deals the numbers of
weights to the recipes at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from sparse_lens.comparisons.mechanism.neuron_wiring import OUTCOMES, NeuronWiring
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable

PREDICTORS = ("fan_in", "fan_out", "weights")
OF_WEIGHTS = ("coefficient_weights", "r2_weights", "weights_beyond_wires")
"""Results whose null is another dealing of the weights, where recipes are resampled."""

SETS = {"fan_in": (0,), "fan_out": (1,), "wires": (0, 1), "weights": (2,), "all": (0, 1, 2)}

_SHUFFLES, _CHUNK, _COLLINEAR, _FEWEST_RECIPES = 200, 50, 1e-6, 5
_CONSTANT, _UNDEFINED = 1e-12, 0.05

Numbers = dict[str, np.ndarray]
"""Coefficients and R² by name, each `[resample]`."""


def regress_wiring(
    models: Mapping[str, NeuronWiring],
    outcome: str = "effective_concepts",
    *,
    recipes: Mapping[str, str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Result]:
    """Least squares of an outcome of the neurons of all `models` together on fan-in, fan-out and the model's number of weights.

    `coefficient_…` are standardised; `r2_fan_in`, `r2_fan_out`, `r2_wires` (both fans), `r2_weights` and `r2_all` are shares of the
    variance; `wires_beyond_weights` and `weights_beyond_wires` what one adds to the other. Intervals are a bootstrap over neurons
    within their models: they say what other neurons of these models would give, not what other models would. `null` is the mean
    over shuffled outcomes. With `recipes`, that of each model by its name, whole recipes are resampled (fewer than five have no
    interval), and the null of `OF_WEIGHTS` is the mean over numbers of weights that are dealt to the recipes at random.
    With one model, or several of equally many weights, what weights explain is not measurable.
    Raises `UnknownNameError` for an outcome that is none, `ConfigError` without models or without one's recipe.
    """
    if outcome not in OUTCOMES:
        raise UnknownNameError("outcome", outcome, OUTCOMES)
    if not models:
        raise ConfigError("there is no model to regress over; give the wiring of at least one")
    _check_recipes(models, recipes)
    parts = {name: _table(model, outcome) for name, model in models.items()}
    tables = {name: part for name, part in parts.items() if len(part)} or parts
    table, groups = np.concatenate(list(tables.values())), _groups(list(tables), recipes)
    why = _unusable(table, outcome)
    usable = [number for number, name in enumerate(PREDICTORS) if name not in why]
    if not usable:
        return _names(why, len(table))
    sizes = [len(part) for part in tables.values()]
    found = _fit_once(table, usable)
    null = _joined(_fit_once(other, usable) for other in _shuffles(table, seed))
    if groups is not None and "weights" not in why:
        dealt = _joined(_fit_once(other, usable) for other in _dealt(table, np.repeat(groups, sizes), seed))
        null |= {name: dealt[name] for name in OF_WEIGHTS if name in dealt}
    resampled: Numbers | None = None
    if groups is None or len(set(groups)) >= _FEWEST_RECIPES:
        resampled = _joined(_fit(_moments(counts, table), usable) for counts in _resamples(sizes, groups, n_resamples, seed))
    results: dict[str, Result] = {}
    for name, value in found.items():
        lo, hi = (None, None) if resampled is None else _interval(resampled[name])
        results[name] = Result(float(value[0]), lo, hi, float(null[name].mean()), len(table))
    return _names(why, len(table)) | results


def _check_recipes(models: Mapping[str, NeuronWiring], recipes: Mapping[str, str] | None) -> None:
    if recipes is not None and (missing := [name for name in models if name not in recipes]):
        raise ConfigError(f"every model needs its recipe, {missing[0]!r} has none among {sorted(recipes)}")


def _groups(models: Sequence[str], recipes: Mapping[str, str] | None) -> list[int] | None:
    """The number of each model's recipe, in the order in which recipes come."""
    if recipes is None:
        return None
    names = list(dict.fromkeys(recipes[name] for name in models))
    return [names.index(recipes[name]) for name in models]


def _interval(values: Float[np.ndarray, " resample"]) -> tuple[float | None, float | None]:
    """The 95 % interval over resamples; none where more than a few of them leave a predictor constant, for the others are no
    random part."""
    defined = values[np.isfinite(values)]
    if len(defined) < (1 - _UNDEFINED) * len(values):
        return None, None
    lo, hi = np.percentile(defined, [2.5, 97.5])
    return float(lo), float(hi)


def wiring_table(
    models: Mapping[str, NeuronWiring],
    outcome: str = "effective_concepts",
    *,
    recipes: Mapping[str, str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Result]]:
    """`regress_wiring` of the models of each recipe, with intervals over neurons, and, as "pooled", of all over recipes.

    Beside it the means of the outcome and of the fans' logarithms, with intervals over neurons for a recipe. Without `recipes`
    every model is one. Raises what `regress_wiring` raises.
    """
    _check_recipes(models, recipes)
    of = {name: name for name in models} if recipes is None else {name: recipes[name] for name in models}
    alike: dict[str, NeuronWiring] = {}
    found: dict[str, dict[str, Result]] = {}
    for recipe in dict.fromkeys(of.values()):
        part = _of_equal_weights({name: model for name, model in models.items() if of[name] == recipe})
        found[recipe] = regress_wiring(part, outcome, n_resamples=n_resamples, seed=seed) | _means(part, outcome)
        alike |= part
    pooled = regress_wiring(alike, outcome, recipes=of, n_resamples=n_resamples, seed=seed)
    return found | {"pooled": pooled | _means(models, outcome, intervals=False)}


def _of_equal_weights(models: Mapping[str, NeuronWiring]) -> dict[str, NeuronWiring]:
    """Models of one recipe with the mean of their numbers of weights: a handful more or fewer by chance is no other number."""
    mean = round(np.mean([model.weights for model in models.values()]))
    return {name: replace(model, weights=mean) for name, model in models.items()}


def _means(models: Mapping[str, NeuronWiring], outcome: str, *, intervals: bool = True) -> dict[str, Result]:
    table = np.concatenate([_table(model, outcome) for model in models.values()])
    names = ("mean_log2_fan_in", "mean_log2_fan_out", f"mean_{outcome}")
    if not len(table):
        return dict.fromkeys(names, not_measurable("no neuron has this outcome"))
    columns = dict(zip(names, table[:, [0, 1, 3]].T, strict=True))
    if intervals:
        return {name: bootstrap_mean(column, seeds=len(models)) for name, column in columns.items()}
    return {name: exact(float(column.mean()), n=len(column), seeds=len(models)) for name, column in columns.items()}


def _table(model: NeuronWiring, outcome: str) -> Float[np.ndarray, "neuron column"]:
    """Logarithms of the predictors to base 2, then the outcome; neurons without one are left out."""
    fans = [np.log2(model.fan_in), np.log2(model.fan_out), np.full(len(model.fan_in), np.log2(model.weights))]
    table = np.stack([*fans, model.outcomes[outcome]], axis=1)
    return table[np.isfinite(table).all(1)]


def _unusable(table: Float[np.ndarray, "neuron column"], outcome: str) -> dict[str, str]:
    """Predictors that cannot have a coefficient, and why; all of them if the outcome does not vary."""
    if len(table) <= len(PREDICTORS) + 1 or np.ptp(table[:, 3]) == 0:
        return dict.fromkeys(PREDICTORS, f"{outcome} does not vary over the {len(table)} neurons that have it")
    why: dict[str, str] = {}
    for number, name in enumerate(PREDICTORS):
        before = [other for other in range(number) if PREDICTORS[other] not in why]
        if np.ptp(table[:, number]) == 0:
            why[name] = f"{name} is the same for all {len(table)} neurons"
        elif before and np.linalg.eigvalsh(np.corrcoef(table[:, [*before, number]].T))[0] < _COLLINEAR:
            why[name] = f"{name} follows from {' and '.join(PREDICTORS[other] for other in before)}"
    return why


def _moments(
    counts: Float[np.ndarray, "resample neuron"], table: Float[np.ndarray, "neuron column"]
) -> Float[np.ndarray, "resample column column"]:
    """Correlation matrices of the columns, with neurons counted as often as they were drawn.

    A column that is constant in a resample, where all the rest is rounding, has zeros there, on the diagonal, too.
    """
    centred = table - table.mean(0)
    scaled = centred / np.where(centred.any(0), np.abs(centred).max(0), 1.0)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ scaled
    products = (share @ (scaled[:, :, None] * scaled[:, None, :]).reshape(len(table), -1)).reshape(-1, 4, 4)
    covariance = products - mean[:, :, None] * mean[:, None, :]
    variance = np.einsum("rcc->rc", covariance)
    inverse = np.where(variance > _CONSTANT, 1 / np.sqrt(np.maximum(variance, _CONSTANT)), 0.0)
    return covariance * inverse[:, :, None] * inverse[:, None, :]


def _fit_once(table: Float[np.ndarray, "neuron column"], usable: Sequence[int]) -> Numbers:
    return _fit(_moments(np.ones((1, len(table))), table), usable)


def _fit(correlation: np.ndarray, usable: Sequence[int]) -> Numbers:
    """Standardised coefficients, and R² of every set of predictors that is whole, for each correlation matrix.

    NaN where one of the predictors, or the outcome, is constant.
    """
    found: Numbers = {}
    constant = np.einsum("rcc->rc", correlation) == 0
    for name, members in SETS.items():
        inside = [number for number in members if number in usable]
        if inside and (name == "all" or len(inside) == len(members)):
            with_y = correlation[:, inside, 3]
            beta = np.einsum("rij,rj->ri", np.linalg.pinv(correlation[:, inside][:, :, inside], hermitian=True), with_y)
            beta[constant[:, [*inside, 3]].any(1)] = np.nan
            found[f"r2_{name}"] = (beta * with_y).sum(1)
            if name == "all":
                found |= {f"coefficient_{PREDICTORS[number]}": beta[:, place] for place, number in enumerate(inside)}
    if len(usable) == len(PREDICTORS):
        found["wires_beyond_weights"] = found["r2_all"] - found["r2_weights"]
        found["weights_beyond_wires"] = found["r2_all"] - found["r2_wires"]
    return found


def _names(why: Mapping[str, str], n: int) -> dict[str, Result]:
    """Every name of a result, not measurable for the reason that a predictor it needs has."""
    if not why:
        return {}
    missing = {f"coefficient_{name}": reason for name, reason in why.items()}
    for name, members in SETS.items():
        missing |= {f"r2_{name}": why[PREDICTORS[number]] for number in members if PREDICTORS[number] in why}
    reason = next(iter(why.values()))
    missing |= dict.fromkeys(("wires_beyond_weights", "weights_beyond_wires"), reason)
    return {name: not_measurable(text, n=n) for name, text in missing.items()}


def _resamples(
    sizes: Sequence[int], groups: Sequence[int] | None, n_resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "resample neuron"]]:
    """How often each neuron is drawn: as many of each model as it has or, with the `groups` of models, as often as its group."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_resamples, _CHUNK):
        size = min(_CHUNK, n_resamples - start)
        if groups is None:
            drawn = [rng.multinomial(n, np.full(n, 1 / n), size=size) for n in sizes if n]
            yield np.concatenate(drawn, axis=1).astype(np.float64)
        else:
            n_groups = max(groups) + 1
            counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=size)
            yield counts[:, np.repeat(groups, sizes)].astype(np.float64)


def _dealt(
    table: Float[np.ndarray, "neuron column"], groups: np.ndarray, seed: int
) -> Iterator[Float[np.ndarray, "neuron column"]]:
    """The table with each group's weights (of its first neuron, for seeds of one recipe may differ a little) another group's."""
    rng = np.random.default_rng(seed + 2)
    names, first = np.unique(groups, return_index=True)
    weights, place = table[first, 2], np.searchsorted(names, groups)
    for _ in range(_SHUFFLES):
        yield np.column_stack([table[:, :2], rng.permutation(weights)[place], table[:, 3]])


def _shuffles(table: Float[np.ndarray, "neuron column"], seed: int) -> Iterator[Float[np.ndarray, "neuron column"]]:
    rng = np.random.default_rng(seed + 1)
    for _ in range(_SHUFFLES):
        yield np.concatenate([table[:, :3], rng.permutation(table[:, 3:])], axis=1)


def _joined(parts: Iterator[Numbers]) -> Numbers:
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
