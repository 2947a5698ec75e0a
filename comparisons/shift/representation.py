"""Sparsity of one dictionary's latents, averaged over tokens: the levels, with their controls (arXiv:2603.03415).

Levels of two models do not compare where one has a privileged basis or AbsTopK and the other has not: compare what changes within a
model (`shift_sparsity`). The paper's site is the last hidden state after the final norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.comparisons.rows.superposition import finite_latents
from sparse_lens.comparisons.shift.metrics import METRICS, gaussian_null, sparsity_metrics
from sparse_lens.dictionaries import Bridge, Dictionary, harvest_activations, random_rotation
from sparse_lens.errors import DataError
from sparse_lens.results import Result, not_measurable

_ROWS = 1024


def both_bases(latents: Float[Tensor, "row latent"], rotation: Float[Tensor, "latent latent"]) -> Float[Tensor, "row metrics"]:
    """The `METRICS` of rows as they are, and after them those of the rotated rows; a row that is all zero has NaN for both."""
    return torch.cat([sparsity_metrics(latents), sparsity_metrics(latents.double() @ rotation.to(latents.device))], -1)


@dataclass
class RepresentationSums:
    """Running sums over tokens of the metrics of latents, and of the latents turned by a random rotation: of a size that tokens
    do not change.

    The rotated ones are the control: same norms and geometry, no privileged basis. After the final norm, where only a linear
    unembedding reads, they are those of a model with the same function.
    """

    dictionary: Dictionary
    seed: int = 0
    n_tokens: int = 0
    n_silent: int = 0
    norm: float = 0.0
    totals: Tensor = field(default_factory=lambda: torch.zeros(2 * len(METRICS), dtype=torch.float64), repr=False)
    counts: Tensor = field(default_factory=lambda: torch.zeros(2 * len(METRICS), dtype=torch.long), repr=False)
    rotation: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.rotation = random_rotation(self.dictionary.n_latents, self.seed, dtype=torch.float64)

    @torch.no_grad()
    def add(self, source: Float[Tensor, "token d_in"]) -> None:
        """Take in activations at `hook_in`; raises `DataError` for latents that are not finite, or a single one."""
        for part in source.split(_ROWS):
            latents = finite_latents(self.dictionary, part).double()
            metrics = both_bases(latents, self.rotation).cpu()
            measured = metrics.isfinite()
            self.n_tokens += len(latents)
            self.n_silent += int((~latents.any(-1)).sum())
            self.norm += float(latents.norm(dim=-1).sum())
            self.counts += measured.sum(0)
            self.totals += torch.where(measured, metrics, 0.0).sum(0)

    def results(self) -> dict[str, Result]:
        """Means of the `METRICS` and of the `rotated_…` over the tokens that have them, a Gaussian's as null; the `silent_share`.

        Silent are tokens on which every latent is 0; they have no metric. Raises `DataError` without tokens.
        """
        if not self.n_tokens:
            raise DataError("no activations to measure sparsity on; give at least one batch of tokens")
        null = gaussian_null(self.dictionary.n_latents)
        null["l1"] *= self.norm / max(1, self.n_tokens - self.n_silent)
        names = [*METRICS, *(f"rotated_{name}" for name in METRICS)]
        found = {"silent_share": Result(self.n_silent / self.n_tokens, n=self.n_tokens)}
        for name, total, n in zip(names, self.totals.tolist(), self.counts.tolist(), strict=True):
            failed = not_measurable("on no token is there a latent other than 0 that varies", n=self.n_tokens)
            found[name] = Result(total / n, null=null[name.removeprefix("rotated_")], n=n) if n else failed
        return found


def representation_sparsity(
    bridge: Bridge, dictionary: Dictionary, token_batches: Iterable[Any], *, seed: int = 0
) -> dict[str, Result]:
    """`RepresentationSums.results` on batches of token ids `[batch, pos]`, and the same `METRICS` as `random_weights_…`.

    Random weights: every tensor's nonzero weights change places, so that they are as sparse as before. No mask is learned here,
    so there is none to draw at random. Raises what `harvest_activations` raises, and `DataError` without tokens.
    """
    batches = list(token_batches)
    found = _over_batches(bridge, dictionary, batches, seed)
    with random_weights(bridge, seed=seed):
        shuffled = _over_batches(bridge, dictionary, batches, seed)
    return found | {f"random_weights_{name}": shuffled[name] for name in METRICS}


def _over_batches(bridge: Bridge, dictionary: Dictionary, batches: Iterable[Any], seed: int) -> dict[str, Result]:
    sums = RepresentationSums(dictionary, seed)
    for activations in harvest_activations(bridge, [dictionary.hook_in], batches):
        sums.add(activations[dictionary.hook_in])
    return sums.results()
