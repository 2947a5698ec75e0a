"""Logistic probes on a few latents or on whole activations; deterministic, with scipy's L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

_MOST_NONZERO = 0.15
"""Share of nonzero inputs from which a dense matrix is the faster one."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """`weight [width]` and `bias` of a logistic classifier, in the units of its inputs."""

    weight: Float[np.ndarray, " width"]
    bias: float

    def says_yes(self, inputs: Float[np.ndarray, "row width"]) -> Bool[np.ndarray, " row"]:
        """Whether the label is more likely than not."""
        return inputs @ self.weight + self.bias > 0


def fit_probe(inputs: Float[np.ndarray, "row width"], labels: Bool[np.ndarray, " row"]) -> LinearProbe:
    """Logistic regression on standardized inputs with a squared penalty of 1/2, as scikit-learn's default; constant inputs get
    0."""
    mean, spread = inputs.mean(0), inputs.std(0)
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1e-30)
    scaled = _Standardized.of(inputs[:, varies], mean[varies], spread[varies])
    signs = np.where(labels, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (scaled.times(parameters[:-1]) + parameters[-1])
        slopes = -signs * expit(-margins)
        value = np.logaddexp(0, -margins).sum() + parameters[:-1] @ parameters[:-1] / 2
        return float(value), np.append(scaled.transposed_times(slopes) + parameters[:-1], slopes.sum())

    fitted = minimize(loss, np.zeros(varies.sum() + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    weight = np.zeros(inputs.shape[1])
    weight[varies] = fitted[:-1] / spread[varies]
    return LinearProbe(weight, float(fitted[-1] - weight @ mean))


@dataclass(frozen=True, eq=False)
class _Standardized:
    """`matrix * factor - offset`: standardized inputs, of which those that are mostly 0, as latents are, stay so."""

    matrix: Any
    factor: Float[np.ndarray, " width"]
    offset: Float[np.ndarray, " width"]

    @classmethod
    def of(cls, inputs: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> _Standardized:
        if np.count_nonzero(inputs) > _MOST_NONZERO * inputs.size:
            return cls((inputs - mean) / spread, np.ones_like(mean), np.zeros_like(mean))
        return cls(csr_array(inputs), 1 / spread, mean / spread)

    def times(self, weight: Float[np.ndarray, " width"]) -> Float[np.ndarray, " row"]:
        return self.matrix @ (weight * self.factor) - self.offset @ weight

    def transposed_times(self, slopes: Float[np.ndarray, " row"]) -> Float[np.ndarray, " width"]:
        return self.factor * (self.matrix.T @ slopes) - self.offset * slopes.sum()


def top_units(inputs: Float[np.ndarray, "row unit"], labels: Bool[np.ndarray, " row"], k: int) -> Int[np.ndarray, " k"]:
    """The `k` units whose means with and without the label differ most (arXiv 2305.01610, section 3), the first one first."""
    difference = np.abs(inputs[labels].mean(0) - inputs[~labels].mean(0))
    return np.argsort(-difference, kind="stable")[:k]
