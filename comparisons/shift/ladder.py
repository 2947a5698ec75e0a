"""A ladder of shift: token windows at rising distance from what the models were trained on, level by level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from sparse_lens.errors import DataError

CONTROLS = ("token", "position", "norm")
"""What a slope holds constant: the token that is read, the log of the tokens before it, the log of the state's norm."""

READ_FROM = 16
"""Positions before this one have too little before them to be read."""


@dataclass(frozen=True, eq=False)
class ShiftLadder:
    """Token windows at each level of a shift.

    `windows[level]` is `[window, pos + 1]` (the last token is a label only); `files[level]` numbers the text that each window is
    from. `shift` says how far each level is from the first, in `unit` of `source`'s text; levels need not rise in it.
    Positions from `read_from[level]` on are read. `controls` are those of `CONTROLS` that a slope holds constant: a ladder of
    lengths must leave out the position. `doses` are shares of what was done to the text, where that can be told.
    Raises `DataError` for fewer than two levels, parts of unlike length, or a shift that is the same at all levels.
    """

    name: str
    levels: tuple[str, ...]
    windows: tuple[Int[np.ndarray, "_ _"], ...] = field(repr=False)
    files: tuple[Int[np.ndarray, " _"], ...] = field(repr=False)
    shift: tuple[float, ...]
    read_from: tuple[int, ...]
    unit: str = "nats per token"
    source: str = "given windows"
    controls: tuple[str, ...] = CONTROLS
    doses: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.levels)
        if n < 2 or any(
            len(part) != n for part in (self.windows, self.files, self.shift, self.read_from, self.doses or self.levels)
        ):
            raise DataError(f"ladder {self.name!r} needs two levels or more, each with windows, files, shift and start; got {n}")
        if not np.isfinite(self.shift).all() or np.ptp(self.shift) <= 0:
            raise DataError(f"ladder {self.name!r} has levels that differ by no shift, {self.shift}; name one in shift=")
        for level, windows, files, start in zip(self.levels, self.windows, self.files, self.read_from, strict=True):
            if windows.ndim != 2 or not len(windows) or not 0 <= start < windows.shape[1] - 1:
                raise DataError(f"level {level!r} of ladder {self.name!r} has no token to read after position {start}")
            if len(windows) != len(files):
                raise DataError(
                    f"level {level!r} of ladder {self.name!r} has {len(windows)} windows, {len(files)} of them with a file"
                )

    @classmethod
    def of(
        cls,
        levels: Mapping[str, Int[np.ndarray, "_ _"]],
        *,
        shift: Mapping[str, float] | None = None,
        files: Mapping[str, Int[np.ndarray, " _"]] | None = None,
    ) -> ShiftLadder:
        """Windows by level, from the least shifted on. Without `shift` levels are one step from the next.

        Without `files` window i of every level is taken for the same text i.
        """
        windows = tuple(np.asarray(tokens) for tokens in levels.values())
        if files is None and len({len(tokens) for tokens in windows}) > 1:
            raise DataError("levels have unlike numbers of windows, so these are not the same texts; say which are in files=")
        for told, given in (("shift", shift), ("files", files)):
            if given is not None and (missing := [name for name in levels if name not in given]):
                raise DataError(f"{told} has no entry for the level {missing[0]!r}; give one for each of {', '.join(levels)}")
        numbers = tuple(np.arange(len(tokens)) for tokens in windows) if files is None else tuple(files[name] for name in levels)
        shifts = tuple(float(step) for step in range(len(levels))) if shift is None else tuple(shift[name] for name in levels)
        starts = tuple(min(READ_FROM, tokens.shape[1] - 2) for tokens in windows)
        return cls("given levels", tuple(levels), windows, numbers, shifts, starts, "steps" if shift is None else "nats per token")

    @property
    def paired(self) -> bool:
        """Whether every text is at every level."""
        return all(np.array_equal(np.unique(files), np.unique(self.files[0])) for files in self.files)
