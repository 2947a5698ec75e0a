"""The forest plot of the claims: every difference beside those of its controls, on one axis, coloured by its verdict.

Claims have units of their own, so every row is divided by the half-width of its widest 95 % interval, of the difference or of a
control.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparse_lens.report.figures import WIDE
from sparse_lens.report.numbers import MINUS, Reading, read_number
from sparse_lens.report.scales import Scale
from sparse_lens.report.strings import shorten, visible
from sparse_lens.report.svg import CHARACTER, document, hover, series_class, shape, tag, text, text_width
from sparse_lens.report.verdicts.tables import shown

SERIES = {"supports": 3, "contradicts": 2, "indistinguishable": 0}
"""Colour and shape of a verdict; what is not measurable is named, not drawn."""

CAPTION = "sparse less dense, in half-widths of the widest 95\N{NO-BREAK SPACE}% interval of the row"
FILLED = "Filled: the models. Hollow: controls."
_CONTROL = 1

_STACKED = 560.0
"""Pixels below which names stand above their marks."""

_LINE = 17.0


@dataclass(frozen=True)
class Lane:
    """One number of a row, divided as the row is: the difference, whose name is the verdict, or a control's."""

    name: str
    reading: Reading
    told: str
    series: int
    hollow: bool = False


@dataclass(frozen=True)
class ForestRow:
    """One claim: its label, the direction that it claims, and its lanes, the difference first."""

    label: str
    claimed: str
    lanes: tuple[Lane, ...]


@dataclass(frozen=True)
class _Frame:
    """Where things stand: `left` and `right` are the ends of the axis, `lane` the height of a lane; pixels."""

    width: float
    left: float
    right: float
    stacked: bool

    @property
    def lane(self) -> float:
        return 30.0 if self.stacked else _LINE

    def height(self, row: ForestRow) -> float:
        """Pixels of a row; beside its marks there are two lines at least."""
        return self.lane * len(row.lanes) + 14 if self.stacked else _LINE * max(2, len(row.lanes)) + 8


def forest_rows(content: Mapping[str, Any]) -> list[ForestRow]:
    """The rows of the content of `claims.json`: its claims that are judged by a difference, in their order."""
    return [_row(claim) for claim in content["claims"] if _drawn(claim)]


def forest_plot(content: Mapping[str, Any], *, ident: str = "forest", width: float = WIDE) -> str:
    """The plot as SVG of `width` pixels; empty where no claim is judged by a difference. `ident` is unique on its page."""
    rows = forest_rows(content)
    if not rows:
        return ""
    frame = _frame(rows, width)
    ends = [end for row in rows for lane in row.lanes for end in _ends(lane.reading)]
    most = max(abs(end) for end in ends) or 1.0
    axis = Scale.over([-most, most], frame.left, frame.right)
    bottom = 6 + sum(frame.height(row) for row in rows)
    parts, y = [_grid(axis, bottom)], 6.0
    for row in rows:
        parts += _row_parts(row, frame, axis, y)
        y += frame.height(row)
    parts.append(tag("line", class_="rule", x1=0, x2=width, y1=bottom, y2=bottom))
    below = [*_wrapped(f"{CAPTION[:1].upper()}{CAPTION[1:]}. {FILLED}", width), *_without(content, width)]
    parts += [text("dense larger", frame.left, bottom + 32, class_="small")]
    parts += [text("sparse larger", frame.right, bottom + 32, class_="small", text_anchor="end")]
    parts += [text(line, 0, bottom + 54 + _LINE * number, class_="small") for number, line in enumerate(below)]
    told = f"{CAPTION}. " + " ".join(map(_spoken, rows)) + " " + " ".join(below[1:])
    return document(width, bottom + 46 + _LINE * len(below), *parts, ident=ident, title="The claims", description=told)


def _drawn(claim: Mapping[str, Any]) -> bool:
    return claim["verdict"] in SERIES and read_number(claim["difference"]).value is not None


def _row(claim: Mapping[str, Any]) -> ForestRow:
    raw = {claim["verdict"]: claim["difference"], **{name.replace("_", " "): of for name, of in claim["controls"].items()}}
    readings = [read_number(each) for each in raw.values()]
    unit = _unit(readings)
    lanes = tuple(
        Lane(
            visible(name),
            _divided(reading, unit),
            f"{claim['id']}, {name if place else 'difference'}: {shown(each)} ({claim['unit'] or 'no unit'})",
            _CONTROL if place else SERIES[claim["verdict"]],
            hollow=place > 0,
        )
        for place, ((name, each), reading) in enumerate(zip(raw.items(), readings, strict=True))
    )
    held = "" if claim.get("against") is None else f" against {claim['against']:g}"
    claimed = "claimed \N{RIGHTWARDS ARROW}" if claim["larger"] == "sparse" else "\N{LEFTWARDS ARROW} claimed"
    return ForestRow(visible(claim["id"]) + held, claimed, lanes)


def _unit(readings: Sequence[Reading]) -> float:
    """Half-width of the widest interval; where there is none, the largest size of a number, or 1."""
    widths = [(each.hi - each.lo) / 2 for each in readings if each.lo is not None and each.hi is not None]
    return max(widths, default=0.0) or max(abs(each.value or 0.0) for each in readings) or 1.0


def _divided(reading: Reading, unit: float) -> Reading:
    value, lo, hi = (None if each is None else each / unit for each in (reading.value, reading.lo, reading.hi))
    return Reading(value, lo, hi)


def _ends(reading: Reading) -> list[float]:
    return [end for end in (reading.value, reading.lo, reading.hi) if end is not None]


def _frame(rows: Sequence[ForestRow], width: float) -> _Frame:
    if width < _STACKED:
        return _Frame(width, 14, width - 14, stacked=True)
    names = max(text_width(lane.name, bold=True) for row in rows for lane in row.lanes)
    labels = max(max(text_width(shorten(row.label, 24), bold=True), text_width(row.claimed)) for row in rows)
    return _Frame(width, labels + 16, width - names - 16, stacked=False)


def _grid(axis: Scale, bottom: float) -> str:
    middle = axis.at(0)
    lines = [tag("line", class_="grid", x1=x, x2=x, y1=0, y2=bottom) for x, _ in axis.ticks()]
    lines.append(tag("line", class_="axis", x1=middle, x2=middle, y1=0, y2=bottom))
    ticks = [(x, label.replace("-", MINUS)) for x, label in axis.ticks()]
    return "".join([*lines, *(text(label, x, bottom + 16, class_="small", text_anchor="middle") for x, label in ticks)])


def _row_parts(row: ForestRow, frame: _Frame, axis: Scale, y: float) -> list[str]:
    label = shorten(row.label, 24)
    parts = [tag("line", class_="rule", x1=0, x2=frame.width, y1=y, y2=y), text(label, 0, y + 17, class_="label")]
    if frame.stacked:
        parts.append(text(row.claimed, text_width(label, bold=True) + 20, y + 17, class_="small"))
    else:
        parts.append(text(row.claimed, 0, y + 33, class_="small"))
    for place, lane in enumerate(row.lanes):
        at = y + 12 + frame.lane * place + (20 if frame.stacked else 0)
        up = at - (15 if frame.stacked else -4)
        kind = "small" if lane.hollow else "value"
        if frame.stacked and lane.hollow:
            parts.append(text(lane.name, 0, up + 3, class_=kind))
        else:
            parts.append(text(lane.name, frame.width, up, class_=kind, text_anchor="end"))
        parts.append(_mark(lane, axis, at))
    return parts


def _mark(lane: Lane, axis: Scale, y: float) -> str:
    value, lo, hi = lane.reading.value, lane.reading.lo, lane.reading.hi
    if value is None:
        return text("no number", axis.at(0) + 8, y + 4, class_="remark")
    line = ""
    if lo is not None and hi is not None:
        line = tag("line", class_=f"whisker {series_class(lane.series)}", x1=axis.at(lo), x2=axis.at(hi), y1=y, y2=y)
    size = 4.0 if lane.hollow else 5.0
    return line + shape(lane.series, axis.at(value), y, hover(lane.told), class_="hollow" if lane.hollow else "", size=size)


def _without(content: Mapping[str, Any], width: float) -> list[str]:
    """What is not drawn, in words: claims that are not measurable, and those that are judged without a difference."""
    claims = [claim for claim in content["claims"] if not _drawn(claim)]
    missing = [claim["id"] for claim in claims if claim["verdict"] not in SERIES]
    other = [f"{claim['id']} ({claim['verdict']})" for claim in claims if claim["verdict"] in SERIES]
    told = [("Not measurable", missing), ("Judged without a difference", other)]
    return [line for name, ids in told if ids for line in _wrapped(f"{name}: {', '.join(map(visible, ids))}.", width)]


def _wrapped(told: str, width: float) -> list[str]:
    return textwrap.wrap(told, int(width / CHARACTER))


def _spoken(row: ForestRow) -> str:
    """One row in words, for those who cannot see the figure."""
    return f"{row.label}, {row.lanes[0].name}: " + "; ".join(visible(lane.told) for lane in row.lanes) + "."
