"""The figures of the comparison page: which numbers stand in which row of which plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sparse_lens.report.contents import column_label, column_names, gate_reason, measure, nonsense_unreached, part
from sparse_lens.report.figures import NARROW, WIDE, Mark, Row, dot_plot, share_bars
from sparse_lens.report.glossary import MEASURES
from sparse_lens.report.numbers import NOT_MEASURABLE, Reading, format_number
from sparse_lens.report.strings import visible

_BASE, _AGAINST = "sparse_neurons", "dense_matched_neurons"


def size_plot(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Nodes or edges of each task's circuit in each column; columns without any are named, not drawn."""
    columns = column_names(metrics)
    tasks = {task: part(metrics, "tasks", task, "columns") for task in part(metrics, "tasks")}
    drawn = [column for column in columns if any(measure(part(tasks[t], column), name).value is not None for t in tasks)]
    rows = []
    for task, found in tasks.items():
        gate = gate_reason(part(metrics, "tasks", task))
        rows.append(
            _size_row(task, found, drawn, columns, name) if gate is None else Row(task, remarks=[(0, f"{NOT_MEASURABLE}: {gate}")])
        )
    label = MEASURES[name].label
    absent = [(column_label(column), _first_reason(tasks, column, name)) for column in columns if column not in drawn]
    told = f"{label} of the smallest circuit found, one row a task, one mark a column. " + " ".join(_spoken(row) for row in rows)
    lanes = max(1, len(drawn))
    draw = _drawer(
        rows,
        lanes=lanes,
        title=f"{label} per task",
        description=told,
        axis_label=f"{label.lower()} in the circuit (log scale)",
        note_label="matched / sparse" if any(row.note for row in rows) else "",
    )
    return {"svg": _both(draw, f"sizes-{name}"), "absent": absent, "drawn": [(columns.index(c), column_label(c)) for c in drawn]}


def nonsense_plot(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes of each column's circuits for real tasks beside those for a nonsense task."""
    columns, rows = column_names(metrics), []
    for series, column in enumerate(columns):
        found = [
            (visible(task), part(metrics, "tasks", task, "columns", column))
            for task in part(metrics, "tasks")
            if gate_reason(part(metrics, "tasks", task)) is None
        ]
        rows.append(_nonsense_row(column_label(column), series, [(task, content) for task, content in found if content]))
    told = "Nodes of the circuits for real tasks (filled marks) and for a nonsense task (hollow marks). " + " ".join(
        map(_spoken, rows)
    )
    draw = _drawer(
        rows,
        lanes=2,
        title="Nonsense control",
        description=told,
        axis_label="nodes in the circuit (log scale)",
        note_label="nonsense / real" if any(row.note for row in rows) else "",
    )
    return {"svg": _both(draw, "nonsense")}


def kind_plot(metrics: Mapping[str, Any], kinds: Sequence[str]) -> Markup:
    """The share of each kind of edge in each column's circuits, summed over the tasks where all kinds were counted."""
    rows = []
    for column in column_names(metrics):
        counted = [part(metrics, "tasks", task, "columns", column, "edges_by_kind") for task in part(metrics, "tasks")]
        amounts = [sum(measure(found, kind).value or 0.0 for found in counted) for kind in kinds]
        if sum(amounts) > 0:
            rows.append((column_label(column), amounts))

    def draw(ident: str, width: float) -> str:
        told = "Shares of the circuits' edges by kind, one bar a column; the table below has the counts."
        return share_bars(rows, kinds, ident=ident, title="Edges by kind", description=told, width=width)

    return _both(draw, "kinds") if rows else Markup("")


def _size_row(task: str, found: Mapping[str, Any], drawn: list[str], columns: list[str], name: str) -> Row:
    marks, remarks = [], []
    for lane, column in enumerate(drawn):
        number, label = measure(part(found, column), name), column_label(column)
        if number.value is None:
            remarks.append((lane, f"{label}: {NOT_MEASURABLE}"))
        else:
            marks.append(_mark(lane, columns.index(column), number, f"{task}, {label}"))
    base, against = (measure(part(found, column), name).value for column in (_BASE, _AGAINST))
    return Row(task, marks, remarks, format_number(against / base, "ratio") if base and against else "")


def _nonsense_row(label: str, series: int, found: list[tuple[str, Mapping[str, Any]]]) -> Row:
    marks = [
        _mark(0, series, number, f"{label}, {task}")
        for task, content in found
        if (number := measure(content, "nodes")).value is not None
    ]
    controls = {number for _, content in found if (number := measure(content, "nonsense_nodes")).value is not None}
    marks += [_mark(1, series, number, f"{label}, nonsense", hollow=True) for number in controls]
    short = sorted({remark for _, content in found if (remark := nonsense_unreached(content))})
    remark = f"nonsense: {short[0]}" if short else f"nonsense: {NOT_MEASURABLE}"
    ratios = [ratio for _, content in found if (ratio := measure(content, "nonsense_ratio").value) is not None]
    ends = [format_number(end, "ratio") for end in (min(ratios), max(ratios))] if ratios else []
    return Row(label, marks, [] if controls else [(1, remark)], " to ".join(dict.fromkeys(ends)))


def _mark(lane: int, series: int, number: Reading, place: str, *, hollow: bool = False) -> Mark:
    assert number.value is not None
    interval = number.interval("count")
    told = f"{place}: {number.text('count')}" + (f" (95 % interval {interval})" if interval else "")
    return Mark(lane, series, number.value, told, number.lo, number.hi, hollow)


def _spoken(row: Row) -> str:
    """One row in words, for those who cannot see the figure."""
    return "; ".join([*(mark.told for mark in row.marks), *(f"{row.label}, {remark}" for _, remark in row.remarks)]) + "."


def _first_reason(tasks: Mapping[str, Any], column: str, name: str) -> str:
    found = [measure(part(columns, column), name) for columns in tasks.values() if column in columns]
    return found[0].reason if found else "not recorded in this run"


def _drawer(rows: list[Row], **options: Any) -> Callable[[str, float], str]:
    return lambda ident, width: dot_plot(rows, ident=ident, width=width, **options)


def _both(draw: Callable[[str, float], str], ident: str) -> Markup:
    """A figure for wide windows and one for phones; the style sheet shows one of them."""
    wide, narrow = draw(f"{ident}-wide", WIDE), draw(f"{ident}-narrow", NARROW)
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')
