"""Figures as pure functions from data to SVG text: dot plots, share bars, effect bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparse_lens.report.numbers import MINUS, format_effect
from sparse_lens.report.strings import shorten, visible
from sparse_lens.report.svg import BOLD_CHARACTER, CHARACTER, LogAxis, document, hover, series_class, shape, tag, text, text_width

WIDE, NARROW = 956.0, 340.0
"""The two widths a figure is drawn at; the page shows the one that fits."""

_LANE = 14.0


@dataclass(frozen=True)
class Mark:
    """One value of a dot plot: its `lane` in the row, the `series` that colors and shapes it, and what hovering shows."""

    lane: int
    series: int
    value: float
    told: str
    lo: float | None = None
    hi: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a dot plot. `remarks` are texts in place of marks, by lane; `note` stands at the right."""

    label: str
    marks: Sequence[Mark] = ()
    remarks: Sequence[tuple[int, str]] = ()
    note: str = ""


def dot_plot(
    rows: Sequence[Row],
    *,
    lanes: int,
    ident: str,
    title: str,
    description: str,
    axis_label: str,
    note_label: str = "",
    width: float = WIDE,
) -> str:
    """Rows of marks on a shared logarithmic axis; below 560 px the row labels stand above their rows."""
    stacked = width < 560
    head, top = (20.0 if stacked else 6.0), 26.0 if note_label else 8.0
    height = head + lanes * _LANE + 10
    noted = max([text_width(note, bold=True) for note in (*(row.note for row in rows), note_label) if note], default=0.0)
    longest = int((width - noted) / BOLD_CHARACTER) - 1 if stacked else 30
    left = 4.0 if stacked else 16 + max([text_width(shorten(visible(row.label), longest), bold=True) for row in rows], default=0.0)
    right = width - 4 if stacked or not noted else width - 20 - noted
    values = [value for row in rows for mark in row.marks for value in (mark.value, mark.lo, mark.hi) if value is not None]
    axis = LogAxis.over(values, left, right)
    bottom = top + height * len(rows)
    parts = [_grid(axis, top, bottom, axis_label)]
    if note_label:
        parts.append(text(note_label, width - 4, 14, class_="small", text_anchor="end"))
    for index, row in enumerate(rows):
        y = top + index * height
        parts.append(tag("line", class_="rule", x1=0, x2=width, y1=y, y2=y))
        label_y = y + 16 if stacked else y + head + (lanes * _LANE) / 2 + 4
        parts.append(text(shorten(visible(row.label), longest), 0, label_y, class_="label"))
        if row.note:
            parts.append(text(row.note, width - 4, label_y, class_="value", text_anchor="end"))
        parts.append(_marks(row, axis, y + head + _LANE / 2 + 2))
    return document(width, bottom + 44, *parts, ident=ident, title=title, description=description)


def share_bars(
    rows: Sequence[tuple[str, Sequence[float]]],
    kinds: Sequence[str],
    *,
    ident: str,
    title: str,
    description: str,
    width: float = WIDE,
) -> str:
    """One bar a row, cut into the shares of its parts; `rows` are labels with one amount for each of `kinds`."""
    stacked = width < 560
    left = 0.0 if stacked else 16 + max([text_width(shorten(visible(label), 30), bold=True) for label, _ in rows], default=0.0)
    pitch, parts = (52.0 if stacked else 38.0), []
    for index, (label, amounts) in enumerate(rows):
        y = index * pitch
        parts.append(text(shorten(visible(label), 30), 0, y + (14 if stacked else 20), class_="label"))
        parts += _segments(label, amounts, kinds, left, y + (20 if stacked else 4), width - left)
    return document(width, pitch * len(rows), *parts, ident=ident, title=title, description=description)


def effect_bar(value: float | None, limit: float, *, width: float = 120.0) -> str:
    """A bar to the right of the middle for a positive effect, to the left for a negative one."""
    middle, height = width / 2, 12.0
    parts = [tag("line", class_="axis", x1=middle, x2=middle, y1=0, y2=height)]
    if value is not None and limit > 0:
        length = min(abs(value) / limit, 1.0) * (middle - 2)
        x = middle if value >= 0 else middle - length
        parts.append(tag("rect", class_="positive" if value >= 0 else "negative", x=x, y=1, width=length, height=height - 2))
    size = {"width": width, "height": height, "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    return tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", class_="figure", aria_hidden="true", **size)


def key_mark(series: int, *, hollow: bool = False) -> str:
    """The mark of a series alone, for a legend."""
    mark = shape(series, 8, 8, class_="hollow" if hollow else "")
    return tag("svg", mark, xmlns="http://www.w3.org/2000/svg", class_="figure key", width=16, height=16, aria_hidden="true")


def key_square(kind: int) -> str:
    """The color of a bar's part alone, for a legend."""
    square = tag("rect", class_=f"k{kind % 8}", x=2, y=2, width=12, height=12, rx=2)
    return tag("svg", square, xmlns="http://www.w3.org/2000/svg", class_="figure key", width=16, height=16, aria_hidden="true")


def color_key(limit: float) -> str:
    """The color scale of the heatmaps: from minus `limit` over 0 to `limit`."""
    steps, parts, size = 20, [], 9.0
    for step in range(-steps, steps + 1):
        name, x = ("positive" if step >= 0 else "negative"), (step + steps) * size / 2 + 30
        parts.append(tag("rect", class_=name, fill_opacity=f"{abs(step) / steps:.2f}", x=x, y=2, width=size / 2, height=12))
    span = (2 * steps + 1) * size / 2
    frame = tag("rect", class_="frame", x=30, y=2, width=span, height=12)
    at = ((30.0, MINUS + f"{limit:.2f}"), (30 + span / 2, "0"), (30 + span, f"+{limit:.2f}"))
    labels = [text(label, x, 28, class_="small", text_anchor="middle") for x, label in at]
    told = f"From orange at {format_effect(-limit)} over no color at 0 to blue at {format_effect(limit)}."
    return document(span + 60, 32, *parts, frame, *labels, ident="color-key", title="Color scale", description=told)


def _grid(axis: LogAxis, top: float, bottom: float, label: str) -> str:
    lines = [tag("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom) for x, _ in axis.ticks()]
    lines.append(tag("line", class_="axis", x1=axis.left, x2=axis.right, y1=bottom, y2=bottom))
    lines += [text(name, x, bottom + 17, class_="small", text_anchor="middle") for x, name in axis.ticks()]
    lines.append(text(label, (axis.left + axis.right) / 2, bottom + 36, class_="small", text_anchor="middle"))
    return "".join(lines)


def _marks(row: Row, axis: LogAxis, top: float) -> str:
    parts: list[str] = []
    for mark in row.marks:
        x, y = axis.at(mark.value), top + mark.lane * _LANE
        if mark.lo is not None and mark.hi is not None:
            low, high = axis.at(mark.lo), axis.at(mark.hi)
            parts.append(tag("line", class_=f"whisker {series_class(mark.series)}", x1=low, x2=high, y1=y, y2=y))
        parts.append(shape(mark.series, x, y, hover(mark.told), class_="hollow" if mark.hollow else ""))
    for lane, remark in row.remarks:
        fitting = shorten(visible(remark), int((axis.right - axis.left - 8) / CHARACTER))
        parts.append(text(fitting, axis.left + 8, top + lane * _LANE + 4, class_="remark"))
    return "".join(parts)


def _segments(label: str, amounts: Sequence[float], kinds: Sequence[str], x: float, y: float, width: float) -> list[str]:
    total, parts = sum(amounts), []
    if total <= 0:
        return [text("no edges measured", x, y + 16, class_="remark")]
    for index, (kind, amount) in enumerate(zip(kinds, amounts, strict=True)):
        length = width * amount / total
        percent = f"{100 * amount / total:.0f} %"
        told = hover(f"{visible(label)}, {visible(kind)}: {amount:,.0f} edges, {percent}")
        parts.append(tag("rect", told, class_=f"segment k{index % 8}", x=x, y=y, width=length, height=24))
        if length > 42:
            parts.append(text(percent, x + length / 2, y + 16, class_=f"on-k{index % 8}", text_anchor="middle"))
        x += length
    return parts
