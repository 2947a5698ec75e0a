"""The threshold at which a given number of latents fires: what a BatchTopK dictionary becomes a function of one token by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from sparse_lens.errors import DataError

_MOST_PER_TOKEN = 4
"""Numbers kept per token, as a multiple of k: those that can lie near the threshold."""


def threshold_for(before: Iterable[Tensor], k: float) -> float:
    """The threshold above which `k` latents per token lie, on average, among the numbers before it: batches `[token latent]`.

    It is never below 0: where fewer than `k` are positive, all of them fire. Memory grows with `4 k` numbers a token, not with the
    latents. (SAELens' running estimate lags behind after short trainings: 55 latents at k = 8.) Raises `DataError` without tokens.
    """
    kept: list[np.ndarray] = []
    n_tokens = 0
    for batch in before:
        values = batch.detach().float().cpu().numpy()
        n_tokens += len(values)
        count = min(int(np.ceil(_MOST_PER_TOKEN * k)) * len(values), values.size)
        largest = np.partition(values.ravel(), values.size - count)[values.size - count :]
        kept.append(largest[largest > 0])
    if n_tokens == 0:
        raise DataError("no tokens to fit a threshold on; give at least one batch")
    largest, wanted = np.concatenate(kept), round(k * n_tokens)
    if wanted >= len(largest):
        return 0.0
    ordered = np.partition(largest, (len(largest) - wanted - 1, len(largest) - wanted))
    return float(ordered[len(largest) - wanted - 1])
