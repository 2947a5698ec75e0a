"""How sparsely, and in how many bits, latents describe an activation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries import Dictionary, harvest_activations, skipped
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
    dense, the share with `p_u` above 1 % or 10 %, and the share of all firing that falls to them; kurtosis, the mean over varying
    latents of the fourth standardized moment (`null`: 3, a Gaussian's); description length
    `sum_u H(p_u) + p_u H(binned f_u | f_u != 0)` in bits per token (arXiv:2410.11179), to be read beside what these bits buy: the
    squared error and the explained variance of a reconstruction with each value set to the middle of its bin.
    """

    dictionary: Dictionary
    n: int = 0
    fired: Tensor | None = None
    powers: Tensor | None = field(default=None, repr=False)
    counts: Tensor | None = field(default=None, repr=False)
    total: Tensor | None = field(default=None, repr=False)
    squared_norm: float = 0.0
    squared_error: float = 0.0

    @torch.no_grad()
    def add(self, source: Float[Tensor, "token d_in"], target: Float[Tensor, "token d_out"]) -> None:
        """Take in activations of the same tokens at `hook_in` and `hook_out`; raises `DataError` for NaN latents."""
        source = source.to(self.dictionary.W_dec.dtype)
        latents = self.dictionary.encode(source).double()
        if bad := int((~latents.isfinite()).sum()):
            raise DataError(f"{self.dictionary.name} gives {bad} latents that are not finite numbers; is it damaged?")
        squares = latents.square()
        powers = torch.stack([latents.sum(0), squares.sum(0), (squares * latents).sum(0), squares.square().sum(0)])
        fired = (latents != 0).sum(0)
        self.n += len(latents)
        self.fired = fired if self.fired is None else self.fired + fired
        self.powers = powers if self.powers is None else self.powers + powers
        rounded = self._count(latents).to(source.dtype)
        rebuilt = self.dictionary.decode(rounded) + skipped(self.dictionary, source)
        target = target.double()
        self.total = target.sum(0) if self.total is None else self.total + target.sum(0)
        self.squared_norm += float(target.pow(2).sum())
        self.squared_error += float((target - rebuilt.double()).pow(2).sum())

    def _count(self, latents: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """Count each value in its bin; returns the values as the bins tell them."""
        if self.counts is None:
            self.counts = torch.zeros(latents.shape[1] * _BINS, dtype=torch.long)
        tokens, units = latents.nonzero(as_tuple=True)
        values = latents[tokens, units]
        steps = ((values.abs().log2() + OCTAVES / 2) * PER_OCTAVE).floor().long().clamp(0, _BINS // 2 - 1)
        places = units * _BINS + steps + (values < 0).long() * (_BINS // 2)
        self.counts += torch.bincount(places, minlength=len(self.counts))
        middle = torch.exp2((steps.double() + 0.5) / PER_OCTAVE - OCTAVES / 2) * values.sign()
        return torch.zeros_like(latents).index_put((tokens, units), middle)

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
            "density_share_above_1_percent": self._share_of_firing(p, 0.01),
            "density_share_above_10_percent": self._share_of_firing(p, 0.1),
            "kurtosis": self._kurtosis(),
            "description_bits_per_token": exact(float(self._bits(p)), n=n),
            **self._bought(),
        }

    def _share_of_firing(self, p: Float[Tensor, " latent"], above: float) -> Result:
        if not float(p.sum()) > 0:
            return not_measurable("no latent fires on these tokens", n=self.n)
        return exact(float(p[p > above].sum() / p.sum()), n=self.n)

    def _bought(self) -> dict[str, Result]:
        """What the described latents, values rounded to their bins, reconstruct of the activation."""
        assert self.total is not None
        n, error, square = self.n, self.squared_error / self.n, self.squared_norm / self.n
        variance = square - float((self.total / n).pow(2).sum())
        constant = not_measurable("the activation does not vary over these tokens", n=n)
        explained = exact(1 - error / variance, n=n) if variance > 1e-12 * square else constant
        return {"description_squared_error": exact(error, n=n), "description_explained_variance": explained}

    def _kurtosis(self) -> Result:
        assert self.powers is not None
        m1, m2, m3, m4 = self.powers / self.n
        variance = m2 - m1**2
        varies = variance > 1e-12 * m2
        if not bool(varies.any()):
            return not_measurable("no latent varies over these tokens", n=self.n)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return Result(float((fourth[varies] / variance[varies] ** 2).mean()), null=3.0, n=self.n)

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
    for activations in harvest_activations(bridge, sorted({dictionary.hook_in, dictionary.hook_out}), token_batches):
        sums.add(activations[dictionary.hook_in], activations[dictionary.hook_out])
    return sums.results()


def decoder_redundancy(dictionary: Dictionary) -> dict[str, Result]:
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
