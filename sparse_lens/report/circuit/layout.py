"""Where the marks of a drawn circuit stand: residual channels as vertical lanes, everything else between them.

A residual channel has one place across, at whatever depth it is written or read, so that the residual stream runs straight down.
Tokens, heads and neurons stand in the gaps between lanes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from sparse_lens.circuits.cards.connections import Connection, Place
from sparse_lens.report.circuit.order import LANES, Order, Unit, ordered
from sparse_lens.report.circuit.rows import Mark, Row, lanes_of

LEFT, TOP, ROW, MARK = 118.0, 14.0, 64.0, 17.0
"""Pixels of the left margin, the top margin, a row, and a mark's height."""

_TARGET, _MOST = 820.0, 2300.0
"""Width of the marks' area that is aimed at, and the most that is taken to keep labels."""

_NARROWEST, LABELLED, _WIDEST = 9.0, 32.0, 46.0
"""Pixels of a column: the least, the least with labels, the most."""


@dataclass(frozen=True)
class Box:
    """A head: its upper left corner, size and name."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Layout:
    """The middles of all marks, the rows' names and heights, the lanes (x, top, bottom), the heads' boxes, whether labels fit."""

    width: float
    height: float
    at: Mapping[Place, tuple[float, float]]
    rows: Sequence[tuple[str, float]]
    lanes: Sequence[tuple[float, float, float]]
    boxes: Sequence[Box]
    labelled: bool


def lay_out(rows: Sequence[Row], edges: Sequence[Connection]) -> Layout:
    """Places for all marks of `rows`; no two marks of a row overlap."""
    order = ordered(rows, edges)
    blocks = _blocks(rows, order)
    pitch = _pitch(blocks, len(order.groups[LANES]))
    y = {depth: TOP + MARK / 2 + depth * ROW for depth in range(len(rows))}
    columns = _most_columns(blocks, len(order.groups[LANES]), pitch)
    first = (columns - len(order.groups[LANES])) // 2
    middle: dict[Unit, float] = {lane: first + i + 0.5 for i, lane in enumerate(order.groups[LANES])}
    for group in blocks.values():
        wanted = [_mean(order.joined.get(unit, ()), middle, columns / 2) for unit in group]
        starts = _fitted(wanted, [_columns(block, pitch) for block in group.values()], columns + 1)
        for unit, block, start in zip(group, group.values(), starts, strict=True):
            middle[unit] = start + (_columns(block, pitch) - 1) / 2
    at = _places(rows, order, blocks, middle, pitch, y)
    lanes = [(at[marks[0][1].place][0], y[marks[0][0]], y[marks[-1][0]]) for marks in lanes_of(rows).values()]
    named = [(row.label, y[depth]) for depth, row in enumerate(rows)]
    height = (max(y.values()) if y else 0.0) + MARK / 2 + 10
    return Layout(LEFT + (columns + 1) * pitch + 4, height, at, named, lanes, _boxes(rows, at, pitch), pitch >= LABELLED)


Block = Mapping[int, Sequence[Mark]]
"""The marks of a unit by the depth of their row."""


def _blocks(rows: Sequence[Row], order: Order) -> dict[Hashable, dict[Unit, dict[int, list[Mark]]]]:
    """The marks of all units but lanes, group by group, in their order; groups further up first."""
    marks: dict[Unit, dict[int, list[Mark]]] = {}
    for depth, row in enumerate(rows):
        for mark in row.marks:
            marks.setdefault(order.unit[mark.place], {}).setdefault(depth, []).append(mark)
    return {name: {unit: marks[unit] for unit in units} for name, units in order.groups.items() if name != LANES}


def _columns(block: Block, pitch: float) -> int:
    """Columns that a unit takes: those of its widest row, and one more for the border of a head."""
    widest = max(sum(_taken(mark, pitch) for mark in marks) for marks in block.values())
    return widest + (1 if next(iter(block.values()))[0].box is not None else 0)


def _taken(mark: Mark, pitch: float) -> int:
    return max(1, math.ceil((mark.width + 2) / pitch)) if pitch >= LABELLED or mark.token else 1


def _most_columns(blocks: Mapping[Hashable, Mapping[Unit, Block]], n_lanes: int, pitch: float) -> int:
    return max([1, n_lanes, *(sum(_columns(block, pitch) for block in group.values()) for group in blocks.values())])


def _pitch(blocks: Mapping[Hashable, Mapping[Unit, Block]], n_lanes: int) -> float:
    """Pixels of a column: with labels where that does not get too wide."""
    if (wide := min(_WIDEST, _TARGET / _most_columns(blocks, n_lanes, LABELLED))) >= LABELLED:
        return wide
    if _most_columns(blocks, n_lanes, LABELLED) * LABELLED <= _MOST:
        return LABELLED
    return max(_NARROWEST, min(LABELLED - 1, _TARGET / _most_columns(blocks, n_lanes, _NARROWEST)))


def _mean(units: Sequence[Unit], middle: Mapping[Unit, float], otherwise: float) -> float:
    """Mean place of those units that have one already."""
    placed = [middle[unit] for unit in units if unit in middle]
    return sum(placed) / len(placed) if placed else otherwise


def _fitted(wanted: Sequence[float], widths: Sequence[int], columns: int) -> list[int]:
    """The first column of each unit: as near to where it is wanted as the order and the width allow."""
    starts, free = [], 0
    for middle, width in zip(wanted, widths, strict=True):
        starts.append(max(free, round(middle - (width - 1) / 2)))
        free = starts[-1] + width
    end = columns
    for i in reversed(range(len(starts))):
        starts[i] = min(starts[i], end - widths[i])
        end = starts[i]
    return starts


def _places(
    rows: Sequence[Row],
    order: Order,
    blocks: Mapping[Hashable, Mapping[Unit, Block]],
    middle: Mapping[Unit, float],
    pitch: float,
    y: Mapping[int, float],
) -> dict[Place, tuple[float, float]]:
    found = {
        mark.place: (LEFT + (middle[order.unit[mark.place]] + 0.5) * pitch, y[depth])
        for depth, row in enumerate(rows)
        for mark in row.marks
        if mark.lane is not None
    }
    for group in blocks.values():
        for unit, block in group.items():
            for depth, marks in block.items():
                x = LEFT + (middle[unit] + 0.5 - sum(_taken(mark, pitch) for mark in marks) / 2) * pitch
                for mark in sorted(marks, key=lambda mark: _mean(order.near.get(mark.place, ()), middle, middle[unit])):
                    taken = _taken(mark, pitch) * pitch
                    found[mark.place] = (x + taken / 2, y[depth])
                    x += taken
    return found


def _boxes(rows: Sequence[Row], at: Mapping[Place, tuple[float, float]], pitch: float) -> list[Box]:
    """A frame around the marks of each head."""
    heads: dict[tuple[int, int], list[Mark]] = {}
    for row in rows:
        for mark in row.marks:
            if mark.box is not None:
                heads.setdefault(mark.box, []).append(mark)
    boxes = []
    for (_, head), marks in heads.items():
        half = [(mark.width if pitch >= LABELLED else 8.0) / 2 + 4 for mark in marks]
        left = min(at[mark.place][0] - h for mark, h in zip(marks, half, strict=True))
        right = max(at[mark.place][0] + h for mark, h in zip(marks, half, strict=True))
        top, bottom = (end(at[mark.place][1] for mark in marks) for end in (min, max))
        below = bottom - top if bottom > top else 14  # room for the head's name
        boxes.append(Box(left, top - MARK / 2 - 5, right - left, below + MARK + 10, f"head {head}"))
    return boxes
