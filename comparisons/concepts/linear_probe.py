"""Logistic probes on a few latents or on whole activations; deterministic, with scipy's L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit


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
    spread = np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1e-30), spread, np.inf)
    scaled = (inputs - mean) / spread
    signs = np.where(labels, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (scaled @ parameters[:-1] + parameters[-1])
        slopes = -signs * expit(-margins)
        value = np.logaddexp(0, -margins).sum() + parameters[:-1] @ parameters[:-1] / 2
        return float(value), np.append(scaled.T @ slopes + parameters[:-1], slopes.sum())

    fitted = minimize(loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    weight = fitted[:-1] / spread
    return LinearProbe(weight, float(fitted[-1] - weight @ mean))


def top_units(inputs: Float[np.ndarray, "row unit"], labels: Bool[np.ndarray, " row"], k: int) -> Int[np.ndarray, " k"]:
    """The `k` units whose means with and without the label differ most (arXiv 2305.01610, section 3), the first one first."""
    difference = np.abs(inputs[labels].mean(0) - inputs[~labels].mean(0))
    return np.argsort(-difference, kind="stable")[:k]
