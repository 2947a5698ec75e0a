"""A claim's difference on a line of its own, with 0 and its controls: each claim has its own unit, and so its own scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.report.numbers import Reading, read_number
from sparse_lens.report.svg import document, hover, shape, tag, text
from sparse_lens.report.verdicts.tables import shown

_WIDTH, _HEIGHT, _EDGE = 240.0, 46.0, 12.0


def difference_line(claim: Mapping[str, Any]) -> str:
    """SVG of a claim's difference with its interval (filled) and of each control's (hollow); empty where there is none."""
    main = read_number(claim["difference"])
    if main.value is None:
        return ""
    controls = {name: read_number(raw) for name, raw in claim["controls"].items()}
    readings = [main, *(reading for reading in controls.values() if reading.value is not None)]
    most = max(abs(end) for reading in readings for end in (reading.value, reading.lo, reading.hi) if end is not None) or 1.0

    def at(value: float) -> float:
        return _WIDTH / 2 + value / most * (_WIDTH / 2 - _EDGE)

    parts = [tag("line", class_="axis", x1=_WIDTH / 2, x2=_WIDTH / 2, y1=4, y2=_HEIGHT - 16)]
    parts += [
        _mark(reading, at, 24.0, f"{name}: {shown(claim['controls'][name])}", hollow=True) for name, reading in controls.items()
    ]
    parts.append(_mark(main, at, 12.0, f"difference: {shown(claim['difference'])}", hollow=False))
    parts.append(text("dense larger", 0, _HEIGHT - 3, class_="small"))
    parts.append(text("sparse larger", _WIDTH, _HEIGHT - 3, class_="small", text_anchor="end"))
    told = f"{claim['id']}: sparse less dense {shown(claim['difference'])}"
    return document(_WIDTH, _HEIGHT, *parts, ident=f"claim-{claim['id']}", title=told, description=told)


def _mark(reading: Reading, at: Any, y: float, told: str, *, hollow: bool) -> str:
    if reading.value is None:
        return ""
    whisker = ""
    if reading.lo is not None and reading.hi is not None:
        whisker = tag("line", class_="whisker", x1=at(reading.lo), x2=at(reading.hi), y1=y, y2=y)
    kind = "hollow" if hollow else ""
    mark = shape(0, at(reading.value), y, hover(told), class_=kind, size=4.0 if hollow else 5.0)
    return tag("g", whisker, mark, class_="s1" if hollow else "s0")
