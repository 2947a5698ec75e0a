"""Counts of firing latents by strength and label: the sums behind every score of latents against labels.

Strength is the bit pattern of a positive float32, cut to four bits of mantissa: a fixed grid of 16 steps an octave. A latent's
window of `slots` grid steps hangs from its strongest firing so far; what is weaker falls into the last slot, for good, for the
window only moves up. So the counts do not depend on the order of the tokens.

A module with numba in it is not checked at run time: shapes are in the comments.
"""

from __future__ import annotations

import numba
import numpy as np

from sparse_lens.kernels.threads import share_rows

STEPS_PER_OCTAVE = 16
SHIFT = 19
"""Bits of a float32 below the four leading ones of its mantissa."""


def count_firing(
    latents: np.ndarray, flags: np.ndarray, counts: np.ndarray, sums: np.ndarray, top: np.ndarray, *, moves: bool
) -> None:
    """Add tokens to the counts: for every latent above zero, the token's `flags` at the latent's strength.

    `latents [token latent]` float32, C-contiguous; `flags [token flag]` uint32; `counts [latent slot flag]` uint32; `sums [latent
    flag]` float64 of the latents themselves, or without flags if they are not wanted; `top [latent]` int64, the grid step of slot 0
    (-1: has not fired). With `moves` false the windows stay, and what is stronger counts in slot 0.
    """
    bits = latents.view(np.int32)
    share_rows(
        lambda part: _count(latents, bits, flags, counts, sums, top, part.start, part.stop, moves), latents.shape[1], least=16
    )


@numba.njit(cache=True, nogil=True)
def _count(
    latents: np.ndarray,
    bits: np.ndarray,
    flags: np.ndarray,
    counts: np.ndarray,
    sums: np.ndarray,
    top: np.ndarray,
    first: int,
    last: int,
    moves: bool,
) -> None:
    n_slots, n_flags, n_sums = counts.shape[1], counts.shape[2], sums.shape[1]
    for token in range(latents.shape[0]):
        own = flags[token]
        for latent in range(first, last):
            value = latents[token, latent]
            if value > 0:
                step = bits[token, latent] >> SHIFT
                if step > top[latent]:
                    if moves:
                        _move_up(counts[latent], step - top[latent])
                        top[latent] = step
                    else:
                        step = top[latent]
                row, total = counts[latent, min(top[latent] - step, n_slots - 1)], sums[latent]
                for flag in range(n_flags):
                    row[flag] = np.uint32(row[flag] + own[flag])
                for flag in range(n_sums):
                    total[flag] += value * own[flag]


@numba.njit(cache=True, nogil=True)
def _move_up(counts: np.ndarray, by: int) -> None:
    """Make room for `by` stronger slots; what falls off the end is kept in the last slot."""
    n_slots, n_flags = counts.shape
    for slot in range(n_slots - 1, -1, -1):
        goal = min(slot + by, n_slots - 1)
        if goal != slot:
            for flag in range(n_flags):
                counts[goal, flag] += counts[slot, flag]
                counts[slot, flag] = 0


def any_fires(latents: np.ndarray, needed: np.ndarray, found: np.ndarray) -> None:
    """Set `found [token label]` (uint8) where any latent is at least as strong as `needed [latent label]` (int32 grid steps) says.

    `latents [token latent]` float32, C-contiguous.
    """
    never = np.iinfo(np.int32).max
    bits, useful = latents.view(np.int32), needed.min(axis=1, initial=never) < never
    share_rows(lambda part: _any_fires(latents, bits, needed, useful, found, part.start, part.stop), len(latents))


@numba.njit(cache=True, nogil=True)
def _any_fires(
    latents: np.ndarray, bits: np.ndarray, needed: np.ndarray, useful: np.ndarray, found: np.ndarray, first: int, last: int
) -> None:
    for token in range(first, last):
        for latent in range(latents.shape[1]):
            if useful[latent] and latents[token, latent] > 0:
                step = bits[token, latent] >> SHIFT
                for label in range(needed.shape[1]):
                    if step >= needed[latent, label]:
                        found[token, label] = 1


def grid_step(values: np.ndarray) -> np.ndarray:
    """The grid step of positive numbers, `[...]` int64: the highest one that is not above them."""
    return np.array(values, dtype=np.float32, order="C").view(np.int32).astype(np.int64) >> SHIFT


def grid_value(steps: np.ndarray) -> np.ndarray:
    """The smallest number of each grid step, the inverse of `grid_step`."""
    return np.array(steps.astype(np.int32) << SHIFT, order="C").view(np.float32).astype(np.float64)
