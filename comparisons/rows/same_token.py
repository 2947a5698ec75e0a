"""Superposition with the token held fixed: how many features are in use where all positions hold one token id?

Many latents stand for words alone, and a layer whose features are a table of words looks as rich as one that computes much: the
identity of the word confounds such measures (arXiv:2604.00443). For each token id the entropy of the latents' shares of magnitude
is taken over its own positions: `same_token_features` is `exp` of its mean, weighted by magnitude. A few hundred positions never
show all rare latents, whatever the token tells, and show the fewer of them the more latents there are. So the number stands beside
that of the same positions dealt out to groups of the same sizes, and `same_token_share`, the one over the other, is what compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.comparisons.rows.superposition import finite_latents
from sparse_lens.dictionaries import Bridge, Dictionary, harvest_activations
from sparse_lens.results import Result, not_measurable

LEAST_POSITIONS = 128
"""A token id is read if it occurs this often: the entropy of fewer positions is that of their number."""


def measure_same_token(
    bridge: Bridge, dictionary: Dictionary, token_batches: Sequence[Any], *, least: int = LEAST_POSITIONS, seed: int = 0
) -> dict[str, Result]:
    """`same_token_features`, with what groups of random positions give as their null, and `same_token_share` of one dictionary.

    Over batches of token ids `[batch, pos]`, on the positions of the ids that occur at least `least` times in them; `n` counts
    these positions. A share of 1 (its null) says that the token tells nothing. Not measurable without such an id or an active
    latent. Raises as `measure_superposition`.
    """
    ids = (
        np.concatenate([np.asarray(batch).reshape(-1) for batch in token_batches]) if len(token_batches) else np.zeros(0, np.int64)
    )
    ids = ids[ids >= 0]  # as `harvest_activations` leaves padding out
    groups = frequent_groups(ids, least)
    if not (groups >= 0).any():
        return dict.fromkeys(_METRICS, not_measurable(f"no token id occurs {least} times", n=len(ids)))
    sums = SameTokenSums.of(groups, dictionary, seed=seed)
    for activations in harvest_activations(bridge, [dictionary.hook_in], token_batches):
        sums.add(finite_latents(dictionary, activations[dictionary.hook_in]))
    return sums.results()


_METRICS = ("same_token_features", "same_token_share")


def frequent_groups(ids: Int[np.ndarray, " position"], least: int) -> Int[np.ndarray, " position"]:
    """The number of each position's token id among those that occur at least `least` times; -1 for the others."""
    _, place, counts = np.unique(ids, return_inverse=True, return_counts=True)
    numbers = np.where(counts >= least, np.cumsum(counts >= least) - 1, -1)
    return numbers[place] if len(ids) else place


@dataclass
class SameTokenSums:
    """Running sums of magnitudes by group of positions, their `own` and as `dealt` out at random: float64, of one size."""

    groups: Int[Tensor, " position"]
    random: Int[Tensor, " position"]
    own: Float[Tensor, "group latent"] = field(repr=False)
    dealt: Float[Tensor, "group latent"] = field(repr=False)
    n_read: int = 0

    @classmethod
    def of(cls, groups: Int[np.ndarray, " position"], dictionary: Dictionary, *, seed: int = 0) -> SameTokenSums:
        """Nothing read yet of positions in these groups, -1 for those that are in none."""
        random, inside = groups.copy(), groups >= 0
        random[inside] = np.random.default_rng(seed).permutation(groups[inside])
        own, dealt = (torch.zeros(int(groups.max()) + 1, dictionary.n_latents, dtype=torch.float64) for _ in range(2))
        return cls(torch.from_numpy(groups), torch.from_numpy(random), own, dealt)

    @torch.no_grad()
    def add(self, latents: Float[Tensor, "position latent"]) -> None:
        """Take in the latents of the next positions, in the order of the groups."""
        part = slice(self.n_read, self.n_read + len(latents))
        inside = self.groups[part] >= 0
        magnitudes = latents[inside.to(latents.device)].abs().double().to(self.own.device)
        self.own.index_add_(0, self.groups[part][inside], magnitudes)
        self.dealt.index_add_(0, self.random[part][inside], magnitudes)
        self.n_read = part.stop

    def results(self) -> dict[str, Result]:
        """The numbers over everything taken in."""
        n = int((self.groups >= 0).sum())
        if not bool(self.own.any()):
            return dict.fromkeys(_METRICS, not_measurable("no latent was active on any of these tokens", n=n))
        found, chance = (float(_conditional_entropy(sums).exp()) for sums in (self.own, self.dealt))
        return {
            "same_token_features": Result(found, null=chance, n=n),
            "same_token_share": Result(found / chance, null=1.0, n=n),
        }


def _entropy(magnitudes: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows"]:
    total = magnitudes.sum(-1, keepdim=True)
    return torch.special.entr(magnitudes / total.clamp_min(torch.finfo(total.dtype).tiny)).sum(-1)


def _conditional_entropy(sums: Float[Tensor, "group latent"]) -> Float[Tensor, ""]:
    """Mean over groups, by their shares of all magnitude."""
    weights = sums.sum(1) / sums.sum()
    return (weights * _entropy(sums)).sum()
