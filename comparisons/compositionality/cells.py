"""What the masks of one model scored, cell by cell, and the results of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sparse_lens.comparisons.compositionality.weight_masks import Masks, chance_overlap, n_kept, overlap
from sparse_lens.results import Result, exact, not_measurable

CHANCE = 0.5
"""Accuracy of a guess between the two answers."""

THRESHOLD = 0.1
"""How far `d_sub` must lie above 0 and `d_abl` below, for a mask to count as compositional: the reading of the released data."""

CONDITIONS = ("sub_own", "sub_other", "abl_own", "abl_other")
RANDOM = ("random_d_sub", "random_d_abl", "complement_d_abl")
_OF_REAL = (*CONDITIONS, "d_sub", "d_abl", *RANDOM, "score", "compositional", "kept", "kept_share")
_OF_CONTROL = (*CONDITIONS, "d_sub", "d_abl", "random_d_abl", "score", "compositional", "kept_share")
_OF_BOTH = ("d_sub", "d_abl", "score", "compositional", "kept_share")
_RANDOM_MASK = "random_mask"

REAL = "real"
"""The weights that the model has; a control puts others in their place."""


def difference(accuracies: Mapping[str, float], part: str) -> float:
    """Own minus other accuracy under `sub` or `abl`, both floored at chance."""
    own, other = (max(accuracies[f"{part}_{which}"], CHANCE) for which in ("own", "other"))
    return own - other


@dataclass(frozen=True)
class Cell:
    """One mask: of which subroutine, seed and weights (`real`, or a control's name), and its accuracies by condition, not floored.

    `random` has the differences of random masks with as many units of every matrix, means over draws: `random_d_sub` and
    `random_d_abl` of units drawn anywhere, `complement_d_abl` of units outside the mask (None where it has more than half of a
    matrix). The last spares the own subroutine, so where circuits are apart it is above 0.
    """

    subroutine: str
    seed: int
    weights: str
    kept: int
    kept_share: float
    accuracies: Mapping[str, float]
    random: Mapping[str, float | None]

    @property
    def d_sub(self) -> float:
        """Own minus other accuracy of the mask alone, floored at chance."""
        return difference(self.accuracies, "sub")

    @property
    def d_abl(self) -> float:
        """Own minus other accuracy without the mask, floored at chance."""
        return difference(self.accuracies, "abl")

    @property
    def score(self) -> float:
        """Both together, in [-1, 1]."""
        return (self.d_sub - self.d_abl) / (2 * (1 - CHANCE))

    @property
    def compositional(self) -> bool:
        """Whether both differences pass the threshold."""
        return self.d_sub > THRESHOLD and self.d_abl < -THRESHOLD

    def value(self, name: str) -> float | None:
        """A number of the cell by its metric's name; None where a random mask could not be drawn."""
        if name in CONDITIONS:
            return self.accuracies[name]
        return self.random[name] if name in RANDOM else float(getattr(self, name))


@dataclass(frozen=True, eq=False)
class Compositionality:
    """All cells, and the masks of the real weights by (subroutine, seed).

    `accuracies` are the whole model's on the `names` of the subroutines; `allowed` is what could be masked; `missing` says of a
    control, or of `real`, why it has no cells.
    """

    names: tuple[str, str]
    accuracies: Mapping[str, Result]
    allowed: Masks
    n_prompts: int
    cells: tuple[Cell, ...] = ()
    masks: Mapping[tuple[str, int], Masks] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def cells_of(self, names: Sequence[str], weights: str = REAL) -> list[Cell]:
        """The cells of some subroutines, one a seed and subroutine."""
        return [cell for cell in self.cells if cell.subroutine in names and cell.weights == weights]

    @cached_property
    def results(self) -> dict[str, Result]:
        """Means over mask seeds, with the least and the largest: of both subroutines together, and of each as `NAME_…`.

        `d_sub` and `d_abl` have the random mask's as their null, and `d_abl` has it as a control, too: `random_mask_d_abl`;
        `CONTROL_d_abl` and the like are a control's; `compositional` is
        the share of masks that pass both thresholds; `kept_share` is of the `maskable` weights, the nonzero ones; `overlap`
        (between the subroutines) and `NAME_seed_overlap` have the overlap of independent masks as their null.
        """
        found = {f"{name}_model_accuracy": result for name, result in self.accuracies.items()}
        found |= {"maskable": exact(n_kept(self.allowed)), "overlap": self._between_subroutines()}
        found |= self._metrics("", self.names, _OF_BOTH, _OF_BOTH)
        found[f"{_RANDOM_MASK}_d_abl"] = self._over(self.names, REAL, "random_d_abl")
        for name in self.names:
            found |= self._metrics(f"{name}_", (name,), _OF_REAL, _OF_CONTROL)
            found[f"{name}_seed_overlap"] = self._between_seeds(name)
        return found

    def _metrics(self, prefix: str, names: Sequence[str], real: Sequence[str], control: Sequence[str]) -> dict[str, Result]:
        found = {f"{prefix}{metric}": self._over(names, REAL, metric) for metric in real}
        for other in self.controls:
            found |= {f"{prefix}{other}_{metric}": self._over(names, other, metric) for metric in control}
        return found

    def _over(self, names: Sequence[str], weights: str, metric: str) -> Result:
        cells = self.cells_of(names, weights)
        if not cells:
            return not_measurable(self.missing.get(weights, self.missing.get(REAL, "not run")), n=self.n_prompts)
        values = [value for cell in cells if (value := cell.value(metric)) is not None]
        if len(values) < len(cells):
            return not_measurable("a mask keeps more than half of a matrix: no random one fits outside it", n=self.n_prompts)
        drawn = [cell.value(f"random_{metric}") for cell in cells] if metric in ("d_sub", "d_abl") else []
        null = CHANCE if metric in CONDITIONS else _mean(drawn)
        seeds = len({cell.seed for cell in cells})
        return Result(float(np.mean(values)), *_ends(values), null=null, n=self.n_prompts, seeds=seeds)

    def _between_subroutines(self) -> Result:
        seeds = sorted({seed for _, seed in self.masks})
        return self._overlap([((self.names[0], seed), (self.names[1], seed)) for seed in seeds])

    def _between_seeds(self, name: str) -> Result:
        seeds = [seed for which, seed in self.masks if which == name]
        return self._overlap([((name, first), (name, second)) for first in seeds for second in seeds if first < second])

    def _overlap(self, pairs: Sequence[tuple[tuple[str, int], tuple[str, int]]]) -> Result:
        if not pairs:
            return not_measurable(self.missing.get(REAL, "an overlap across mask seeds needs two of them"), n=self.n_prompts)
        masks = [(self.masks[first], self.masks[second]) for first, second in pairs]
        values = [overlap(first, second) for first, second in masks]
        null = _mean([chance_overlap(first, second, self.allowed) for first, second in masks])
        seeds = len({seed for pair in pairs for _, seed in pair})
        return Result(float(np.mean(values)), *_ends(values), null=null, n=n_kept(self.allowed), seeds=seeds)


def _ends(values: Sequence[float]) -> tuple[float | None, float | None]:
    return (float(min(values)), float(max(values))) if len(values) > 1 else (None, None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
