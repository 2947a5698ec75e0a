"""From left to right: an order of lanes, heads and single marks in which edges are short.

By barycenters: everything moves to the mean place of what it is joined to, some rounds over; the round with the shortest edges
is taken.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from sparse_lens.circuits.cards.connections import Connection, Place
from sparse_lens.report.circuit.rows import Row

_ROUNDS = 16
LANES = "lanes"

Unit = Hashable
"""What is moved as one: a lane, a head, or a place."""


@dataclass(frozen=True)
class Order:
    """The units of every group from left to right (the lanes are one group, the heads of a layer, the rest of a row), the unit of
    every place, and the units that each unit and each place is joined to."""

    groups: Mapping[Hashable, Sequence[Unit]]
    unit: Mapping[Place, Unit]
    joined: Mapping[Unit, Sequence[Unit]]
    near: Mapping[Place, Sequence[Unit]]


def ordered(rows: Sequence[Row], edges: Sequence[Connection]) -> Order:
    """The best order met; the same for the same circuit."""
    groups, unit = _groups(rows)
    pairs = [(unit[edge.source], unit[edge.target]) for edge in edges]
    joined: dict[Unit, list[Unit]] = {}
    near: dict[Place, list[Unit]] = {}
    for edge, (first, second) in zip(edges, pairs, strict=True):
        for place, here, there in ((edge.source, first, second), (edge.target, second, first)):
            joined.setdefault(here, []).append(there)
            near.setdefault(place, []).append(there)
    at = _spread(groups)
    best, shortest = groups, _length(pairs, at)
    for turn in range(_ROUNDS):
        for name in groups if turn % 2 else reversed(list(groups)):
            ranked = sorted(groups[name], key=lambda unit: _mean([at[other] for other in joined.get(unit, ())], at[unit]))
            groups = {**groups, name: ranked}
            at |= _spread({name: ranked})
        if (length := _length(pairs, at)) < shortest:
            best, shortest = groups, length
    return Order(best, unit, joined, near)


def _groups(rows: Sequence[Row]) -> tuple[dict[Hashable, list[Unit]], dict[Place, Unit]]:
    groups: dict[Hashable, dict[Unit, None]] = {LANES: {}}
    unit: dict[Place, Unit] = {}
    for depth, row in enumerate(rows):
        for mark in row.marks:
            if mark.lane is not None:
                group, key = LANES, (LANES, mark.lane)
            elif mark.box is not None:
                group, key = ("heads", mark.box[0]), ("head", *mark.box)
            else:
                group, key = ("row", depth), mark.place
            groups.setdefault(group, {})[key] = None
            unit[mark.place] = key
    return {name: list(units) for name, units in groups.items()}, unit


def _spread(groups: Mapping[Hashable, Sequence[Unit]]) -> dict[Unit, float]:
    """Evenly over 0 to 1."""
    return {unit: (i + 0.5) / len(units) for units in groups.values() for i, unit in enumerate(units)}


def _length(pairs: Sequence[tuple[Unit, Unit]], at: Mapping[Unit, float]) -> float:
    return sum(abs(at[first] - at[second]) for first, second in pairs)


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
