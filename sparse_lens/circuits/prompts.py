"""A task's pairs as rows of tensors: what masks are learned and circuits are scored on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.tasks import TaskBatch


@dataclass(frozen=True, eq=False)
class Prompts:
    """Both sides of every pair as rows, sorted by length, a pair's one after the other: what a scorer needs, as tensors.

    The answer is predicted at `position`; `right` and `wrong` are the two answers' ids there, `pair` the row's pair, and
    `other` the tokens of the pair's other side. `model_log_probs` is the whole model's output at `position`, where a search aims
    at it.
    """

    tokens: Int[Tensor, "row pos"]
    other: Int[Tensor, "row pos"]
    position: Int[Tensor, " row"]
    right: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]
    pair: Int[Tensor, " row"]
    model_log_probs: Float[Tensor, "row vocab"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor | slice) -> Prompts:
        """A selection of rows, cut to its longest prompt."""
        position = self.position[index]
        longest = int(position.max()) + 1
        tokens, other = self.tokens[index, :longest], self.other[index, :longest]
        output = None if self.model_log_probs is None else self.model_log_probs[index]
        return Prompts(tokens, other, position, self.right[index], self.wrong[index], self.pair[index], output)


def both_sides(batch: TaskBatch) -> Prompts:
    """Clean and corrupt prompts of a batch: on the corrupt side the two answers change places."""
    n = len(batch)
    tokens, other = np.concatenate([batch.clean, batch.corrupt]), np.concatenate([batch.corrupt, batch.clean])
    position = np.concatenate([batch.length, batch.length]) - 1
    right = np.concatenate([batch.target, batch.distractor])
    wrong = np.concatenate([batch.distractor, batch.target])
    pair = np.tile(np.arange(n), 2)
    order = np.lexsort((pair, position))  # chunks of an even size then hold whole pairs
    arrays = (tokens, other, position, right, wrong, pair)
    return Prompts(*[torch.from_numpy(array[order]) for array in arrays])


def per_pair(values: Float[Tensor, " row"], prompts: Prompts) -> np.ndarray:
    """Mean over the two sides of each pair: pairs, not prompts, are independent."""
    sums = torch.zeros(int(prompts.pair.max()) + 1, dtype=torch.float64).index_add_(0, prompts.pair, values.double())
    counts = torch.bincount(prompts.pair, minlength=len(sums))
    return (sums / counts).numpy()[counts.numpy() > 0]
