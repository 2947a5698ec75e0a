"""Line plots: several series of points with bands on two numeric axes, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparse_lens.report.numbers import NOT_MEASURABLE
from sparse_lens.report.scales import Scale
from sparse_lens.report.strings import visible
from sparse_lens.report.svg import document, hover, series_class, shape, tag, text, text_width

HEIGHT, _TOP, _BOTTOM = 320.0, 14.0, 44.0


@dataclass(frozen=True)
class Point:
    """One point and, where there is an interval of its height, its ends; `told` is what hovering shows."""

    x: float
    y: float
    told: str
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class Line:
    """One series, its points by rising x. `quiet` draws it thin, dashed and gray: a control."""

    label: str
    series: int
    points: Sequence[Point]
    quiet: bool = False


@dataclass(frozen=True)
class Axis:
    """Label and kind of an axis; `zero` keeps 0 on a linear one."""

    label: str
    log: bool = False
    zero: bool = False


def line_plot(
    lines: Sequence[Line], x: Axis, y: Axis, *, ident: str, title: str, description: str, width: float, height: float = HEIGHT
) -> str:
    """The lines on their common axes, quiet ones below the others; without a point the frame says so."""
    points = [point for line in lines for point in line.points]
    heights = [value for p in points for value in (p.y, p.lo, p.hi) if value is not None]
    bottom = height - _BOTTOM
    vertical = Scale.over(heights, bottom, _TOP + 6, log=y.log, zero=y.zero)
    left = 34 + max(text_width(label) for _, label in vertical.ticks())
    across = Scale.over([point.x for point in points], left + 8, width - 26, log=x.log, zero=x.zero)
    parts = [*_grid(across, vertical, left, width - 6, bottom), *_axis_names(x, y, left, width, height)]
    for line in sorted(lines, key=lambda line: not line.quiet):
        parts += _drawn(line, across, vertical)
    if not points:
        parts.append(text(NOT_MEASURABLE, left + 16, _TOP + 30, class_="remark"))
    told = f"{description} " + " ".join(_spoken(line) for line in lines)
    return document(width, height, *parts, ident=ident, title=title, description=told.strip())


def _grid(across: Scale, vertical: Scale, left: float, right: float, bottom: float) -> list[str]:
    parts = [tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y) for y, _ in vertical.ticks()]
    parts += [tag("line", class_="grid", x1=x, x2=x, y1=_TOP, y2=bottom) for x, _ in across.ticks()]
    parts.append(tag("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    parts.append(tag("line", class_="axis", x1=left, x2=left, y1=_TOP, y2=bottom))
    parts += [text(label, left - 6, y + 4, class_="small", text_anchor="end") for y, label in vertical.ticks()]
    parts += [text(label, x, bottom + 16, class_="small", text_anchor="middle") for x, label in across.ticks()]
    return parts


def _axis_names(x: Axis, y: Axis, left: float, width: float, height: float) -> list[str]:
    middle = _TOP + (height - _BOTTOM - _TOP) / 2
    across = text(x.label, (left + width) / 2, height - 8, class_="small", text_anchor="middle")
    up = text(y.label, 12, middle, class_="small", text_anchor="middle", transform=f"rotate(-90 12 {middle:.1f})")
    return [across, up]


def _drawn(line: Line, across: Scale, vertical: Scale) -> list[str]:
    places = [(across.at(point.x), vertical.at(point.y), point) for point in line.points]
    kind = "line quiet" if line.quiet else f"line {series_class(line.series)}"
    parts = []
    band = [(x, vertical.at(p.lo), vertical.at(p.hi)) for x, _, p in places if p.lo is not None and p.hi is not None]
    if len(band) > 1 and not line.quiet:
        outline = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
        parts.append(tag("path", class_=f"band {series_class(line.series)}", d=_path(outline) + "Z"))
    if len(places) > 1:
        parts.append(tag("path", class_=kind, d=_path([(x, y) for x, y, _ in places])))
    for x, y, point in places:
        if line.quiet:
            parts.append(tag("circle", hover(point.told), class_="quiet", cx=x, cy=y, r=2.5))
        else:
            parts.append(shape(line.series, x, y, hover(point.told), size=4.0))
    return parts


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _spoken(line: Line) -> str:
    """One series in words, for those who cannot see the figure."""
    if not line.points:
        return f"{visible(line.label)}: {NOT_MEASURABLE}."
    return f"{visible(line.label)}: " + "; ".join(visible(point.told) for point in line.points) + "."
