"""Causal attention without its pattern in memory, for inference: in numba, float32 on the CPU.

Its plain form is the forward pass of `sparse_lens.models.core`, with which the tests hold it equal. A pattern of 256 positions and
128 heads takes 34 MB and is swept half a dozen times there; here one row of one head is in the cache at a time, only keys up to the
query are looked at, and channels that AbsTopK has cleared from a query cost nothing.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.kernels.threads import share_rows

_LOG2_E = math.log2(math.e)
_NO_SINK = -1e30
"""The logit of a sink that takes nothing: finite, since the compiled loops take every number for one."""


def causal_attention(
    q: Float[Tensor, "batch pos head d_head"],
    keys: Float[Tensor, "batch head key d_head"],
    values: Float[Tensor, "batch head key d_head"],
    sink: Float[Tensor, " head"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """What each query takes of the values of the keys up to its own; the queries are the last of the positions that have keys.

    `sink` are the logits of one more key with a zero value (arXiv:2511.13653). Without a gradient.
    """
    batch, pos, head, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    logits = torch.full((head,), _NO_SINK) if sink is None else sink.detach() * _LOG2_E
    queries, keys, values = (tensor.detach().contiguous() for tensor in (q, keys, values))
    arrays = queries.numpy(), keys.numpy(), values.numpy(), logits.numpy()
    scale = np.float32(_LOG2_E / math.sqrt(q.shape[-1]))  # the exponentials are powers of two
    least = max(1, (1 << 16) // (pos * keys.shape[2]))
    share_rows(lambda part: _attend(*arrays, scale, part.start, part.stop, out.numpy()), batch * head, least=least)
    return out


@numba.njit(cache=True, nogil=True, fastmath=True)
def _attend(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, sink: np.ndarray, scale: np.float32, first: int, last: int, out: np.ndarray
) -> None:
    """Fill `out` for the heads from `first` to `last`, counted over the batch."""
    pos, n_heads, d_head = q.shape[1:]
    n_keys = keys.shape[2]
    turned_keys, turned_values = np.empty((d_head, n_keys), np.float32), np.empty((d_head, n_keys), np.float32)
    scores, bits = np.empty(n_keys + 1, np.float32), np.empty(n_keys + 1, np.int32)
    kept = np.empty(d_head, np.int64)
    for item in range(first, last):
        row, head = item // n_heads, item % n_heads
        for key in range(n_keys):
            for d in range(d_head):
                turned_keys[d, key] = keys[row, head, key, d]
                turned_values[d, key] = values[row, head, key, d]
        for query in range(pos):
            seen = query + 1 + n_keys - pos
            scores[seen] = sink[head]
            _score(q[row, query, head], scale, turned_keys, kept, scores[:seen])
            total = _raise(scores[: seen + 1], bits[: seen + 1])
            _mix(scores[:seen], turned_values, total, out[row, query, head])


@numba.njit(nogil=True, fastmath=True, inline="always")  # a call for each query and head would be felt
def _score(q: np.ndarray, scale: np.float32, keys: np.ndarray, kept: np.ndarray, scores: np.ndarray) -> None:
    """scores = scale * q @ keys, over the channels of q that are not zero (`kept` takes them), four a sweep."""
    n_kept = 0
    for d in range(q.size):
        if q[d] != 0:
            kept[n_kept] = d
            n_kept += 1
    for j in range(scores.size):
        scores[j] = np.float32(0)
    at = 0
    while at + 4 <= n_kept:
        d0, d1, d2, d3 = kept[at], kept[at + 1], kept[at + 2], kept[at + 3]
        q0, q1, q2, q3 = q[d0] * scale, q[d1] * scale, q[d2] * scale, q[d3] * scale
        k0, k1, k2, k3 = keys[d0], keys[d1], keys[d2], keys[d3]
        for j in range(scores.size):
            scores[j] += q0 * k0[j] + q1 * k1[j] + q2 * k2[j] + q3 * k3[j]
        at += 4
    while at < n_kept:
        q0, k0 = q[kept[at]] * scale, keys[kept[at]]
        for j in range(scores.size):
            scores[j] += q0 * k0[j]
        at += 1


@numba.njit(nogil=True, fastmath=True, inline="always")
def _raise(scores: np.ndarray, bits: np.ndarray) -> np.float32:
    """scores = 2 ** (scores - their maximum), in place; returns their sum.

    2 ** y is a polynomial of the fraction of y, of a relative error of 2e-7, times a power of two that is written into the bits of
    the exponent: numba's own exponential of a vector is one call for each of its entries.
    """
    top = scores[0]
    for j in range(scores.size):
        top = max(top, scores[j])
    for j in range(scores.size):
        y = max(scores[j] - top, np.float32(-126))
        whole = np.floor(y)
        rest = y - whole
        bits[j] = np.int32((whole + np.float32(127)) * np.float32(8388608))
        power = np.float32(1.8775767e-3)
        power = power * rest + np.float32(8.9893397e-3)
        power = power * rest + np.float32(5.5826318e-2)
        power = power * rest + np.float32(2.4015361e-1)
        power = power * rest + np.float32(6.9315308e-1)
        scores[j] = power * rest + np.float32(9.9999994e-1)
    total, powers = np.float32(0), bits.view(np.float32)
    for j in range(scores.size):
        scores[j] *= powers[j]
        total += scores[j]
    return total


@numba.njit(nogil=True, fastmath=True, inline="always")
def _mix(shares: np.ndarray, values: np.ndarray, total: np.float32, out: np.ndarray) -> None:
    """out = values @ shares / total, four channels a sweep."""
    d = 0
    while d + 4 <= out.size:
        v0, v1, v2, v3 = values[d], values[d + 1], values[d + 2], values[d + 3]
        z0 = z1 = z2 = z3 = np.float32(0)
        for j in range(shares.size):
            z0 += shares[j] * v0[j]
            z1 += shares[j] * v1[j]
            z2 += shares[j] * v2[j]
            z3 += shares[j] * v3[j]
        out[d], out[d + 1], out[d + 2], out[d + 3] = z0 / total, z1 / total, z2 / total, z3 / total
        d += 4
    while d < out.size:
        z0, v0 = np.float32(0), values[d]
        for j in range(shares.size):
            z0 += shares[j] * v0[j]
        out[d] = z0 / total
        d += 1
