"""Sums of products of features over tokens, in three parts, and a sample of tokens to shuffle: all that predictability needs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PARTS = ("fit", "choose", "score")
"""What the tokens are for: three quarters of the windows, an eighth, and an eighth."""

_LEAST_ACTIVE = 10
_SAMPLE_TOKENS = 8192


def part_of_windows(tokens: Int[np.ndarray, "batch pos"]) -> Int[np.ndarray, " batch"]:
    """The place in `PARTS` of every window: a hash of its ids, so that neither batches nor their order matter, nor repeats leak."""
    rows = np.ascontiguousarray(tokens, dtype=np.int64)
    return np.array([max(0, zlib.crc32(row.tobytes()) % 8 - 5) for row in rows], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Products:
    """Products `X^T X` of features with the means of the fitted tokens taken off, and the number of tokens."""

    gram: Float[Tensor, "feature feature"]
    n: int

    def rotated(self, rotation: Float[Tensor, "feature feature"]) -> Products:
        """The same of `X Q`."""
        return Products(rotation.T @ self.gram @ rotation, self.n)

    def rescale(self, scale: Float[Tensor, " feature"]) -> None:
        """Divide every feature by its `scale`, in place: at 4,096 features each copy is 134 MB."""
        self.gram.div_(scale).div_(scale[:, None])


@dataclass(eq=False)
class FeatureSums:
    """Running sums in float64 over the tokens of one part."""

    products: Float[Tensor, "feature feature"]
    total: Float[Tensor, " feature"]
    active: Int[Tensor, " feature"]
    n: int = 0

    @classmethod
    def empty(cls, width: int) -> FeatureSums:
        """Of no tokens."""
        wide = torch.zeros(width, width, dtype=torch.float64)
        return cls(wide, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.int64))

    @classmethod
    def of(cls, features: Float[Tensor, "token feature"]) -> FeatureSums:
        """Of these tokens."""
        sums = cls.empty(features.shape[1])
        sums.add(features)
        return sums

    def add(self, features: Float[Tensor, "token feature"]) -> None:
        """Take in some tokens."""
        values = features.double()
        self.products.addmm_(values.T, values)
        self.total += values.sum(0)
        self.active += (values != 0).sum(0)
        self.n += len(values)

    def varies(self, least_active: int = _LEAST_ACTIVE) -> Bool[Tensor, " feature"]:
        """Which features vary beyond rounding and are nonzero on ten tokens or more, or on `least_active`."""
        squares = self.products.diagonal()
        variance = squares - self.total**2 / max(self.n, 1)
        return (variance > 1e-12 * squares) & (self.active >= least_active)

    @property
    def mean(self) -> Float[Tensor, " feature"]:
        """Mean of every feature; zero without tokens."""
        return self.total / max(self.n, 1)

    def about(self, mean: Float[Tensor, " feature"], chosen: Int[Tensor, " chosen"]) -> Products:
        """Products of the `chosen` features about `mean`."""
        about, total = mean[chosen], self.total[chosen]
        gram = self.products[chosen[:, None], chosen]
        gram.addr_(about, total, alpha=-1).addr_(total, about, alpha=-1).addr_(about, about, alpha=self.n)
        return Products(gram, self.n)


@dataclass(eq=False)
class ShuffledSample:
    """The windows whose hashes are the least, as many as fit into `most` tokens, one at least: the same in any order of batches."""

    most: int = _SAMPLE_TOKENS
    windows: dict[int, Float[Tensor, "pos feature"]] = field(default_factory=dict, repr=False)
    bound: int = 1 << 64

    def add(self, tokens: Int[np.ndarray, "batch pos"], features: Float[Tensor, "batch*pos feature"]) -> None:
        """Take in whole windows."""
        rows = np.ascontiguousarray(tokens, dtype=np.int64)
        for ids, values in zip(rows, features.view(*rows.shape, -1), strict=True):
            key = int.from_bytes(blake2b(ids.tobytes(), digest_size=8).digest(), "big")
            if key < self.bound:
                self.windows[key] = values.clone()
        while len(self.windows) > 1 and sum(map(len, self.windows.values())) > self.most:
            self.bound = max(self.windows)
            del self.windows[self.bound]

    def shuffled(self, generator: torch.Generator) -> dict[str, FeatureSums]:
        """Sums by part with every feature's values in an order of its own, cut to as many per token as were nonzero there.

        The cut puts back what a TopK does to independent features: one that fires leaves less room for the others.
        """
        values = torch.cat([self.windows[key] for key in sorted(self.windows)])
        room = (values != 0).sum(1, keepdim=True)
        mixed = torch.empty_like(values)
        for column in range(values.shape[1]):
            mixed[:, column] = values[torch.randperm(len(values), generator=generator), column]
        n_choose = len(mixed) // 8
        counts = (len(mixed) - 2 * n_choose, n_choose, n_choose)
        parts = zip(mixed.split(counts), room.split(counts), strict=True)
        return {name: FeatureSums.of(_largest(*part)) for name, part in zip(PARTS, parts, strict=True)}


def _largest(values: Float[Tensor, "token feature"], room: Int[Tensor, "token 1"]) -> Float[Tensor, "token feature"]:
    """Every token's `room` values of largest size, zero for the rest."""
    for chunk, allowed in zip(values.split(1024), room.split(1024), strict=True):
        order = chunk.abs().argsort(dim=1, descending=True, stable=True)
        places = torch.arange(chunk.shape[1]).expand_as(order)
        chunk.masked_fill_(torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, places >= allowed), 0)
    return values
