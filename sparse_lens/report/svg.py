"""The parts of an SVG figure: escaped elements, a logarithmic axis, mark shapes. Colors are CSS classes, so both themes work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from sparse_lens.report.numbers import format_tick
from sparse_lens.report.strings import visible, width_of

CHARACTER, BOLD_CHARACTER = 6.8, 8.0
"""Width of a character of figure text in pixels, on the safe side."""

SHAPES = ("circle", "triangle", "square", "diamond", "drop", "cross")

SERIES = 12
"""Series that a figure tells apart: as many colors, and the shapes twice."""


def tag(name: str, *children: str, **attributes: str | float | None) -> str:
    """One element; `children` are SVG already, attributes are escaped, `class_` is `class` and `text_anchor` `text-anchor`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    return f"<{name}{written}>{inside}</{name}>" if inside else f"<{name}{written}/>"


def text(content: object, x: float, y: float, **attributes: str | float | None) -> str:
    """A text element with `content` escaped."""
    return tag("text", escape(visible(content)), x=x, y=y, **attributes)


def hover(content: object) -> str:
    """What the browser shows over an element, as its first child."""
    return tag("title", escape(visible(content)))


def document(width: float, height: float, *body: str, ident: str, title: str, description: str, class_: str = "") -> str:
    """A whole figure with its accessible name and description; `ident` is unique on the page."""
    name = tag("title", escape(visible(title)), id=f"{ident}-title")
    told = tag("desc", escape(visible(description)), id=f"{ident}-desc")
    return tag(
        "svg",
        name,
        told,
        *body,
        xmlns="http://www.w3.org/2000/svg",
        class_=f"figure {class_}".strip(),
        width=width,
        height=height,
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        role="img",
        aria_labelledby=f"{ident}-title {ident}-desc",
    )


def text_width(content: str, *, bold: bool = False) -> float:
    """Pixels to keep free for `content` in figure text."""
    return (BOLD_CHARACTER if bold else CHARACTER) * width_of(content)


def series_class(series: int) -> str:
    """The CSS class that gives a series its color, and its line dashes where the shapes come round again."""
    return f"s{series % SERIES}"


def shape(series: int, x: float, y: float, *children: str, class_: str = "", size: float = 5.0) -> str:
    """The mark of a series: color and shape both tell it apart."""
    kind = SHAPES[series % len(SHAPES)]
    classes = f"mark {series_class(series)} {class_}".strip()
    if kind == "circle":
        return tag("circle", *children, class_=classes, cx=x, cy=y, r=size)
    corners = {
        "triangle": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
        "square": [(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "drop": [(0, 1.15), (1.1, -0.85), (-1.1, -0.85)],
        "cross": [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4),
                  (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)],
    }[kind]  # fmt: skip
    points = " ".join(f"{_plain(x + size * dx)},{_plain(y + size * dy)}" for dx, dy in corners)
    return tag("polygon", *children, class_=classes, points=points)


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis over the positive values given, from pixel `left` to `right`; zeros stand in a slot of their own."""

    low: float
    high: float
    left: float
    right: float
    has_zero: bool

    @classmethod
    def over(cls, values: list[float], left: float, right: float) -> LogAxis:
        """The axis that holds `values`, its ends on round numbers."""
        positive = [min(max(value, 1e-6), 1e12) for value in values if value > 0] or [1.0, 10.0]
        low, high = _round_down(min(positive)), _round_up(max(positive))
        if high <= low:
            high = low * 10
        return cls(low, high, left, right, any(value <= 0 for value in values))

    def at(self, value: float) -> float:
        """The pixel of `value`."""
        start = self.left + (34 if self.has_zero else 8)
        if value <= 0:
            return self.left + 8
        share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return start + min(max(share, 0.0), 1.0) * (self.right - 8 - start)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixel and label of each tick: powers of ten, and 2 and 5 between them where there is room."""
        decade = (self.right - self.left) / math.log10(self.high / self.low)
        steps = (1, 2, 5) if decade > 130 else (1,)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil(44 / decade))
        values = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
        inside = [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
        found = [(self.at(value), format_tick(float(f"{value:.3g}"))) for value in inside]
        return [(self.at(0), "0"), *found] if self.has_zero else found


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(step * power for step in (1, 2, 5) if step * power <= value * 1.000001)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999999)


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1f}".removesuffix(".0")
