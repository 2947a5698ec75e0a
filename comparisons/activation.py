"""How sparsely, and in how many bits, latents describe an activation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries import Dictionary, harvest_activations
from sparse_lens.errors import DataError
from sparse_lens.results import Result, exact, not_measurable

TOKENS_FOR_DEAD = 100_000
PER_OCTAVE, OCTAVES = 4, 32
"""Bins of the values in the description length: four an octave of the absolute value, from 2^-16 to 2^16, for each sign. They
are the same for all dictionaries and do not depend on the data, so neither on batches; a value is known to within 19 %."""

_BINS = 2 * PER_OCTAVE * OCTAVES


@dataclass
class ActivationSums:
    """Running sums of one dictionary's latents over tokens; memory is `latents x 256` numbers.

    Of `f_u` the latent and `p_u = P(f_u != 0)`: L0 `sum_u p_u`; dead, the share with `p_u = 0` (asked of 100,000 tokens or more);
    dense, the share with `p_u` above 1 % or 10 %; kurtosis, the mean over firing latents of the fourth standardized moment (3 for
    a Gaussian); description length `sum_u H(p_u) + p_u H(binned f_u | f_u != 0)` in bits per token, to be read beside the
    reconstruction error that it buys.
    """

    dictionary: Dictionary
    n: int = 0
    fired: Tensor | None = None
    powers: Tensor | None = field(default=None, repr=False)
    counts: Tensor | None = field(default=None, repr=False)

    @torch.no_grad()
    def add(self, source: Float[Tensor, "token d_in"]) -> None:
        """Take in activations at `hook_in`; raises `DataError` for latents that are not finite."""
        latents = self.dictionary.encode(source.to(self.dictionary.W_dec.dtype)).double()
        if bad := int((~latents.isfinite()).sum()):
            raise DataError(f"{self.dictionary.name} gives {bad} latents that are not finite numbers; is it damaged?")
        powers = torch.stack([latents.pow(power).sum(0) for power in (1, 2, 3, 4)])
        fired = (latents != 0).sum(0)
        self.n += len(latents)
        self.fired = fired if self.fired is None else self.fired + fired
        self.powers = powers if self.powers is None else self.powers + powers
        self._count(latents)

    def _count(self, latents: Float[Tensor, "token latent"]) -> None:
        if self.counts is None:
            self.counts = torch.zeros(latents.shape[1] * _BINS, dtype=torch.long)
        tokens, units = latents.nonzero(as_tuple=True)
        values = latents[tokens, units]
        steps = ((values.abs().log2() + OCTAVES / 2) * PER_OCTAVE).floor().long().clamp(0, _BINS // 2 - 1)
        places = units * _BINS + steps + (values < 0).long() * (_BINS // 2)
        self.counts += torch.bincount(places, minlength=len(self.counts))

    def results(self) -> dict[str, Result]:
        """The measures by name; raises `DataError` without activations."""
        if self.fired is None or self.powers is None or self.counts is None:
            raise DataError("no activations to measure latents on; give at least one batch of tokens")
        n, p = self.n, self.fired.double() / self.n
        few = not_measurable(f"{n:,} tokens are too few to call a latent dead, {TOKENS_FOR_DEAD:,} are needed", n=n)
        return {
            "l0": exact(float(p.sum()), n=n),
            "l0_share": exact(float(p.mean()), n=n),
            "dead": exact(float((p == 0).double().mean()), n=n) if n >= TOKENS_FOR_DEAD else few,
            "dense_above_1_percent": exact(float((p > 0.01).double().mean()), n=n),
            "dense_above_10_percent": exact(float((p > 0.1).double().mean()), n=n),
            "kurtosis": self._kurtosis(),
            "description_bits_per_token": exact(float(self._bits(p)), n=n),
        }

    def _kurtosis(self) -> Result:
        assert self.powers is not None
        m1, m2, m3, m4 = self.powers / self.n
        variance = m2 - m1**2
        varies = variance > 1e-12
        if not bool(varies.any()):
            return not_measurable("no latent varies over these tokens", n=self.n)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return exact(float((fourth[varies] / variance[varies] ** 2).mean()), n=self.n)

    def _bits(self, p: Tensor) -> Tensor:
        assert self.counts is not None
        counts = self.counts.view(-1, _BINS).double()
        share = counts / counts.sum(1, keepdim=True).clamp(min=1)
        return (_entropy(torch.stack([p, 1 - p], 1)) + p * _entropy(share)).sum()


def _entropy(p: Float[Tensor, "row outcome"]) -> Float[Tensor, " row"]:
    """Bits."""
    return -torch.special.xlogy(p, p).sum(1) / np.log(2)


def activation(bridge: Any, dictionary: Dictionary, token_batches: Iterable[Any]) -> dict[str, Result]:
    """Sparsity and description length of one dictionary's latents on batches of token ids `[batch, pos]`; see `ActivationSums`."""
    sums = ActivationSums(dictionary)
    for activations in harvest_activations(bridge, [dictionary.hook_in], token_batches):
        sums.add(activations[dictionary.hook_in])
    return sums.results()


def decoder_geometry(dictionary: Dictionary) -> dict[str, Result]:
    """Mean over latents of the largest cosine of a decoder row with any other: 0 for orthogonal rows, 1 where rows repeat.

    `null` is the same for random rows of this number and width.
    """
    rows = dictionary.W_dec.detach().double()
    random = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"nearest_row_cosine": Result(_nearest(rows), null=_nearest(random), n=len(rows))}


def _nearest(rows: Float[Tensor, "latent d"], chunk: int = 1024) -> float:
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    if len(unit) < 2:
        return 0.0
    largest = []
    for start in range(0, len(unit), chunk):
        cosines = unit[start : start + chunk] @ unit.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -1
        largest.append(cosines.amax(1))
    return float(torch.cat(largest).mean())
