"""Activations of one hook for several trainings: harvested anew at each pass, or once and kept, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries.harvest import Bridge, harvest_activations
from sparse_lens.errors import DataError, OutputError


@dataclass(frozen=True, eq=False)
class HookActivations:
    """The activations at `hook`, batch after batch `[token width]`, harvested anew at each pass over them."""

    bridge: Bridge
    hook: str
    token_batches: Iterable[Any]

    def __iter__(self) -> Iterator[Float[Tensor, "token width"]]:
        return (found[self.hook] for found in harvest_activations(self.bridge, [self.hook], self.token_batches))


@dataclass(frozen=True, eq=False)
class StoredActivations:
    """Kept activations, handed out in the batches of `batch_size` tokens that they came in."""

    values: Float[np.ndarray, "token width"]
    batch_size: int

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.values)

    def __iter__(self) -> Iterator[Float[Tensor, "token width"]]:
        for start in range(0, len(self.values), self.batch_size):
            # A copy: whoever trains may keep its batch, and the file does not outlive the training.
            yield torch.from_numpy(np.array(self.values[start : start + self.batch_size]))


@contextmanager
def stored_activations(
    activations: Iterable[Float[Tensor, "_ width"]], n_tokens: int, file: str | Path, *, memory_gb: float = 1.0
) -> Iterator[StoredActivations]:
    """Keep the first `n_tokens` activations, fewer if there are no more, as float32 until the block ends.

    They lie in memory up to `memory_gb` gigabytes, beyond that in `file`, which is removed at the end. The batches handed out later
    are those that came in, provided that all are of one size but for the last. Raises `DataError` without any, `OutputError` for a
    file that cannot be written.
    """
    batches, path = iter(activations), Path(file)
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise DataError("no tokens to harvest activations of; give batches of token ids [batch, pos]")
    shape = (n_tokens, first.shape[1])
    in_file = 4 * n_tokens * first.shape[1] > memory_gb * 1e9
    try:
        values = np.lib.format.open_memmap(path, "w+", np.float32, shape) if in_file else np.empty(shape, dtype=np.float32)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); {4e-9 * n_tokens * shape[1]:.1f} GB are needed there") from error
    try:
        yield StoredActivations(values[: _fill(values, first, batches)], len(first))
    finally:
        path.unlink(missing_ok=True)


def _fill(values: np.ndarray, first: Tensor, rest: Iterator[Tensor]) -> int:
    """Write batches into the rows of `values` until these or the batches end; returns the number of rows written."""
    filled, batch = 0, first
    while batch is not None and filled < len(values):
        taken = batch[: len(values) - filled]
        values[filled : filled + len(taken)] = taken.float().cpu().numpy()
        filled += len(taken)
        batch = next(rest, None) if filled < len(values) else None
    return filled
