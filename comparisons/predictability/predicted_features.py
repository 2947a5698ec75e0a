"""What EASE says about every feature: its R² from the others, how much of that is by contrast, and how many partners it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.comparisons.predictability.feature_sums import FeatureSums, Products
from sparse_lens.comparisons.predictability.ridge import zero_diagonal_ridge
from sparse_lens.comparisons.rows.sparsity_measures import participation_ratio
from sparse_lens.errors import DataError
from sparse_lens.results import Result, exact, not_measurable

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The ridges that are tried, in multiples of the mean squared norm of a feature; the same for every column."""

_CHOSEN_BY = 512


@dataclass(frozen=True, eq=False)
class Predictability:
    """`r2` on the scored tokens (NaN where the feature does not vary there), `train_r2` on the fitted ones.

    `weights[i, j]` is what feature i adds to the prediction of feature j, in standard deviations; `features` are the latents they
    stand for. `ridge` is in multiples of the mean squared norm of a feature.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = (
        *("heldout_r2_mean", "heldout_r2_median", "heldout_r2_p90", "train_r2_mean", "anti_affinity_share", "partners"),
        *("ridge", "features", "fit_tokens", "score_tokens"),
    )
    COMPARED: ClassVar[tuple[str, ...]] = ("heldout_r2_mean", "heldout_r2_median", "anti_affinity_share", "partners")

    features: Int[Tensor, " feature"]
    r2: Float[Tensor, " feature"]
    train_r2: Float[Tensor, " feature"]
    weights: Float[Tensor, "feature feature"]
    ridge: float
    fit_tokens: int
    score_tokens: int

    @property
    def anti_affinity(self) -> Float[Tensor, " feature"]:
        """The share of negative weights in the sum of the sizes of all weights that predict a feature."""
        return self.weights.clamp(max=0).abs().sum(0) / self.weights.abs().sum(0)

    @property
    def partners(self) -> Float[Tensor, " feature"]:
        """How many features predict a feature: participation ratio of its weights' sizes."""
        return participation_ratio(self.weights.abs().T)

    def top_partners(self, feature: int, n: int = 10) -> list[tuple[int, float]]:
        """The `n` latents with the largest weights on the one named `feature`, with their signed weights."""
        column = self.weights[:, int((self.features == feature).nonzero()[0])]
        order = column.abs().argsort(descending=True)[:n]
        return [(int(self.features[place]), float(column[place])) for place in order]

    @property
    def results(self) -> dict[str, Result]:
        """Means and quantiles over features, with bootstrap intervals over them; `NUMBERS` are the names.

        The null of `train_r2_mean` is `(d - 1) / (n - 1)`, what independent features give by least squares.
        """
        d, n = len(self.features), self.fit_tokens
        found = {
            "heldout_r2_mean": _over_features(self.r2, np.mean),
            "heldout_r2_median": _over_features(self.r2, np.median),
            "heldout_r2_p90": _over_features(self.r2, lambda values, axis: np.quantile(values, 0.9, axis=axis)),
            "train_r2_mean": _over_features(self.train_r2, np.mean, null=(d - 1) / (n - 1) if n > d else None),
            "anti_affinity_share": _over_features(self.anti_affinity, np.mean),
            "partners": _over_features(self.partners, np.mean),
        }
        counted = {"ridge": self.ridge, "features": d, "fit_tokens": n, "score_tokens": self.score_tokens}
        return found | {name: exact(value) for name, value in counted.items()}


def best_ridge(fit: Products, choose: Products) -> float:
    """The one of `RIDGES`, times the mean squared norm of a feature, with the least error on the tokens `choose`.

    At most `_CHOSEN_BY` of the features are predicted for it, evenly taken, from all the others.
    """
    if choose.n == 0:
        raise DataError("no tokens are left to choose the ridge on; give more windows, or a ridge")
    size, every = float(fit.gram.diagonal().mean()), -(-len(fit.gram) // _CHOSEN_BY)
    errors = [float(zero_diagonal_ridge(fit.gram, ridge * size).residuals(choose.gram, every=every).sum()) for ridge in RIDGES]
    return RIDGES[int(np.argmin(errors))] * size


def predict_features(fit: Products, score: Products, lam: float, features: Int[Tensor, " feature"]) -> Predictability:
    """Predict every feature from the others with the ridge `lam`; `features` are their names."""
    solved = zero_diagonal_ridge(fit.gram, lam)
    r2 = _r2(solved.residuals(score.gram), score.gram.diagonal())
    train_r2 = _r2(solved.fitted_residuals(), fit.gram.diagonal())
    return Predictability(features, r2, train_r2, solved.weights, lam / float(fit.gram.diagonal().mean()), fit.n, score.n)


def feature_predictability(
    train: Float[Tensor, "token feature"],
    test: Float[Tensor, "other _"],
    *,
    lam: float | None = None,
    center: bool = True,
    standardize: bool = True,
) -> Predictability:
    """Predictability of features held in memory: fitted on `train`, scored on `test` about the means and scales of `train`.

    Without a `lam` (of the products of the columns as they are after centering and scaling) the first half of `test` chooses it and
    the rest is scored. The original EASE is not centered. Raises `DataError` for features that do not vary in `train` (where
    it is centered or scaled), values that are not finite, and parts of unequal width.
    """
    if train.shape[1:] != test.shape[1:] or train.ndim != 2:
        raise DataError(
            f"train and test are [token, feature] of the same features, got {tuple(train.shape)} and {tuple(test.shape)}"
        )
    for name, part in (("train", train), ("test", test)):
        if broken := int((~part.isfinite()).any(1).sum()):
            raise DataError(f"{broken} tokens of {name} have features that are NaN or infinite; leave them out")
    n_choose = 0 if lam is not None else len(test) // 2
    sums = [FeatureSums.of(part) for part in (train, test[:n_choose], test[n_choose:])]
    if (center or standardize) and (constant := int((~sums[0].varies(1)).sum())):
        raise DataError(f"{constant} features do not vary on the fitted tokens and cannot be predicted; leave them out")
    everything = torch.arange(train.shape[1])
    mean = sums[0].mean if center else torch.zeros(train.shape[1], dtype=torch.float64)
    fit, choose, score = (part.about(mean, everything) for part in sums)
    if standardize:
        scale = deviations(fit)
        for part in (fit, choose, score):
            part.rescale(scale)
    return predict_features(fit, score, best_ridge(fit, choose) if lam is None else lam, everything)


def deviations(fit: Products) -> Float[Tensor, " feature"]:
    """Standard deviation of every feature; raises `DataError` for features that do not vary."""
    scale = (fit.gram.diagonal() / fit.n).sqrt()
    if constant := int((~(scale > 0)).sum()):
        raise DataError(f"{constant} features do not vary on the fitted tokens and cannot be predicted; leave them out")
    return scale


def _r2(residual: Float[Tensor, " feature"], squares: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """1 - residual / squares, NaN where there is nothing to explain."""
    return torch.where(squares > 0, 1 - residual / squares, torch.nan)


def _over_features(values: Float[Tensor, " feature"], statistic: Callable[..., np.ndarray], null: float | None = None) -> Result:
    kept = values[values.isfinite()].numpy()
    if len(kept) == 0:
        return not_measurable("no feature varies on the scored tokens")
    picks = np.random.default_rng(0).integers(0, len(kept), (500, len(kept)))
    lo, hi = np.percentile(statistic(kept[picks], axis=1), [2.5, 97.5])
    return Result(float(statistic(kept, axis=0)), float(lo), float(hi), null, len(kept))
