"""A decision tree grown split by split, best first: how many units a label needs, and what is left without the best ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

_LEVELS = 16


@dataclass(frozen=True, eq=False)
class Split:
    """The best cut of some rows: rows whose `unit` is above `level` go right; `gain` is the fall of the Gini impurity, in rows."""

    unit: int
    level: float
    gain: float


@dataclass(frozen=True, eq=False)
class Cuts:
    """Rows by the cuts that they lie above, counted once, so that any rows' counts for all cuts are two histograms.

    `levels` are tried in their order, of equal gains the first; `order` sorts each unit's. `places` holds for each row and unit
    the bin of that unit that it falls into: how many of the unit's levels are below its value.
    """

    levels: Float[np.ndarray, "level unit"]
    order: Int[np.ndarray, "level unit"]
    places: Int[np.ndarray, "row unit"]

    @classmethod
    def of(cls, inputs: Float[np.ndarray, "row unit"], levels: Float[np.ndarray, "level unit"]) -> Cuts:
        below = np.zeros(inputs.shape, dtype=np.int64)
        for cuts in levels:
            below += inputs > cuts
        return cls(levels, np.argsort(levels, axis=0, kind="stable"), below + np.arange(levels.shape[1]) * (len(levels) + 1))

    def gains(self, rows: Int[np.ndarray, " some"], labels: Bool[np.ndarray, " row"]) -> Float[np.ndarray, "level unit"]:
        """How much the impurity of these rows falls by each cut."""
        n, n_with = len(rows), int(labels[rows].sum())
        n_right, with_right = self._above(rows), self._above(rows[labels[rows]])
        return _impurity(n_with, n) - _impurity(with_right, n_right) - _impurity(n_with - with_right, n - n_right)

    def _above(self, rows: Int[np.ndarray, " some"]) -> Int[np.ndarray, "level unit"]:
        """How many of these rows lie above each level."""
        bins = len(self.levels) + 1
        counts = np.bincount(self.places[rows].ravel(), minlength=bins * self.levels.shape[1]).reshape(-1, bins).T
        above = np.empty(self.levels.shape, dtype=np.int64)
        np.put_along_axis(above, self.order, counts[::-1].cumsum(0)[-2::-1], axis=0)
        return above

    def best(self, gains: Float[np.ndarray, "level unit"]) -> Split:
        """The cut with the greatest gain."""
        level, unit = np.unravel_index(int(gains.argmax()), gains.shape)
        return Split(int(unit), float(self.levels[level, unit]), float(gains[level, unit]))


def _impurity(n_with: np.ndarray | int, n: np.ndarray | int) -> np.ndarray:
    """Gini impurity times the number of rows."""
    return np.asarray(2 * n_with * (1 - n_with / np.maximum(n, 1)))


def levels_of(inputs: Float[np.ndarray, "row unit"]) -> Float[np.ndarray, "level unit"]:
    """Cuts that are tried: 0, and 15 quantiles of what each unit gives above zero, or of everything where it has negatives."""
    shares = np.arange(1, _LEVELS) / _LEVELS
    shown = np.where((inputs > 0) | (inputs < 0).any(0), inputs, np.nan)
    empty = np.isnan(shown).all(0)
    shown[:, empty] = 0
    return np.concatenate([np.zeros((1, inputs.shape[1])), np.nanquantile(shown, shares, axis=0)])


@dataclass(frozen=True, eq=False)
class TreeAccuracies:
    """Accuracy on the test rows of the best single cut (`first`), of the best one without the first `p` units (`without [p]`, from
    p = 1), and of the tree after each further split (`grown [split]`)."""

    first: float
    without: Float[np.ndarray, " removed"]
    grown: Float[np.ndarray, " split"]


def tree_accuracies(
    train: tuple[Float[np.ndarray, "row unit"], Bool[np.ndarray, " row"]],
    test: tuple[Float[np.ndarray, "other unit"], Bool[np.ndarray, " other"]],
    *,
    n_removed: int,
    n_grown: int,
) -> TreeAccuracies:
    """Grow on the training rows, measure on the test rows; units are removed in the order in which they make the best first cut."""
    cuts = Cuts.of(train[0], levels_of(train[0]))
    gains = cuts.gains(np.arange(len(train[1])), train[1])
    root, single = cuts.best(gains), []
    for removed in range(1 + n_removed):
        split = cuts.best(gains) if removed < gains.shape[1] else Split(0, np.inf, 0.0)
        single.append(_accuracy_of_cut(train, test, split.unit, split.level))
        gains[:, split.unit] = -np.inf
    return TreeAccuracies(single[0], np.array(single[1:]), _growing(train, test, cuts, root, n_grown))


def _accuracy_of_cut(train: tuple, test: tuple, unit: int, level: float) -> float:
    right, at_test = train[0][:, unit] > level, test[0][:, unit] > level
    says = [_majority(train[1][~right], train[1]), _majority(train[1][right], train[1])]
    return float((np.where(at_test, says[1], says[0]) == test[1]).mean())


def _majority(labels: np.ndarray, every: np.ndarray) -> bool:
    return bool((labels if len(labels) else every).mean() > 0.5)


def _growing(train: tuple, test: tuple, cuts: Cuts, root: Split, n_grown: int) -> np.ndarray:
    """Accuracy after the second split, the third, and so on: always the one that gains most, over all leaves."""
    leaves = [(np.arange(len(train[1])), np.arange(len(test[1])))]
    splits = [root]
    accuracies: list[float] = []
    for _ in range(1 + n_grown):
        best = max(range(len(leaves)), key=lambda leaf: splits[leaf].gain)
        if splits[best].gain > 0:
            (rows, others), split = leaves.pop(best), splits.pop(best)
            right, others_right = train[0][rows, split.unit] > split.level, test[0][others, split.unit] > split.level
            for side, others_side in ((~right, ~others_right), (right, others_right)):
                leaves.append((rows[side], others[others_side]))
                splits.append(cuts.best(cuts.gains(rows[side], train[1])))
        right_ones = sum(int((test[1][others] == _majority(train[1][rows], train[1])).sum()) for rows, others in leaves)
        accuracies.append(right_ones / len(test[1]))
    return np.array(accuracies[1:])
