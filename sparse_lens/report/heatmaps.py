"""Heatmaps of patching effects as SVG text: white is no effect, blue restores the clean answer, orange pushes away from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparse_lens.report.numbers import NOT_MEASURABLE, format_effect
from sparse_lens.report.strings import shorten, visible
from sparse_lens.report.svg import document, hover, tag, text, text_width

Grid = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Axes:
    """The labels of a heatmap: a name and one label per row and column; `told` builds what hovering shows from two indices."""

    row_name: str
    column_name: str
    rows: Sequence[str]
    columns: Sequence[str]
    monospace_rows: bool = False


def heatmap(
    values: Grid,
    axes: Axes,
    *,
    limit: float,
    ident: str,
    title: str,
    description: str,
    most_width: float = 420.0,
    write: Callable[[float], str] = format_effect,
) -> str:
    """One cell a value, colored up to `limit` on both sides; the number is written in where it fits, as `write` has it."""
    rows = [shorten(visible(label), 16) for label in axes.rows]
    columns = max([len(row) for row in values], default=0)
    left = 10 + max([text_width(label) * (1.12 if axes.monospace_rows else 1) for label in rows], default=0.0)
    left = max(left, text_width(axes.row_name) + 10)
    cell = min(46.0, max(15.0, (most_width - left) / max(columns, 1)))
    pitch, top = 22.0, 40.0
    parts = [
        text(axes.column_name, left + 2, 14, class_="small"),
        text(axes.row_name, left - 8, 32, class_="small", text_anchor="end"),
    ]
    every = max(1, round(24 / cell))
    for index in range(0, columns, every):
        parts.append(text(axes.columns[index], left + (index + 0.5) * cell, 32, class_="small", text_anchor="middle"))
    for index, (label, row) in enumerate(zip(rows, values, strict=True)):
        y = top + index * pitch
        name = "token" if axes.monospace_rows else "small"
        parts.append(text(label, left - 8, y + 15, class_=name, text_anchor="end"))
        for column, value in enumerate(row):
            told = f"{axes.row_name} {axes.rows[index]}, {axes.column_name} {axes.columns[column]}"
            written = None if value is None else write(value)
            parts.append(_cell(value, written, left + column * cell, y, (cell, pitch), limit, told))
    frame = tag("rect", class_="frame", x=left, y=top, width=columns * cell, height=pitch * len(rows))
    height = top + pitch * len(rows) + 2
    return document(left + columns * cell + 2, height, *parts, frame, ident=ident, title=title, description=description)


def _cell(value: float | None, written: str | None, x: float, y: float, size: tuple[float, float], limit: float, told: str) -> str:
    width, height = size
    if value is None or written is None:
        title = hover(f"{told}: {NOT_MEASURABLE}")
        return tag("rect", title, class_="missing", x=x, y=y, width=width, height=height)
    strength = min(abs(value) / limit, 1.0) if limit > 0 else 0.0
    title = hover(f"{told}: {written}")
    under = tag("rect", title, class_="blank", x=x, y=y, width=width, height=height)
    name = "positive" if value >= 0 else "negative"
    over = tag("rect", class_=f"{name} through", fill_opacity=f"{strength:.3f}", x=x, y=y, width=width, height=height)
    if width < 38:
        return under + over
    ink = "cell strong" if strength > 0.7 else "cell"
    return under + over + text(written, x + width / 2, y + height / 2 + 4, class_=f"{ink} through", text_anchor="middle")
