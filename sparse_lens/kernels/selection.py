"""Selection of the k largest magnitudes on the bit patterns of floats: the compiled loops behind the fast kernels.

Without its sign bit, the pattern of a float32 (uint32) or bfloat16 (uint16) sorts as its magnitude does.

These compiled functions live in one file, since numba's on-disk cache is checked against the file of the function alone: a
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
    """Set exactly k entries of `mask`: the largest of `magnitude` (uint32 below 2**31, flat), ties by lowest index."""
    cut, above = _cut_of_many(magnitude, k)
    ties = k - above
    for j in range(magnitude.size):
        mask[j] = magnitude[j] > cut
    for j in range(magnitude.size):
        if ties == 0:
            break
        if magnitude[j] == cut:
            mask[j] = True
            ties -= 1


@numba.njit(cache=True, nogil=True)
def _cut_of_many(magnitude: np.ndarray, k: int) -> tuple[np.uint32, int]:
    """As `_kth_largest`, for long arrays: counts by the leading 11 bits first, then bisects within the one bin that matters."""
    shift = np.uint32(20)
    counts = np.zeros((4, 2048), dtype=np.int32)  # four tables, so that equal neighbours do not wait for each other's increment
    for j in range(magnitude.size):
        counts[j & 3, magnitude[j] >> shift] += 1
    above, inside, bin_ = 0, 0, 2048
    while above < k:  # ends: the counts sum to the size, which is at least k
        bin_ -= 1
        inside = counts[0, bin_] + counts[1, bin_] + counts[2, bin_] + counts[3, bin_]
        if above + inside >= k:
            break
        above += inside
    if bin_ == 2048:  # k is 0
        return np.uint32(0x7FFFFFFF), 0
    candidates = np.empty(inside, dtype=np.uint32)
    filled, wanted = 0, np.uint32(bin_)
    for j in range(magnitude.size):
        if magnitude[j] >> shift == wanted:
            candidates[filled] = magnitude[j]
            filled += 1
    cut, above_inside = _kth_largest(candidates, k - above)
    if cut >> shift != wanted and bin_ > 0:
        cut = np.uint32((wanted << shift) - np.uint32(1))  # all candidates lie above; so must nothing else
    return cut, above + int(above_inside)


@numba.njit(cache=True, nogil=True)
def protect_largest_in_rows(magnitude: np.ndarray, n: int) -> None:
    """Raise the n largest entries of every row (uint32) above all others; ties by lowest index."""
    values, columns = np.zeros(n, dtype=np.uint32), np.zeros(n, dtype=np.int64)
    for row in range(magnitude.shape[0]):
        filled = 0
        for column in range(magnitude.shape[1]):
            value = magnitude[row, column]
            if filled == n and value <= values[n - 1]:
                continue
            place = filled if filled < n else n - 1
            filled = min(filled + 1, n)
            while place > 0 and values[place - 1] < value:
                values[place], columns[place] = values[place - 1], columns[place - 1]
                place -= 1
            values[place], columns[place] = value, column
        for place in range(n):
            magnitude[row, columns[place]] = np.uint32(0x7FFFFFFF)


@numba.njit(cache=True, nogil=True)
def protect_largest_in_columns(magnitude: np.ndarray, n: int) -> None:
    """Raise the n largest entries of every column (uint32) above all others; ties by lowest index. Row by row, as memory lies."""
    width = magnitude.shape[1]
    values, rows = np.zeros((n, width), dtype=np.uint32), np.zeros((n, width), dtype=np.int64)
    for row in range(magnitude.shape[0]):
        for column in range(width):
            value = magnitude[row, column]
            if row >= n and value <= values[n - 1, column]:
                continue
            place = min(row, n - 1)
            while place > 0 and values[place - 1, column] < value:
                values[place, column], rows[place, column] = values[place - 1, column], rows[place - 1, column]
                place -= 1
            values[place, column], rows[place, column] = value, row
    for place in range(n):
        for column in range(width):
            magnitude[rows[place, column], column] = np.uint32(0x7FFFFFFF)
