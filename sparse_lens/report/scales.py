"""Scales of plots with two numeric axes: linear or logarithmic, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparse_lens.report.numbers import format_tick

_ROUND = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on pixels from `start` to `end` (which may run backwards, as a vertical axis does)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
        """The scale that holds the finite `values`, its ends on round numbers; `zero` keeps 0 on a linear one.

        A logarithmic scale ignores values that are not positive.
        """
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        if log:
            low, high = (min(finite), max(finite)) if finite else (1.0, 10.0)
            low, high = _round(low, up=False), _round(high, up=True)
            return cls(low, high if high > low else low * 10, start, end, log=True)
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        low = min(low, 0.0) if zero else low
        step = _step(max(high - low, abs(high) * 1e-6, 1e-9))
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(low, high if high > low else low + step, start, end)

    def at(self, value: float) -> float:
        """The pixel of `value`; what lies outside is drawn at the end."""
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixel and label of each tick."""
        values = self._log_ticks() if self.log else self._linear_ticks()
        return [(self.at(value), format_tick(float(f"{value:.6g}"))) for value in values]

    def _linear_ticks(self) -> list[float]:
        step = _step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        decade = abs(self.end - self.start) / math.log10(self.high / self.low)
        steps = (1, 2, 5) if decade > 130 else (1,)
        every = max(1, math.ceil(40 / decade))
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1, every)
        values = [step * 10.0**power for power in powers for step in steps]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001] or [self.low, self.high]


def _step(span: float) -> float:
    """A round step that cuts `span` into four to ten parts."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(step * power for step in reversed(_ROUND) if step * power <= span / 4 * 1.000001)


def _round(value: float, *, up: bool) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    if up:
        return min(step * power for step in _ROUND if step * power >= value * 0.999999)
    return max(step * power for step in _ROUND[:3] if step * power <= value * 1.000001)
