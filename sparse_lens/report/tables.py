"""The comparison as tables: for the terminal (rich) and as Markdown. Cells are `Text`, so no string in them is markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sparse_lens.report.contents import (
    cell_text,
    column_label,
    column_names,
    gate_reason,
    model_measures,
    model_names,
    part,
    sequence,
)
from sparse_lens.report.glossary import COLUMNS, MEASURES, MODEL_MEASURES, MODELS, SUMMARY, ordered, term
from sparse_lens.report.numbers import DASH, NOT_MEASURABLE, format_effect, read_number
from sparse_lens.report.strings import markdown_cell, token_label, visible

_SHOWN = ("accuracy", "full_loss", "circuit_loss", "nodes", "edges", "sufficiency", "necessity", "nonsense_ratio")
_MARKS = "\N{SUPERSCRIPT ONE}\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT THREE}" + "".join(chr(0x2074 + i) for i in range(6))


class Notes:
    """Reasons numbered in the order they are first met."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def number(self, reason: str) -> int:
        """The number of `reason`, from 1."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1

    def mark(self, reason: str) -> str:
        """The number of `reason` in superscript."""
        number = self.number(reason)
        return _MARKS[number - 1] if number <= len(_MARKS) else f"({number})"

    def lines(self) -> list[str]:
        """What stands under the table."""
        return [f"{self.mark(reason)} {NOT_MEASURABLE}: {reason}" for reason in self.reasons]


def comparison_table(metrics: Mapping[str, Any]) -> Table:
    """Per task and column: losses, circuit size, trust tests; the ratios and the reasons for missing numbers under it."""
    table = _table("Circuits at one target loss per task")
    table.add_column("task, column", overflow="fold")
    for name in _SHOWN:
        table.add_column(MEASURES[name].short, justify="right", no_wrap=True)
    notes = Notes()
    for task, column, *cells in _comparison_rows(metrics, notes):
        if task:
            if table.rows:
                table.add_section()
            table.add_row(Text(task, style="bold"))
        table.add_row(Text(f"  {column}"), *(Text(cell) for cell in cells))
    table.caption = Text("\n".join([*summary_lines(metrics), *notes.lines()]), justify="left", style="not italic")
    return table


def models_table(metrics: Mapping[str, Any]) -> Table:
    """Each model's pretraining loss and size."""
    models, notes = part(metrics, "models"), Notes()
    names = model_measures(models)
    table = _table("Models")
    table.add_column("model", overflow="fold")
    table.add_column("checkpoint", overflow="fold")
    for name in names:
        table.add_column(term(MODEL_MEASURES, name).short, justify="right")
    for model in model_names(models):
        content = part(models, model)
        cells = [_noted(content.get(name), term(MODEL_MEASURES, name).kind, notes) for name in names]
        label = visible(term(MODELS, model).label)
        table.add_row(Text(label), Text(visible(content.get("name", ""))), *(Text(cell) for cell in cells))
    table.caption = Text("\n".join(notes.lines()), justify="left") if notes.reasons else None
    return table


def patching_table(patching: Mapping[str, Any], *, most: int = 8) -> Table:
    """The strongest patching effects of each model; `patching` is the part of that name in the metrics, or a `patch` result."""
    table = _table(Text(f"Activation patching, task {visible(patching.get('task', DASH))}"))
    for name in ("model", "component", "pos", "token", "effect"):
        table.add_column(name, justify="right" if name in ("pos", "effect") else "left", overflow="fold")
    models = part(patching, "models")
    for model in model_names(models):
        if table.rows:
            table.add_section()
        for index, row in enumerate(strongest_rows(part(models, model), most)):
            label = visible(term(MODELS, model).label) if index == 0 else ""
            table.add_row(Text(label, style="bold"), *(Text(cell) for cell in patching_cells(row)))
    return table


def markdown_table(metrics: Mapping[str, Any]) -> str:
    """The comparison as a GitHub-flavored Markdown table, with the ratios and the reasons under it."""
    notes = Notes()
    head = ["Task", "Column", *(MEASURES[name].label for name in _SHOWN)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(_SHOWN)]
    for cells in _comparison_rows(metrics, notes):
        lines.append("| " + " | ".join(markdown_cell(cell) for cell in cells) + " |")
    lines += ["", *(f"- {markdown_cell(line)}" for line in (*summary_lines(metrics), *notes.lines()))]
    return "\n".join(lines) + "\n"


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The headline numbers, one sentence each."""
    lines, summary = [], part(metrics, "summary")
    for name in ordered(SUMMARY, list(summary)):
        found, known = read_number(summary[name]), term(SUMMARY, name)
        interval = found.interval(known.kind)
        value = found.text(known.kind) + (f" (95 % interval {interval})" if interval else "")
        lines.append(f"{visible(known.label)}: " + (value if found.value is not None else f"{NOT_MEASURABLE}, {found.reason}"))
    return lines


def strongest_rows(model: Mapping[str, Any], most: int) -> list[Mapping[str, Any]]:
    """The `most` patching rows of largest absolute effect."""
    rows = [row for row in sequence(model, "rows") if isinstance(row, Mapping)]
    return sorted(rows, key=lambda row: -abs(read_number(row.get("effect")).value or 0.0))[:most]


def patching_cells(row: Mapping[str, Any]) -> list[str]:
    """Component, position, token and effect of a patching row."""
    effect = read_number(row.get("effect")).value
    place = [visible(DASH if row.get(name) is None else row[name]) for name in ("component", "position")]
    return [*place, token_label(row.get("token") or ""), NOT_MEASURABLE if effect is None else format_effect(effect)]


def _comparison_rows(metrics: Mapping[str, Any], notes: Notes) -> list[list[str]]:
    rows: list[list[str]] = []
    for task, content in part(metrics, "tasks").items():
        columns, gate = part(metrics, "tasks", task, "columns"), gate_reason(content)
        if gate is not None:
            rows.append([visible(task), "all", *[DASH + notes.mark(gate)] * len(_SHOWN)])
            continue
        for index, column in enumerate(name for name in column_names(metrics) if name in columns):
            name = column_label(column) if column not in COLUMNS else COLUMNS[column].short
            cells = [_compared(columns[column], measure, notes) for measure in _SHOWN]
            rows.append([visible(task) if index == 0 else "", name, *cells])
    return rows


def _compared(column: Mapping[str, Any], name: str, notes: Notes) -> str:
    text, reason = cell_text(column, name)
    return text + ("" if reason is None else notes.mark(reason))


def _noted(raw: Any, kind: str, notes: Notes) -> str:
    found = read_number(raw)
    return found.text(kind) + ("" if found.value is not None else notes.mark(found.reason))


def _table(title: str | Text) -> Table:
    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
