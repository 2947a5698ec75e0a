"""Streaming counts of latents by strength against labels, from which F1, MCC, AUROC, entropies and means are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int8
from torch import Tensor

from sparse_lens.errors import DataError
from sparse_lens.kernels.histograms import count_firing, grid_step, grid_value

SLOTS = 128
"""Strengths that are told apart: 8 octaves below a latent's maximum, 16 to an octave; what is weaker still shares the last one."""

_PART = 64
_MOST_TOKENS = 2**32 - 1


@dataclass(frozen=True, eq=False)
class CountsPart:
    """Counts of some latents: `positives` and `known [latent slot column]` (strongest slot first), of the latents in `rows`."""

    rows: slice
    positives: Int[np.ndarray, "latent slot column"]
    known: Int[np.ndarray, "latent slot column"]


class LabelHistogram:
    """How often each latent fires how strongly, on tokens that have each label and on those where it is known.

    A latent fires above zero; `magnitude` counts by absolute value instead. Strengths lie on a fixed grid of 16 steps to an octave,
    so that nothing depends on batches or their order; memory is `latents x 128 x 2 labels x 4` bytes, whatever the number of
    tokens. With `top` the windows of strengths are those of another histogram, which makes slots comparable: train and test.
    `sums [latent 2 * column]` are those of the strengths, if asked for.
    """

    def __init__(
        self,
        n_latents: int,
        n_columns: int,
        *,
        magnitude: bool = False,
        with_sums: bool = False,
        top: Int[np.ndarray, " latent"] | None = None,
    ) -> None:
        self.n_columns, self.magnitude, self.moves = n_columns, magnitude, top is None
        self.top = np.full(n_latents, -1, dtype=np.int64) if top is None else top.copy()
        self.counts = np.zeros((n_latents, SLOTS, 2 * n_columns), dtype=np.uint32)
        self.sums = np.zeros((n_latents, 2 * n_columns if with_sums else 0))
        self.maxima = np.zeros(n_latents)
        self.fired = np.zeros(n_latents, dtype=np.int64)
        self.totals = np.zeros(2 * n_columns, dtype=np.int64)
        self.n_tokens = 0

    def add(self, latents: Float[Tensor, "token latent"], columns: Int8[np.ndarray, "token column"]) -> None:
        """Take in tokens; a label of -1 is unknown and counts nowhere. Raises `DataError` for latents that are not finite."""
        values = np.ascontiguousarray(latents.detach().float().cpu().numpy())
        if not np.isfinite(values.sum(dtype=np.float64)):  # one sweep: what is not finite stays so in the sum
            raise DataError(f"{int((~np.isfinite(values)).sum())} latents are not finite; see whether the dictionary is whole")
        if values.shape != (len(columns), len(self.top)) or columns.shape[1] != self.n_columns:
            raise DataError(
                f"latents {values.shape} do not fit labels {columns.shape} of {len(self.top)} latents; give equal tokens"
            )
        if self.n_tokens + len(values) > _MOST_TOKENS:
            raise DataError(f"more than {_MOST_TOKENS} tokens overflow the counts; score a sample")
        if self.magnitude:
            values = np.abs(values)
        flags = np.concatenate([columns == 1, columns >= 0], axis=1).astype(np.uint32)
        count_firing(values, flags, self.counts, self.sums, self.top, moves=self.moves)
        self.maxima = np.maximum(self.maxima, values.max(0, initial=0))
        self.fired += np.count_nonzero(values > 0, axis=0)
        self.totals += flags.sum(0, dtype=np.int64)
        self.n_tokens += len(values)

    @property
    def positives(self) -> Int[np.ndarray, " column"]:
        """Tokens that have each label."""
        return self.totals[: self.n_columns]

    @property
    def known(self) -> Int[np.ndarray, " column"]:
        """Tokens for which each label is known."""
        return self.totals[self.n_columns :]

    def parts(self) -> Iterator[CountsPart]:
        """The counts, some latents at a time."""
        for start in range(0, len(self.top), _PART):
            rows = slice(start, min(start + _PART, len(self.top)))
            counts = self.counts[rows].astype(np.int64)
            yield CountsPart(rows, counts[:, :, : self.n_columns], counts[:, :, self.n_columns :])

    def slots_of_shares(self, shares: Float[np.ndarray, " threshold"]) -> Int[np.ndarray, "latent threshold"]:
        """The last slot that is above each share of a latent's maximum; share 0 is whatever is above zero.

        The cut is at the grid step nearest to the share, at most a thirty-second of it away.
        """
        wanted = np.maximum(shares[None] * self.maxima[:, None], 1e-30)
        below = grid_step(wanted)
        nearer_above = grid_value(below + 1) - wanted < wanted - grid_value(below)
        steps = np.minimum(below + nearer_above, np.maximum(self.top, 0)[:, None])
        slots = np.clip(self.top[:, None] - steps, 0, SLOTS - 1)
        return np.where(shares[None] > 0, slots, SLOTS - 1)
