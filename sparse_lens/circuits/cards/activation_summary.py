"""What nodes do over many windows of tokens, in one pass and bounded memory: top contexts, density, mean, histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 24
"""Bins of a histogram, half of them for negative values; a multiple of four, so that halves can be merged in pairs."""

CONTEXT = (14, 5)
"""Tokens shown before and after the peak of a context."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of a node's active tokens in equal bins over `[-limit, limit]`; `limit` is a power of two."""

    limit: float
    counts: tuple[int, ...]


class RunningHistograms:
    """A histogram of every node, over a range that doubles when a value falls outside it: exact, whatever comes later."""

    def __init__(self, n_nodes: int) -> None:
        self.limit = torch.zeros(n_nodes)
        self.counts = torch.zeros(n_nodes, BINS, dtype=torch.int64)

    def add(self, values: Float[Tensor, "token node"], threshold: float) -> None:
        """Count the values whose size is above `threshold`."""
        top = values.abs().amax(0) if len(values) else self.limit
        self.limit = torch.where(self.limit == 0, _power_above(top), self.limit)
        while bool((outside := top > self.limit).any()):
            self._double(outside)
        share = values / torch.where(self.limit > 0, self.limit, 1.0)
        bins = ((share * (BINS // 2)).floor().long() + BINS // 2).clamp(0, BINS - 1)
        flat = (torch.arange(values.shape[1]) * BINS + bins)[values.abs() > threshold]
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts)

    def _double(self, which: Tensor) -> None:
        merged = torch.zeros_like(self.counts)
        merged[:, BINS // 4 : BINS - BINS // 4] = self.counts.view(-1, BINS // 2, 2).sum(2)
        self.counts = torch.where(which[:, None], merged, self.counts)
        self.limit = torch.where(which, self.limit * 2, self.limit)

    def result(self, node: int) -> Histogram:
        return Histogram(float(self.limit[node]), tuple(self.counts[node].tolist()))


@dataclass(frozen=True, eq=False)
class Peaks:
    """The windows in which each node peaks highest: the peaks' `value` and `window`, where the cuttings start, the cuttings."""

    value: Float[Tensor, "rank node"]
    window: Int[Tensor, "rank node"]
    start: Int[Tensor, "rank node"]
    cutting: Float[Tensor, "rank span node"]


class ActivationSummary:
    """Gathers the values of `n_nodes` nodes, batch by batch; a token is active where the value's size is above `threshold`."""

    def __init__(self, n_nodes: int, *, n_contexts: int = 5, threshold: float = 0.0) -> None:
        self.n_contexts, self.threshold = n_contexts, threshold
        self.n_tokens = self.n_windows = 0
        self.active = torch.zeros(n_nodes, dtype=torch.int64)
        self.sums = torch.zeros(n_nodes, dtype=torch.float64)
        self.histograms = RunningHistograms(n_nodes)
        self.peaks: Peaks | None = None

    def add(self, values: Float[Tensor, "window pos node"]) -> None:
        """Take in the next windows, which are all of one length."""
        flat = values.flatten(0, 1)
        self.active += (flat.abs() > self.threshold).sum(0)
        self.sums += flat.double().sum(0)
        self.histograms.add(flat, self.threshold)
        found = _peaks(values, self.n_windows)
        self.peaks = _best([found] if self.peaks is None else [self.peaks, found], self.n_contexts)
        self.n_tokens, self.n_windows = self.n_tokens + len(flat), self.n_windows + len(values)


def _peaks(values: Float[Tensor, "window pos node"], first: int) -> Peaks:
    """The peak of every window, and the values around it."""
    length, span = values.shape[1], min(sum(CONTEXT) + 1, values.shape[1])
    value, at = values.abs().max(1)
    start = (at - CONTEXT[0]).clamp(0, length - span)
    cutting = values.gather(1, start[:, None] + torch.arange(span)[None, :, None])
    window = (first + torch.arange(len(values)))[:, None].expand_as(at)
    return Peaks(value, window, start, cutting)


def _best(found: list[Peaks], most: int) -> Peaks:
    value, window, start, cutting = (
        torch.cat([getattr(p, name) for p in found]) for name in ("value", "window", "start", "cutting")
    )
    order = value.argsort(dim=0, descending=True, stable=True)[:most]
    wide = order[:, None].expand(-1, cutting.shape[1], -1)
    return Peaks(value.gather(0, order), window.gather(0, order), start.gather(0, order), cutting.gather(0, wide))


def _power_above(top: Tensor) -> Tensor:
    """The smallest power of two that is not below each value; 0 for 0."""
    return torch.tensor([2.0 ** math.ceil(math.log2(value)) if value > 0 else 0.0 for value in top.tolist()])
