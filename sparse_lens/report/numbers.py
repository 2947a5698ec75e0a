"""Numbers as they are read and printed: one form for the terminal, Markdown, HTML and the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparse_lens.report.strings import visible

TIMES, DASH, MINUS, RANGE = "\N{MULTIPLICATION SIGN}", "\N{EM DASH}", "\N{MINUS SIGN}", "\N{EN DASH}"
NOT_MEASURABLE = "not measurable"


@dataclass(frozen=True)
class Reading:
    """A number read from JSON: its `value` and interval, or the `reason` why there is none."""

    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    null: float | None = None
    n: int | None = None
    reason: str = "not recorded in this run"
    seeds: int | None = None

    def text(self, kind: str = "number") -> str:
        """The value in its printed form, an em dash where there is none."""
        return DASH if self.value is None else format_number(self.value, kind)

    def interval(self, kind: str = "number") -> str:
        """The 95 % interval, empty where there is none."""
        if self.value is None or self.lo is None or self.hi is None:
            return ""
        low, high = format_number(self.lo, kind), format_number(self.hi, kind)
        return low.removesuffix(TIMES).removesuffix(" %") + RANGE + high


def read_number(raw: Any) -> Reading:
    """A Result's JSON form, a plain number or nothing at all, as a `Reading`; what is not a finite number has no value."""
    if not isinstance(raw, Mapping):
        value = _finite(raw)
        return Reading() if value is None else Reading(value=value, reason="")
    value = _finite(raw.get("value")) if raw.get("measurable", True) else None
    if value is None:
        return Reading(reason=visible(raw.get("reason") or "no reason recorded"))
    lo, hi, null = (_finite(raw.get(name)) for name in ("lo", "hi", "null"))
    n, seeds = (None if (found := _finite(raw.get(name))) is None else int(found) for name in ("n", "seeds"))
    return Reading(value, lo, hi, null, n, reason="", seeds=seeds)


def format_number(value: float, kind: str = "number") -> str:
    """`value` in print: kinds are `count` (12,345), `loss` (0.153), `percent` (97.3 %), `share` (0.93),
    `ratio` (9.6×) and `number`."""
    if kind == "percent":
        return f"{100 * value:.1f} %"
    if kind == "ratio":
        return _signed(_significant(value, 2)) + TIMES
    if kind == "loss":
        return _signed(f"{value:.3f}")
    if kind == "share":
        return _signed(f"{value:.2f}")
    if kind == "count":
        return _signed(f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:,.1f}")
    return _signed(_significant(value, 3))


def format_effect(value: float) -> str:
    """A patching effect with its sign, two decimals; 0.00 has none."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def format_tick(value: float) -> str:
    """A round number on an axis: 500, 2k, 1M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _significant(value: float, digits: int) -> str:
    """At least `digits` significant digits, no whole digit rounded away, thousands grouped."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def _signed(text: str) -> str:
    return text.replace("-", MINUS) if text.startswith("-") else text


def _finite(raw: Any) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        return None
    try:
        value = float(raw)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
