"""The part `full` of the metrics, read: columns, curves by task, rows as means over layers and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparse_lens.report.contents import part, sequence
from sparse_lens.report.full.words import MOST_NUMBERS, ROWS
from sparse_lens.report.numbers import Reading, read_number


@dataclass(frozen=True)
class Cell:
    """One number of a row: its mean over places (layers and seeds), least and largest over them, and the mean of the nulls.

    `missing` of the `places` have no number, and are not in the mean.
    """

    reading: Reading
    null: float | None
    places: int = 1
    missing: int = 0


def columns(full: Mapping[str, Any]) -> dict[str, bool]:
    """Every column, and whether it is a control; the base first."""
    return {name: bool(part(full, "columns", name).get("control")) for name in part(full, "columns")}


def row_numbers(full: Mapping[str, Any], row: str) -> list[str]:
    """The numbers that the table of a row shows."""
    found: dict[str, None] = {}
    for column in part(full, "rows", row).values():
        for results in column.values():
            found |= dict.fromkeys(results)
    shown = ROWS.get(row, (row, ()))[1]
    return [name for name in shown if name in found] or list(found)[:MOST_NUMBERS]


def row_cell(full: Mapping[str, Any], row: str, column: str, name: str) -> Cell:
    """One number of a row in a column."""
    places = part(full, "rows", row, column)
    found = [read_number(part(places, place).get(name)) for place in places]
    values = [reading for reading in found if reading.value is not None]
    if not values:
        return Cell(found[0] if found else Reading(), None)
    counts = (len(found), len(found) - len(values))
    nulls = [reading.null for reading in values if reading.null is not None]
    if len(values) == 1:
        one = values[0] if len(found) == 1 else replace(values[0], lo=None, hi=None)  # a bracket beside others is a range
        return Cell(one, nulls[0] if nulls else None, *counts)
    numbers = [reading.value for reading in values if reading.value is not None]
    mean = Reading(sum(numbers) / len(numbers), min(numbers), max(numbers), n=values[0].n, reason="")
    return Cell(mean, sum(nulls) / len(nulls) if nulls else None, *counts)


def frontier_cell(full: Mapping[str, Any], name: str, row: str, metric: str) -> Reading:
    """One number of a dictionary of the frontier: its mean over layers."""
    places = part(full, "frontier", name, "rows", row)
    values = [read_number(part(places, place).get(metric)).value for place in places]
    numbers = [value for value in values if value is not None]
    return Reading(sum(numbers) / len(numbers), reason="") if numbers and len(numbers) == len(values) else Reading()


def points(full: Mapping[str, Any], task: str, column: str) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    """Search seed, target (marked where the search missed it) and results of each point of a column's curves on a task."""
    curves = part(full, "curves", task).get(column) or []
    for curve in curves:
        for point in sequence(curve, "points"):
            missed = " (not reached)" if point.get("reached") is False else ""
            yield [str(int(curve.get("seed", 0))), f"{float(point['target']):g}{missed}"], part(point, "results")


def is_measured(full: Mapping[str, Any], metric: str) -> bool:
    """Whether any point of any curve has a number of this name."""
    measured = (points(full, task, column) for task in part(full, "curves") for column in columns(full))
    return any(read_number(results.get(metric)).value is not None for of in measured for _, results in of)


def mean_points(full: Mapping[str, Any], task: str, column: str, x: str, y: str) -> list[tuple[float, float, float, float, float]]:
    """By target: geometric means over seeds of `x` and `y`, and the least and largest `y`; targets without both are left out."""
    return sorted(_means_by_target(full, task, column, x, y).values())


def pooled_points(full: Mapping[str, Any], x: str, y: str) -> tuple[list[str], dict[str, list[tuple[float, float]]]]:
    """Geometric means over tasks of `mean_points`, target by target, and the tasks: those in which every column has points.

    A column without a point in any task, and every control, is not asked for its tasks; a target counts where all tasks have it.
    """
    found = {
        name: {task: means for task in part(full, "curves") if (means := _means_by_target(full, task, name, x, y))}
        for name in columns(full)
    }
    asked = [set(found[name]) for name, control in columns(full).items() if not control and found[name]]
    tasks = [task for task in part(full, "curves") if asked and all(task in own for own in asked)]
    pooled = {}
    for name, own in found.items():
        common = set.intersection(*(set(own.get(task, ())) for task in tasks)) if tasks else set()
        places = [[own[task][target] for task in tasks] for target in common]
        pooled[name] = sorted((_geometric([mean[0] for mean in at]), _geometric([mean[1] for mean in at])) for at in places)
    return tasks, pooled


def _means_by_target(
    full: Mapping[str, Any], task: str, column: str, x: str, y: str
) -> dict[float, tuple[float, float, float, float, float]]:
    by_target: dict[float, list[tuple[float, float]]] = {}
    for curve in part(full, "curves", task).get(column) or []:
        for point in sequence(curve, "points"):
            across, up = (read_number(part(point, "results").get(name)).value for name in (x, y))
            if across and up and across > 0 and up > 0:
                by_target.setdefault(float(point["target"]), []).append((across, up))
    found = {}
    for target, pairs in by_target.items():
        ups = [up for _, up in pairs]
        found[target] = (_geometric([a for a, _ in pairs]), _geometric(ups), min(ups), max(ups), float(len(pairs)))
    return found


def faithful_points(full: Mapping[str, Any], task: str, column: str) -> list[tuple[float, float]]:
    """Nodes, and the share of the divergence of everything ablated that the circuit does away with on held-out templates.

    By target, means over search seeds (of nodes geometric ones).
    """
    by_target: dict[float, list[tuple[float, float]]] = {}
    for curve in part(full, "curves", task).get(column) or []:
        for point in sequence(curve, "points"):
            nodes, kl = (read_number(part(point, "results").get(name)) for name in ("nodes", "kl_heldout"))
            if nodes.value and kl.value is not None and kl.null:
                by_target.setdefault(float(point["target"]), []).append((nodes.value, 1 - kl.value / kl.null))
    means = [(_geometric([nodes for nodes, _ in at]), sum(share for _, share in at) / len(at)) for at in by_target.values()]
    return sorted(means)


def grids(full: Mapping[str, Any], row: str, column: str) -> Iterator[tuple[str, list[str], list[str], list[list[float | None]]]]:
    """Place, labels and values of every map of a row in a column, the first seed of each layer; what is no grid is left out."""
    places = part(full, "maps", row).get(column)
    for place, content in places.items() if isinstance(places, Mapping) else ():
        rows, across = ([str(name) for name in sequence(content, side)] for side in ("rows", "columns"))
        values = [[read_number(value).value for value in line] for line in sequence(content, "values") if isinstance(line, list)]
        whole = len(values) == len(rows) and all(len(line) == len(across) for line in values)
        if values and whole and max(len(rows), len(across)) <= _MOST_LABELS and not str(place).endswith(_FURTHER_SEEDS):
            yield str(place), rows, across, values


_MOST_LABELS = 64
_FURTHER_SEEDS = tuple(f"seed {seed}" for seed in range(1, 10))


def _geometric(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product
