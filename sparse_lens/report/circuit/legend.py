"""The legend below a drawn circuit, inside the figure: it has to stand alone in a notebook and in a file."""

from __future__ import annotations

from collections.abc import Callable

from sparse_lens.circuits.cards.connections import Connections
from sparse_lens.report.circuit.layout import Layout
from sparse_lens.report.circuit.words import signed
from sparse_lens.report.svg import tag, text, text_width

_LINE, _SIGN = 20.0, 26.0

Sign = Callable[[float, float], str]
"""Draws the sign of an entry with its left edge and middle at (x, y)."""


def drawing_legend(connections: Connections, limit: float, left_out: int, layout: Layout, *, searched: bool) -> tuple[str, float]:
    """The legend's SVG, below `layout`, and its height."""
    entries: list[tuple[Sign, str]] = []
    if limit > 0:
        entries.append((_pill("positive"), f"node whose ablation raises the task loss (full color: {signed(limit, 2)} nats)"))
        entries.append((_pill("negative"), "node whose ablation lowers it"))
    else:
        entries.append((_pill(""), "node"))
    if connections.edges:
        wide = "weight \N{MULTIPLICATION SIGN} change of its input" if connections.edges[0].effect is not None else "weight"
        entries.append((_stroke("edge positive", 3), f"edge of positive weight, as wide as its {wide}"))
        entries.append((_stroke("edge negative", 3), "edge of negative weight"))
    if layout.lanes:
        entries.append((_stroke("lane", 1.5), "residual channel: what is written above is read below"))
    if layout.boxes:
        entries.append((_frame, "attention head: q and k choose how v is mixed"))
    if connections.edges:
        entries.append((_dot, "channel that is no node"))
    notes = [] if searched or connections.reason else ["all weights between the nodes: no edges were searched"]
    notes += [f"no edges: {connections.reason}"] if connections.reason else []
    notes += [f"the {left_out:,} smallest of {connections.total:,} edges are not drawn"] if left_out else []
    return _set(entries, notes, layout.height + 14, max(layout.width, 720.0))


def _set(entries: list[tuple[Sign, str]], notes: list[str], top: float, width: float) -> tuple[str, float]:
    """Entries in lines of at most `width`, then the notes."""
    parts, x, y = [], 0.0, top
    for sign, label in entries:
        taken = _SIGN + text_width(label) + 16
        if x > 0 and x + taken > width:
            x, y = 0.0, y + _LINE
        parts += [sign(x, y), text(label, x + _SIGN, y + 4, class_="small")]
        x += taken
    for note in notes:
        y += _LINE
        parts.append(text(note, 0, y + 4, class_="small"))
    return "".join(parts), y - top + 28


def _pill(name: str) -> Sign:
    def draw(x: float, y: float) -> str:
        under = tag("rect", class_="node", x=x, y=y - 6, width=20, height=12, rx=4)
        return under + tag("rect", class_=name, x=x, y=y - 6, width=20, height=12, rx=4) if name else under

    return draw


def _stroke(name: str, width: float) -> Sign:
    return lambda x, y: tag("path", class_=name, d=f"M{x:.1f} {y:.1f}H{x + 20:.1f}", stroke_width=width)


def _frame(x: float, y: float) -> str:
    return tag("rect", class_="head", x=x, y=y - 7, width=20, height=14, rx=4)


def _dot(x: float, y: float) -> str:
    return tag("circle", class_="end", cx=x + 10, cy=y, r=4)
