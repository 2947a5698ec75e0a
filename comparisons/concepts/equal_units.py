"""The best of fewer latents: the best of a thousand does better than the best of two hundred, of whatever kind they are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from sparse_lens.errors import ConfigError


def chances_of_being_best(n_latents: int, n_units: int) -> Float[np.ndarray, " place"]:
    """The chance of each place in the order of all latents, the best first, to be the best of `n_units` that are drawn at random.

    `C(n - 1 - place, units - 1) / C(n, units)`. Raises `ConfigError` for a draw of none, or of more than there are.
    """
    if not 1 <= n_units <= n_latents:
        raise ConfigError(f"{n_units} of {n_latents} latents cannot be drawn; give from 1 to {n_latents}")
    place = np.arange(n_latents - 1)
    falls = np.maximum(n_latents - n_units - place, 0) / (n_latents - 1 - place)
    return n_units / n_latents * np.concatenate([[1.0], np.cumprod(falls)])


def best_of_fewer(
    chosen_by: Float[np.ndarray, "latent column"], scores: Float[np.ndarray, "latent column"], n_units: int
) -> Float[np.ndarray, " column"]:
    """By column the mean, over all draws of `n_units` latents, of the score of the one that is best by `chosen_by`."""
    order = np.argsort(-chosen_by, axis=0, kind="stable")
    return chances_of_being_best(len(scores), n_units) @ np.take_along_axis(scores, order, axis=0)
