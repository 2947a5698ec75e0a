"""Selection of the k largest magnitudes on the bit patterns of floats: the compiled loops behind the fast kernels.

Without its sign bit, the pattern of a float32 (uint32) or bfloat16 (uint16) sorts as its magnitude does.

All compiled functions live in this one file, since numba's on-disk cache is checked against the file of the function alone: a
cached caller in another file would go on using an old version of what it calls.
"""

from __future__ import annotations

import numba
import numpy as np

MAGNITUDE_BITS = {"uint32": np.uint32(0x7FFFFFFF), "uint16": np.uint16(0x7FFF)}
"""All bits but the sign's, by the type of the pattern."""


@numba.njit(cache=True, nogil=True)
def keep_largest_rows(bits: np.ndarray, magnitude_bits: int, k: int, out: np.ndarray, mask: np.ndarray) -> None:
    """Row-wise AbsTopK on bit patterns; `magnitude_bits` is the pattern's entry in `MAGNITUDE_BITS`."""
    n_rows, width = bits.shape
    magnitude = np.empty(width, dtype=np.uint32)
    zero = bits.dtype.type(0)
    for row in range(n_rows):
        row_bits, row_out, row_mask = bits[row], out[row], mask[row]
        for j in range(width):
            magnitude[j] = row_bits[j] & magnitude_bits
        cut, above = _kth_largest(magnitude, k)
        for j in range(width):  # two sweeps of one type each: the compiler vectorizes them
            row_out[j] = row_bits[j] if magnitude[j] > cut else zero
        for j in range(width):
            row_mask[j] = magnitude[j] > cut
        ties = k - above
        if ties > 0:
            for j in range(width):
                if magnitude[j] == cut:
                    row_mask[j] = True
                    row_out[j] = row_bits[j]
                    ties -= 1
                    if ties == 0:
                        break


@numba.njit(cache=True, nogil=True)
def _kth_largest(magnitude: np.ndarray, k: int) -> tuple[np.uint32, np.int32]:
    """The k-th largest of `magnitude` (uint32) and how many entries lie strictly above it, by bisection over the bits.

    The bisection stops as soon as exactly k entries lie above the probe; the returned cut then lies below all of them and
    above the rest, so that no tie is left to break.
    """
    top = np.uint32(0)
    for j in range(magnitude.size):
        top = max(top, magnitude[j])
    low, high = np.uint32(0), np.uint32(top + np.uint32(1))  # count(>= low) >= k > count(>= high)
    above = np.int32(0)  # count(>= high)
    while high - low > np.uint32(1):
        middle = np.uint32(low + ((high - low) >> np.uint32(1)))
        count = _count_at_least(magnitude, middle)
        if count == k:
            return np.uint32(middle - np.uint32(1)), count
        if count > k:
            low = middle
        else:
            high, above = middle, count
    return low, above


@numba.njit(cache=True, nogil=True)
def _count_at_least(magnitude: np.ndarray, threshold: np.uint32) -> np.int32:
    # Every value is kept at 32 bits: with numba's default 64-bit accumulator the loop runs at half the speed.
    count, one, zero = np.int32(0), np.int32(1), np.int32(0)
    for j in range(magnitude.size):
        count = np.int32(count + (one if magnitude[j] >= threshold else zero))
    return count


@numba.njit(cache=True, nogil=True)
def apply_mask(bits: np.ndarray, mask: np.ndarray, out: np.ndarray) -> None:
    """Copy `bits` where `mask` is set, zero elsewhere (flat arrays)."""
    zero = bits.dtype.type(0)
    for j in range(bits.size):
        out[j] = bits[j] if mask[j] else zero


@numba.njit(cache=True, nogil=True)
def mark_largest(magnitude: np.ndarray, k: int, mask: np.ndarray) -> None:
    """Set exactly k entries of `mask`: the largest of `magnitude` (uint32, flat), ties by lowest index."""
    cut, above = _kth_largest(magnitude, k)
    ties = k - above
    for j in range(magnitude.size):
        mask[j] = magnitude[j] > cut
    for j in range(magnitude.size):
        if ties == 0:
            break
        if magnitude[j] == cut:
            mask[j] = True
            ties -= 1
