"""Are two columns' models equally good? If not, a size is read off between two widths, or the pair is reported as too far apart.

Circuits of a worse model are smaller for nothing. Two models are matched if their pretraining losses, in nats a token on the same
real files, differ by no more than `TOLERANCE`. Otherwise a quantity of the second is interpolated between two widths of it whose
losses lie on either side of the first's; without such two it is not compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sparse_lens.errors import ConfigError
from sparse_lens.results import Result, exact, not_measurable, to_plain

TOLERANCE = 0.05
"""Nats a token by which matched models may differ."""

How = Literal["matched", "interpolated", "too far apart"]


@dataclass(frozen=True)
class Matched:
    """How one model was matched to another's loss, and with what weights.

    `weights` are the shares of each candidate, by name, in anything that is compared; empty where the pair is too far apart.
    `difference` is candidate less target in nats a token, of the nearest candidate where there is no match.
    """

    how: How
    weights: Mapping[str, float]
    difference: Result
    reason: str = ""

    @property
    def comparable(self) -> bool:
        return self.how != "too far apart"

    def value(self, quantities: Mapping[str, Result]) -> Result:
        """A quantity at the matched loss, from that of each candidate; interpolated between logarithms if all are positive.

        Not measurable where the pair is too far apart, or where a candidate's own is not.
        """
        if not self.comparable:
            return not_measurable(self.reason)
        found = {name: quantities[name] for name in self.weights}
        for name, result in found.items():
            if result.value is None:
                return not_measurable(f"{name}: {result.reason}", n=result.n)
        if len(found) == 1:
            return next(iter(found.values()))
        values = [(self.weights[name], result.value) for name, result in found.items() if result.value is not None]
        n = min(result.n for result in found.values())
        if all(value > 0 for _, value in values):
            return exact(math.exp(sum(weight * math.log(value) for weight, value in values)), n=n)
        return exact(sum(weight * value for weight, value in values), n=n)

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_plain(vars(self))


def match_losses(target: Result, candidates: Mapping[str, Result], *, tolerance: float = TOLERANCE) -> Matched:
    """Match one of `candidates` (losses by name), or two of them that bracket it, to the loss `target`; all in nats a token.

    The nearest candidate within `tolerance` is taken as it is. Else the nearest on each side are interpolated linearly in the loss.
    Losses must be of the same tokens of the same files; that they are is for the caller to see to, except that their numbers of
    windows must agree. Raises `ConfigError` if they do not, or without candidates, or for a loss that is not measurable.
    """
    _check(target, candidates)
    assert target.value is not None
    differences = {name: (loss.value or 0.0) - target.value for name, loss in candidates.items()}
    nearest = min(differences, key=lambda name: abs(differences[name]))
    difference = exact(differences[nearest], n=target.n)
    if abs(differences[nearest]) <= tolerance:
        return Matched("matched", {nearest: 1.0}, difference)
    better = [name for name, value in differences.items() if value < 0]
    worse = [name for name, value in differences.items() if value > 0]
    if not better or not worse:
        side = "worse" if worse else "better"
        reason = (
            f"losses too far apart: the nearest candidate, {nearest}, is {abs(differences[nearest]):.3g} nats a token {side}, "
            f"more than {tolerance:g}, and no candidate lies on the other side"
        )
        return Matched("too far apart", {}, difference, reason)
    below, above = max(better, key=differences.__getitem__), min(worse, key=differences.__getitem__)
    share = -differences[below] / (differences[above] - differences[below])
    reason = f"between {below} ({differences[below]:+.3g} nats a token) and {above} ({differences[above]:+.3g})"
    return Matched("interpolated", {below: 1 - share, above: share}, difference, reason)


def _check(target: Result, candidates: Mapping[str, Result]) -> None:
    if not candidates:
        raise ConfigError("there is no candidate to match; give the loss of at least one model")
    for name, loss in {"the target": target, **candidates}.items():
        if loss.value is None:
            raise ConfigError(f"the loss of {name} is not measurable ({loss.reason}); matching needs it")
        if loss.n != target.n:
            raise ConfigError(f"the loss of {name} is over {loss.n} windows, the target's over {target.n}; use the same files")
