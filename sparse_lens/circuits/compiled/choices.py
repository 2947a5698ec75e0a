"""Recorded norm scales and choices of AbsTopK, and which of them a row of another batch goes by.

Each is an affine map of a site's kept channels, `value * factor + offset`, with other numbers in every row. A row whose whole
prefix (before any attention: whose token at its position) was recorded goes by its own numbers, so recorded prompts come out as
they were. Any other row goes by the factor that fits the rows recorded at the same token best (least squares; all rows, if that
token was not recorded): a mean scale, and for a channel that AbsTopK drops when it is small, a factor near 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.compiled.prefixes import Level, PrefixRows


@dataclass(frozen=True, eq=False)
class Choice:
    """What was recorded at one site, by row of a level; `values` are what came in."""

    level: Level
    values: Float[Tensor, "row channel"]
    factor: Float[Tensor, "row channel"]
    offset: Float[Tensor, "row channel"] | None

    def channels(self, index: Tensor) -> Choice:
        """The same for some of the channels."""
        offset = None if self.offset is None else self.offset[:, index]
        return Choice(self.level, self.values[:, index], self.factor[:, index], offset)

    def with_averages(self, slot: Int[Tensor, " row"], n_slots: int) -> tuple[Tensor, Tensor | None]:
        """Factors and offsets of the recorded rows, behind them those that fit each slot's rows, and those that fit all rows."""
        offset = None if self.offset is None else _with_averages(self.offset, torch.ones_like(self.offset), slot, n_slots)
        return _with_averages(self.factor, self.values.square() + 1e-12, slot, n_slots), offset


def _with_averages(values: Tensor, weight: Tensor, slot: Tensor, n_slots: int) -> Tensor:
    def total(rows: Tensor) -> Tensor:
        sums = rows.new_zeros(n_slots, rows.shape[1], dtype=torch.float64).index_add_(0, slot, rows.double())
        return torch.cat([sums, sums.sum(0, keepdim=True)])

    part, whole = total(values * weight), total(weight)
    averages = torch.where(whole > 0, part / whole, part[-1:] / whole[-1:])  # a token may stand at no row of this level
    return torch.cat([values, averages.float()])


class FrozenChoices:
    """The choices recorded on the rows of some prompts, by site."""

    def __init__(self, rows: PrefixRows, choices: Mapping[str, Choice], n_vocab: int) -> None:
        self._rows, self._n_vocab = rows, n_vocab
        tokens = rows.token["prefix"].unique()
        self._slot_of_token = torch.full((n_vocab,), len(tokens))
        self._slot_of_token[tokens] = torch.arange(len(tokens))
        self._choices: dict[str, tuple[Level, Tensor, Tensor | None]] = {
            name: (choice.level, *choice.with_averages(self._slot_of_token[rows.token[choice.level]], len(tokens)))
            for name, choice in choices.items()
        }
        parent = rows.grid["prefix"].roll(1, dims=1)
        parent[:, 0] = -1
        self._children = _Lookup((parent[rows.first] + 1) * n_vocab + rows.token["prefix"])
        self._tokens = _Lookup(rows.position["token"] * n_vocab + rows.token["token"])
        self._prompts = _Lookup(rows.moves["prefix", "prompt"])

    def apply(self, name: str, values: Float[Tensor, "row channel"], index: Mapping[Level, Tensor]) -> Float[Tensor, "row channel"]:
        """Values of a site with its choices made, by the rows of `index`; as they are at a site where nothing is chosen."""
        if name not in self._choices:
            return values
        level, factor, offset = self._choices[name]
        found = values * factor[index[level]]
        return found if offset is None else found.add_(offset[index[level]])

    def index(self, rows: PrefixRows) -> dict[Level, Int[Tensor, " _"]]:
        """By level, the row of every choice that each of `rows` goes by."""
        tokens = self._tokens(rows.position["token"] * self._n_vocab + rows.token["token"])
        prefixes = self._prefixes(rows)
        ends = prefixes[rows.moves["prefix", "prompt"]]
        found: dict[Level, Tensor] = {"token": tokens, "prefix": prefixes, "prompt": self._prompts(ends)}
        return {
            level: torch.where(index >= 0, index, self._rows.n_rows(level) + self._slot_of_token[rows.token[level]])
            for level, index in found.items()
        }

    def _prefixes(self, rows: PrefixRows) -> Int[Tensor, " prefix"]:
        """The recorded prefix that each of the batch's is, or -1: token after token, along the tree of prefixes."""
        token = rows.token["prefix"][rows.grid["prefix"]]
        found, followed = torch.full_like(token, -1), torch.arange(len(token))  # the prompts that the tree still has
        at = torch.full_like(followed, -1)
        for position in range(token.shape[1]):
            at = self._children((at + 1) * self._n_vocab + token[followed, position])
            followed, at = followed[at >= 0], at[at >= 0]
            if len(followed) == 0:
                break
            found[followed, position] = at
        return found[rows.first]


class _Lookup:
    """Places of numbers in a list of distinct ones; -1 for those that are not in it."""

    def __init__(self, keys: Int[Tensor, " key"]) -> None:
        self._sorted, self._place = keys.sort()

    def __call__(self, keys: Int[Tensor, " asked"]) -> Int[Tensor, " asked"]:
        at = torch.searchsorted(self._sorted, keys).clamp(max=len(self._sorted) - 1)
        return torch.where(self._sorted[at] == keys, self._place[at], -1)
