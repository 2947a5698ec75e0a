"""The phase diagram of the toy model under a budget of weights: what is represented, shared and dropped as the budget falls."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.comparisons.mechanism.toy_model import draw_features, loss_of_monosemantic, loss_of_nothing, toy_losses
from sparse_lens.comparisons.mechanism.toy_reading import gains, read_cells, rotated, shuffled
from sparse_lens.comparisons.mechanism.toy_training import ToyCells, ToyConfig, train_cells
from sparse_lens.errors import ConfigError
from sparse_lens.results import Result, not_measurable

if TYPE_CHECKING:
    import pandas as pd

_TEST_ROWS = 8192
_ROTATED = ("features_per_neuron", "neurons_per_feature", "shared_neurons")
"""What depends on the basis of neurons: its null is the rotated twin's. That of the rest is of the weights at random places."""

_MISSING = {
    "importance_order": "all features are represented, or none",
    "features_per_neuron": "no neuron has a weight",
    "shared_neurons": "no neuron has a weight",
    "neurons_per_feature": "no feature is represented",
    "dimensionality": "no feature is represented",
    "psi": "no feature has a weight",
}
_DIVERGED = "the training came to no finite number; lower the learning rate"

Cell = tuple[float, float, int]
"""Activity of the features, decay of their importance, budget of weights."""


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Toy models on a grid of activity, importance and budget, several seeds each.

    `measures` has for every number of `read_cells`, and for `loss`, an array `[seed activity decay budget]`, NaN where a model has
    no such number; `nulls` the same of its null; `gains` says how much of each feature comes back. `loss` is in shares of the loss
    of a model that represents nothing, its null the least of a model that gives each feature a neuron of its own.
    """

    config: ToyConfig
    seeds: tuple[int, ...]
    activities: tuple[float, ...]
    decays: tuple[float, ...]
    budgets: tuple[int, ...]
    measures: Mapping[str, Float[np.ndarray, "seed activity decay budget"]]
    nulls: Mapping[str, Float[np.ndarray, "seed activity decay budget"]]
    gains: Float[np.ndarray, "seed activity decay budget feature"]

    @property
    def results(self) -> dict[Cell, dict[str, Result]]:
        """The numbers of every cell: mean over seeds, between the least and the largest of them."""
        grid = itertools.product(enumerate(self.activities), enumerate(self.decays), enumerate(self.budgets))
        return {(activity, decay, budget): self._cell(a, d, k) for (a, activity), (d, decay), (k, budget) in grid}

    def _cell(self, a: int, d: int, k: int) -> dict[str, Result]:
        return {name: _over_seeds(name, m[:, a, d, k], self.nulls[name][:, a, d, k]) for name, m in self.measures.items()}

    def to_frame(self) -> pd.DataFrame:
        """Tidy table, one row a number of a cell."""
        import pandas as pd

        rows = [
            {"activity": activity, "decay": decay, "budget": budget, "metric": name} | result.to_json()
            for (activity, decay, budget), found in self.results.items()
            for name, result in found.items()
        ]
        return pd.DataFrame(rows)


def phase_diagram(
    activities: Sequence[float] = (1.0, 0.3, 0.1, 0.01),
    decays: Sequence[float] = (1.0, 0.8),
    budgets: Sequence[int] = (0, 2, 5, 10, 20, 100),
    *,
    config: ToyConfig | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> PhaseDiagram:
    """Train a toy model for every activity, decay (feature i has importance `decay ** i`), budget and seed, and read them.

    `activity` is the chance that a feature is not zero, `budget` the number of weights a model may keep; all cells of a seed are
    trained side by side. `psi` and `dimensionality` tell of superposition only with a budget or unequal importance: without either,
    dense models keep any subspace, spread over all features. The defaults take a quarter of a minute on one core.
    Raises `ConfigError` for an empty axis, a decay outside (0, 1], or what `ToyCells` refuses.

    Example: `phase_diagram(budgets=(5, 10)).to_frame().query("metric == 'psi'")`.
    """
    config = config or ToyConfig()
    if not (activities and decays and budgets and seeds):
        raise ConfigError("a phase diagram needs at least one activity, decay, budget and seed")
    if not all(0 < decay <= 1 for decay in decays):
        raise ConfigError(f"importance decays by a factor above 0 and up to 1, got {list(decays)}")
    cells = _cells(config, list(itertools.product(activities, decays, budgets)))
    read = [_read(config, cells, seed) for seed in seeds]
    shape = (len(seeds), len(activities), len(decays), len(budgets))
    measures, nulls = (
        {name: np.stack([part[which][name] for part in read]).reshape(shape) for name in read[0][which]} for which in (0, 1)
    )
    gain = np.stack([part[2] for part in read]).reshape(*shape, config.n_features)
    return PhaseDiagram(config, tuple(seeds), tuple(activities), tuple(decays), tuple(budgets), measures, nulls, gain)


def _cells(config: ToyConfig, grid: Sequence[Cell]) -> ToyCells:
    index = torch.arange(config.n_features)
    return ToyCells(
        activity=torch.tensor([float(activity) for activity, _, _ in grid]),
        importance=torch.stack([float(decay) ** index.float() for _, decay, _ in grid]),
        budget=torch.tensor([budget for _, _, budget in grid]),
    )


def _read(config: ToyConfig, cells: ToyCells, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Measures, their nulls, and gains of one seed's cells."""
    W, b = train_cells(config, cells, seed=seed)
    found, turned, moved = (read_cells(weights, cells.importance) for weights in (W, rotated(W, seed=seed), shuffled(W, seed=seed)))
    measures = {name: values.numpy() for name, values in found.items()}
    nulls = {name: (turned if name in _ROTATED else moved)[name].numpy() for name in found}
    nothing, monosemantic = _known_losses(config, cells)
    measures["loss"] = held_out_losses(W, b, cells).numpy() / nothing
    return measures, nulls | {"loss": monosemantic / nothing}, gains(W.double()).numpy()


def held_out_losses(
    W: Float[Tensor, "cell neuron feature"], b: Float[Tensor, "cell feature"], cells: ToyCells
) -> Float[Tensor, " cell"]:
    """Losses of every cell on evenly spread draws (Sobol's), the same for all."""
    uniform = torch.quasirandom.SobolEngine(b.shape[1], scramble=True, seed=0).draw(_TEST_ROWS)
    parts = [toy_losses(W, b, draw_features(rows, cells.activity), cells.importance) for rows in uniform.split(512)]
    return torch.stack(parts).double().mean(0)


def _known_losses(config: ToyConfig, cells: ToyCells) -> tuple[np.ndarray, np.ndarray]:
    """Losses of nothing, and of as many of the most important features as there are neurons and weights for."""
    rows = list(zip(cells.importance.double().numpy(), cells.activity.tolist(), cells.budget.tolist(), strict=True))
    nothing = [loss_of_nothing(importance, activity) for importance, activity, _ in rows]
    own = [loss_of_monosemantic(importance, activity, min(budget, config.n_neurons)) for importance, activity, budget in rows]
    return np.array(nothing), np.array(own)


def _over_seeds(name: str, values: np.ndarray, nulls: np.ndarray) -> Result:
    there = np.isfinite(values)
    if not there.any():
        return not_measurable(_MISSING.get(name, _DIVERGED), seeds=len(values))
    null = float(np.nanmean(nulls)) if np.isfinite(nulls).any() else None
    found = values[there]
    return Result(float(found.mean()), float(found.min()), float(found.max()), null, len(found), len(found))
