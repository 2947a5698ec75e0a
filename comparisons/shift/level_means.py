"""Means by text and level, streamed, with what is bootstrapped from them: levels, slopes and rank correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from sparse_lens.results import Result, not_measurable

_FEWEST_FILES = 5
"""A bootstrap over fewer texts says nothing."""


@dataclass(eq=False)
class LevelSums:
    """Sums of columns by text and level; NaN in a row's column is left out of that column alone."""

    n_files: int
    n_levels: int
    n_columns: int
    sums: np.ndarray = field(init=False, repr=False)
    counts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((self.n_files, self.n_levels, self.n_columns))
        self.counts = np.zeros((self.n_files, self.n_levels, self.n_columns))

    def add(self, rows: Float[np.ndarray, "row column"], *, level: int, files: Int[np.ndarray, " row"]) -> None:
        """Take in rows of one level, each with the number of its text."""
        known = np.isfinite(rows)
        np.add.at(self.sums[:, level], files, np.where(known, rows, 0.0))
        np.add.at(self.counts[:, level], files, known)

    @property
    def present(self) -> Bool[np.ndarray, "file level"]:
        """Whether a text is at a level."""
        return np.asarray(self.counts.any(-1))

    def levels(self, weights: Float[np.ndarray, "draw file"]) -> Float[np.ndarray, "draw level column"]:
        """Mean over the rows of the texts drawn; NaN for a level without any."""
        shape = (len(weights), self.n_levels, self.n_columns)
        sums, counts = ((weights @ part.reshape(self.n_files, -1)).reshape(shape) for part in (self.sums, self.counts))
        return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)

    def slopes(self, shift: Sequence[float], weights: Float[np.ndarray, "draw file"]) -> Float[np.ndarray, "draw column"]:
        """Least-squares slope of all rows against the shift of their level."""
        x = np.asarray(shift)
        shape = (len(weights), self.n_levels, self.n_columns)
        sums, counts = ((weights @ part.reshape(self.n_files, -1)).reshape(shape) for part in (self.sums, self.counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            off = x[:, None] - (counts * x[:, None]).sum(1, keepdims=True) / counts.sum(1, keepdims=True)
            return (off * sums).sum(1) / (off**2 * counts).sum(1)

    def rank_correlations(
        self, shift: Sequence[float], weights: Float[np.ndarray, "draw file"]
    ) -> Float[np.ndarray, "draw column"]:
        """Spearman's correlation of shift and a text's mean.

        Where all texts are at all levels: within each text, averaged over those drawn (a text whose mean never changes has no
        ranks and does not count). Otherwise over texts.
        """
        means = np.where(self.counts > 0, self.sums / np.where(self.counts > 0, self.counts, 1), np.nan)
        if self.present.all():
            return _within_texts(means, np.asarray(shift), weights)
        columns = [_over_texts(means[..., column], np.asarray(shift), weights) for column in range(self.n_columns)]
        return np.stack(columns, -1)

    def draw_weights(self, n_boot: int, seed: int) -> Float[np.ndarray, "draw file"]:
        """How often each text counts: first every one once, then draws with replacement among those at the same levels."""
        generator, present = np.random.default_rng(seed), self.present
        weights = np.zeros((1 + n_boot, self.n_files))
        weights[0] = present.any(1)
        for pattern in np.unique(present[present.any(1)], axis=0):
            members = np.flatnonzero((present == pattern).all(1))
            weights[1:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), n_boot)
        return weights


def _within_texts(
    means: Float[np.ndarray, "file level column"], shift: Float[np.ndarray, " level"], weights: Float[np.ndarray, "draw file"]
) -> Float[np.ndarray, "draw column"]:
    ranks, x = rankdata(means, axis=1), rankdata(shift)
    ranks, x = ranks - ranks.mean(1, keepdims=True), x - x.mean()
    spread = np.sqrt((ranks**2).sum(1) * (x**2).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.einsum("glm,l->gm", ranks, x) / spread
        known = np.isfinite(each)
        return weights @ np.where(known, each, 0.0) / (weights @ known.astype(float))


def _over_texts(
    means: Float[np.ndarray, "file level"], shift: Float[np.ndarray, " level"], weights: Float[np.ndarray, "draw file"]
) -> Float[np.ndarray, " draw"]:
    file, level = np.isfinite(means).nonzero()
    both = np.stack([rankdata(means[file, level]), rankdata(shift[level])])
    drawn = weights[:, file]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = drawn @ both.T / drawn.sum(1, keepdims=True)
        off = both[None] - mean[..., None]
        covariance = np.einsum("br,bir,bjr->bij", drawn, off, off)
        return covariance[:, 0, 1] / np.sqrt(covariance[:, 0, 0] * covariance[:, 1, 1])


def result_of(draws: Float[np.ndarray, " draw"], n_files: int, *, null: float | None = 0.0) -> Result:
    """The first draw, which is of the texts as they are, with the 95 % interval of the others; without one below five texts."""
    if not np.isfinite(draws[0]):
        return not_measurable("nothing varies here once the controls are held constant", n=n_files)
    rest = draws[1:][np.isfinite(draws[1:])]
    if n_files < _FEWEST_FILES or not len(rest):
        return Result(float(draws[0]), null=null, n=n_files)
    lo, hi = np.percentile(rest, [2.5, 97.5])
    return Result(float(draws[0]), float(lo), float(hi), null, n_files)
