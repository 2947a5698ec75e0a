"""Slopes against a shift with token identity, position and norm held constant, from streamed sums, with intervals over texts.

The model of a row (one token that was read) is `y = slope shift + b position + c log norm + (a constant of the token's id)`.
Rows are kept as sums: products by text, and totals by text and token id. A draw of texts weights these, so that each draw is an
exact regression of its own, with its own constants.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from sparse_lens.errors import DataError

_CHUNK = 50
_CONSTANT = 1e-9
"""A column that varies less than this share of what it did before controls is held constant by them already."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Regressions by draw of texts: the controlled `slopes`, their `partial` correlations, the `plain` slopes."""

    slopes: Float[np.ndarray, "draw metric"]
    partial: Float[np.ndarray, "draw metric"]
    plain: Float[np.ndarray, "draw metric"]


@dataclass(eq=False)
class SlopeSums:
    """Takes in rows; its size is texts x token ids x columns, whatever the rows.

    `covariates` counts the columns of controls, which come between the shift and the `n_metrics` measured ones.
    """

    n_files: int
    n_ids: int
    covariates: int
    n_metrics: int
    products: np.ndarray = field(init=False, repr=False)
    sums: np.ndarray = field(init=False, repr=False)
    counts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        columns = 1 + self.covariates + self.n_metrics
        self.products = np.zeros((self.n_files, columns, columns))
        self.sums = np.zeros((self.n_files, self.n_ids, columns))
        self.counts = np.zeros((self.n_files, self.n_ids))

    def add(self, rows: Float[np.ndarray, "row column"], *, files: Int[np.ndarray, " row"], ids: Int[np.ndarray, " row"]) -> None:
        """Take in rows `[shift, covariates, metrics]`; raises `DataError` for numbers that are not finite."""
        if wrong := int((~np.isfinite(rows)).sum()):
            raise DataError(f"{wrong} numbers of a shift are NaN or infinite; leave out the rows that have no metric")
        np.add.at(self.sums, (files, ids), rows)
        np.add.at(self.counts, (files, ids), 1)
        for file in np.unique(files):
            own = rows[files == file]
            self.products[file] += own.T @ own

    def fit(self, weights: Float[np.ndarray, "draw file"]) -> Fit:
        """The regressions with texts weighted, one for each draw."""
        parts = [self._fit(weights[start : start + _CHUNK]) for start in range(0, len(weights), _CHUNK)]
        return Fit(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _fit(self, weights: Float[np.ndarray, "draw file"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        products = np.einsum("bg,gij->bij", weights, self.products)
        sums = (weights @ self.sums.reshape(self.n_files, -1)).reshape(len(weights), self.n_ids, -1)
        counts = weights @ self.counts
        total = sums.sum(1)
        plain = products - total[:, :, None] * total[:, None] / np.maximum(counts.sum(1), 1)[:, None, None]
        scaled = sums / np.sqrt(np.maximum(counts, 1))[..., None]
        within = products - scaled.transpose(0, 2, 1) @ scaled
        found = [_regressed(own, self.covariates, before) for own, before in zip(within, plain, strict=True)]
        slopes, partial = (np.stack(arrays) for arrays in zip(*found, strict=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            return slopes, partial, plain[:, 0, 1 + self.covariates :] / plain[:, 0, :1]


def _regressed(
    within: Float[np.ndarray, "column column"], covariates: int, before: Float[np.ndarray, "column column"]
) -> tuple[Float[np.ndarray, " metric"], Float[np.ndarray, " metric"]]:
    """Slope and partial correlation of every metric with the shift; NaN where the controls leave the shift nothing to vary."""
    causes = [0, *(c for c in range(1, 1 + covariates) if within[c, c] > _CONSTANT * max(before[c, c], 1e-300))]
    metrics = list(range(1 + covariates, len(within)))
    nothing = np.full(len(metrics), np.nan)
    if not within[0, 0] > _CONSTANT * before[0, 0]:
        return nothing, nothing
    scale = np.sqrt(within[causes, causes])
    gram = within[np.ix_(causes, causes)] / np.outer(scale, scale)
    if np.linalg.eigvalsh(gram)[0] < _CONSTANT:
        return nothing, nothing
    inverse = np.linalg.inv(gram)
    joint = within[np.ix_(causes, metrics)] / scale[:, None]
    coefficients = inverse @ joint
    total = within[metrics, metrics]
    own = coefficients[0] ** 2 / inverse[0, 0]  # what the shift explains beyond the other causes
    rest = np.maximum(total - np.einsum("cm,cm->m", joint, coefficients), 0) + own
    varies = rest > _CONSTANT * np.maximum(before[metrics, metrics], 1e-300)
    partial = np.sign(coefficients[0]) * np.sqrt(own / np.where(varies, rest, 1.0))
    return coefficients[0] / scale[0], np.where(varies, partial, np.nan)
