"""The distinct computations in a batch of prompts: in a causal model what happens at a position depends on the tokens up to it.

Three levels of rows: `token` (a token at a position: all that the embedding depends on), `prefix` (the tokens up to a position) and
`prompt` (a whole prompt, at its answer position). Prompts of a template share most of the first and many of the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

Level = Literal["token", "prefix", "prompt"]
LEVELS: tuple[Level, ...] = ("token", "prefix", "prompt")


@dataclass(frozen=True, eq=False)
class PrefixRows:
    """Distinct rows of a batch of prompts by level, and where they stand.

    `token` and `position` are those of a row (of a prompt: its last ones). `grid[level]` is the row of a prompt's every position (0
    past its end), `first` marks one place for each prefix, `length` is the prompts' and `inverse` the prompt of each input row.
    """

    token: Mapping[Level, Int[Tensor, " _"]]
    position: Mapping[Level, Int[Tensor, " _"]]
    grid: Mapping[Level, Int[Tensor, "prompt pos"]]
    first: Bool[Tensor, "prompt pos"]
    length: Int[Tensor, " prompt"]
    inverse: Int[Tensor, " input"]
    moves: Mapping[tuple[Level, Level], Int[Tensor, " _"]]

    def n_rows(self, level: Level) -> int:
        return len(self.token[level])

    def move(self, values: Tensor, source: Level, goal: Level) -> Tensor:
        """What rows of one level hold, for the rows of a later one."""
        return values if source == goal else values.index_select(0, self.moves[source, goal])

    def tiled(self, n: int) -> PrefixRows:
        """The rows `n` times over, each time rows of their own: for variants of a model on the same prompts."""
        steps = torch.arange(n)

        def shifted(index: Tensor, size: int) -> Tensor:
            return (index + (steps * size).view(-1, *[1] * index.ndim)).flatten(0, 1)

        return PrefixRows(
            token={level: row.repeat(n) for level, row in self.token.items()},
            position={level: row.repeat(n) for level, row in self.position.items()},
            grid={level: shifted(index, self.n_rows(level)) for level, index in self.grid.items()},
            first=self.first.repeat(n, 1),
            length=self.length.repeat(n),
            inverse=shifted(self.inverse, self.n_rows("prompt")),
            moves={(source, goal): shifted(index, self.n_rows(source)) for (source, goal), index in self.moves.items()},
        )


def prefix_rows(tokens: Int[Tensor, "input pos"], position: Int[Tensor, " input"]) -> PrefixRows:
    """The distinct rows of prompts that end at `position`; what follows it is not looked at."""
    length = position.numpy() + 1
    longest = int(length.max())
    padded = np.where(np.arange(longest) < length[:, None], tokens[:, :longest].numpy(), -1)
    order, prompts, differs = _sorted_prompts(padded)
    inverse = np.empty(len(order), dtype=np.int64)
    inverse[order] = differs[:, -1].cumsum() - 1
    prompts, new = prompts[differs[:, -1]], differs[differs[:, -1]]
    by_length = np.argsort((prompts >= 0).sum(1), kind="stable")
    place = np.empty_like(by_length)
    place[by_length] = np.arange(len(by_length))
    prefix, first = _numbered(new & (prompts >= 0))
    return _rows(prompts[by_length], prefix[by_length], first[by_length], place[inverse])


def _sorted_prompts(padded: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order that sorts the rows, the sorted rows, and where each has another prefix than the row before it."""
    keys = np.ascontiguousarray((padded + 1).astype(">u4")).view(f"S{4 * padded.shape[1]}").ravel()  # big-endian: sorts as numbers
    order = keys.argsort(kind="stable")
    rows = padded[order]
    changed = np.ones(rows.shape, dtype=bool)
    changed[1:] = rows[1:] != rows[:-1]
    return order, rows, np.logical_or.accumulate(changed, axis=1)


def _numbered(new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for every prefix at all places where it stands, and a mark at the first of them."""
    number = new.ravel().cumsum().reshape(new.shape) - 1
    seen_at = np.maximum.accumulate(np.where(new, np.arange(len(new))[:, None], 0), axis=0)
    return np.take_along_axis(number, seen_at, axis=0), new


def _rows(prompts: np.ndarray, prefix: np.ndarray, first: np.ndarray, inverse: np.ndarray) -> PrefixRows:
    real, width = prompts >= 0, prompts.shape[1]
    rank = np.empty(int(first.sum()), dtype=np.int64)  # prefixes in the order in which they now stand
    rank[prefix[first]] = np.arange(len(rank))
    prefix = np.where(real, rank[prefix], 0)
    pairs = prompts[first] * width + np.nonzero(first)[1]
    distinct, token_of_prefix = np.unique(pairs, return_inverse=True)
    last = real.sum(1) - 1
    prompt = np.arange(len(prompts))
    end = prefix[prompt, last]
    numbers = {
        "token": {"token": distinct // width, "prefix": prompts[first], "prompt": prompts[prompt, last]},
        "position": {"token": distinct % width, "prefix": np.nonzero(first)[1], "prompt": last},
        "grid": {"token": np.where(real, token_of_prefix[prefix], 0), "prefix": prefix},
        "moves": {("token", "prefix"): token_of_prefix, ("prefix", "prompt"): end, ("token", "prompt"): token_of_prefix[end]},
    }
    tensors = {name: {key: torch.from_numpy(value) for key, value in part.items()} for name, part in numbers.items()}
    rest = (torch.from_numpy(first), torch.from_numpy(last + 1), torch.from_numpy(inverse))
    return PrefixRows(tensors["token"], tensors["position"], tensors["grid"], *rest, tensors["moves"])
