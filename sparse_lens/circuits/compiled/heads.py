"""Which channels of a layer's heads vary in a circuit, and what the constant ones add up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.compiled.plan import Head, SiteChoice


@dataclass(frozen=True, eq=False)
class HeadChannels:
    """The heads of a layer in which something varies, and their channels side by side (`union`, those of queries or keys).

    A head's features are its varying values and, with a sink, the sum of its pattern, which its constant values are multiplied by.
    `feature` and `factor` give for every channel of the heads' outputs the feature that it is a multiple of (-1: a constant).
    """

    sites: Mapping[str, SiteChoice]
    heads: tuple[Head, ...]
    numbers: tuple[int, ...]
    union: Int[Tensor, " channel"]
    d_head: int
    sinks: Float[Tensor, " head"] | None
    feature: Int[Tensor, " d_attn"]
    factor: Float[Tensor, " d_attn"]

    @property
    def n_features(self) -> int:
        return int(self.feature.max()) + 1

    @property
    def constant_values(self) -> Float[Tensor, " d_attn"]:
        return self.sites["v"].rest

    def rest(self, letter: str) -> Float[Tensor, " channel"]:
        """The constants among queries or keys, side by side."""
        return self.sites[letter].rest[self.union].contiguous()

    def places(self, letter: str) -> Int[Tensor, " kept"]:
        """Where the varying ones stand among them."""
        return torch.searchsorted(self.union, self.sites[letter].kept)

    def feature_weights(self, output: Float[Tensor, "d_model d_attn"]) -> Float[Tensor, "d_model feature"]:
        """The output matrix as one of features."""
        used = self.feature >= 0
        found = output.new_zeros(len(output), self.n_features)
        return found.index_add_(1, self.feature[used], output[:, used] * self.factor[used])


def head_channels(sites: Mapping[str, SiteChoice], module: Any) -> HeadChannels:
    """What varies in the heads of an attention module, by the sites of its queries, keys and values."""
    q, k, v = (_by_head(sites[letter], module.n_head) for letter in "qkv")
    sinks = None if module.sink_logit is None else module.sink_logit.detach().clone()
    scored = q | k
    numbers = tuple((scored | v).any(1).nonzero().flatten().tolist())
    products = (sites["q"].rest.double() * sites["k"].rest.double()).view(module.n_head, -1)
    constant = (products * ~scored).sum(1)
    feature, factor = torch.full(v.shape, -1), torch.ones(v.shape)
    heads, at, column, n_features = [], 0, 0, 0
    for number in numbers:
        n_scored, n_values = int(scored[number].sum()), int(v[number].sum())
        feature[number, v[number]] = torch.arange(n_values) + n_features
        n_features += n_values
        summed = sinks is not None and n_values < v.shape[1]
        if summed:
            feature[number, ~v[number]] = n_features
            factor[number, ~v[number]] = sites["v"].rest.view(v.shape)[number, ~v[number]]
            n_features += 1
        sink = None if sinks is None else float(sinks[number])
        heads.append(Head(slice(at, at + n_scored), slice(column, column + n_values), float(constant[number]), sink, summed))
        at, column = at + n_scored, column + n_values
    scored[[number for number in range(module.n_head) if number not in numbers]] = False
    union = scored.flatten().nonzero().flatten()
    d_head, flat = v.shape[1], (feature.flatten(), factor.flatten())
    return HeadChannels(sites, tuple(heads), numbers, union, d_head, sinks, *flat)


def constant_pattern_sums(channels: HeadChannels, n_positions: int, scale: float) -> Float[Tensor, "pos d_attn"]:
    """What constant values are multiplied by at every position, in double precision; 0 where a feature does it.

    A constant head gives all tokens so far the same weight; with a sink, that which the sink leaves.
    """
    sums = torch.ones(n_positions, len(channels.feature), dtype=torch.float64)
    if channels.sinks is not None:
        scores = (channels.sites["q"].rest.double() * channels.sites["k"].rest.double()).view(-1, channels.d_head).sum(1) * scale
        tokens = torch.arange(1, n_positions + 1, dtype=torch.float64).log()
        shares = torch.sigmoid(tokens[:, None] + scores - channels.sinks.double())
        sums = shares.repeat_interleave(channels.d_head, dim=1)
    return sums * (channels.feature < 0)


def _by_head(site: SiteChoice, n_head: int) -> Tensor:
    varies = torch.zeros(len(site.rest), dtype=torch.bool)
    varies[site.kept] = True
    return varies.view(n_head, -1)
