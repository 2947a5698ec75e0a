"""What the template of the comparison page shows, worked out from the metrics: plain values, no markup but figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sparse_lens.report.contents import (
    cell_text,
    column_label,
    column_names,
    gate_reason,
    measure,
    model_measures,
    model_names,
    part,
    sequence,
)
from sparse_lens.report.full.view import full_view
from sparse_lens.report.glossary import COLUMNS, MEASURES, MODEL_MEASURES, MODELS, SUMMARY, Term, ordered, term
from sparse_lens.report.numbers import NOT_MEASURABLE, Reading, read_number
from sparse_lens.report.patching_view import patching_view
from sparse_lens.report.plots import kind_plot, nonsense_plot, size_plot
from sparse_lens.report.strings import script_json, token_label, visible
from sparse_lens.report.tables import Notes

_SHOWN = (
    "accuracy",
    "full_loss",
    "circuit_loss",
    "heldout_circuit_loss",
    "nodes",
    "edges",
    "sufficiency",
    "necessity",
    "nonsense_ratio",
)

_HEADLINES = ("edge_ratio_geomean", "node_ratio_geomean", "tasks_measurable")


def comparison_view(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Every variable of `index.html.jinja`."""
    notes, columns = Notes(), column_names(metrics)
    measures = [name for name in _SHOWN if name != "heldout_circuit_loss" or _any_held_out(metrics)]
    view = {
        "lede": {"tasks": len(part(metrics, "tasks")), "columns": [_named(COLUMNS, name) for name in columns]},
        "verdict": [visible(sentence) for sentence in sequence(metrics, "verdict")],
        "headlines": [_headline(metrics, name) for name in _HEADLINES],
        "further": [
            _headline(metrics, name) for name in ordered(SUMMARY, list(part(metrics, "summary"))) if name not in _HEADLINES
        ],
        "sizes": [{"label": MEASURES[name].label, **size_plot(metrics, name)} for name in ("edges", "nodes")],
        "nonsense": nonsense_plot(metrics),
        "legend": [(index, column_label(name)) for index, name in enumerate(columns)],
        "measures": [MEASURES[name] for name in measures],
        "tasks": [_task_view(metrics, task, measures, notes) for task in part(metrics, "tasks")],
        "kinds": _kinds_view(metrics, notes),
        "models": _models_view(metrics, notes),
        "patching": patching_view(part(metrics, "patching")),
        "full": full_view(part(metrics, "full")),
        "command": visible(metrics.get("command", "")),
        "versions": _pairs(part(metrics, "versions")),
        "effort": _pairs(part(metrics, "effort")),
        "data": script_json(metrics),
    }
    return view | {"notes": notes.reasons}


def _headline(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    found, known = read_number(part(metrics, "summary").get(name)), term(SUMMARY, name)
    details = []
    if interval := found.interval(known.kind):
        details.append(f"95 % interval {interval}")
    if name == "tasks_measurable":
        details.append(f"of {len(part(metrics, 'tasks'))} asked for")
    elif found.n and found.value is not None:
        details.append(f"{found.n} task{'' if found.n == 1 else 's'}")
    spans_one = known.kind == "ratio" and found.lo is not None and found.hi is not None and found.lo <= 1 <= found.hi
    return {
        "label": visible(known.label),
        "value": None if found.value is None else found.text(known.kind),
        "details": details,
        "reason": found.reason,
        "meaning": known.meaning,
        "warning": "The interval includes 1: no difference is shown." if spans_one else "",
    }


def _task_view(metrics: Mapping[str, Any], task: str, measures: list[str], notes: Notes) -> dict[str, Any]:
    content = part(metrics, "tasks", task)
    columns, gate = part(content, "columns"), gate_reason(content)
    shown = [name for name in column_names(metrics) if name in columns] if gate is None else []
    rows = [
        {
            "label": column_label(name),
            "series": column_names(metrics).index(name),
            "cells": [_measured(columns[name], measure, notes) for measure in measures],
        }
        for name in shown
    ]
    return {
        "name": visible(task),
        "target": read_number(content.get("target_loss")).text("loss"),
        "answers": [token_label(token) for token in sequence(content, "answers")],
        "gate": gate,
        "rows": rows,
    }


def _measured(column: Mapping[str, Any], name: str, notes: Notes) -> dict[str, Any]:
    text, reason = cell_text(column, name)
    interval = measure(column, name).interval(MEASURES[name].kind)
    return _cell(text, interval, reason, notes)


def _cell(text: str, interval: str, reason: str | None, notes: Notes) -> dict[str, Any]:
    note = None if reason is None else notes.number(reason)
    return {"text": NOT_MEASURABLE if note else text, "interval": interval, "reason": reason, "note": note}


def _reading_cell(found: Reading, kind: str, notes: Notes) -> dict[str, Any]:
    return _cell(found.text(kind), found.interval(kind), None if found.value is not None else found.reason, notes)


def _kinds_view(metrics: Mapping[str, Any], notes: Notes) -> dict[str, Any] | None:
    """The table of edges by kind, without the columns in which no kind was counted; None where none was counted at all."""
    tasks, names = part(metrics, "tasks"), column_names(metrics)
    counts = {(task, name): part(tasks, task, "columns", name, "edges_by_kind") for task in tasks for name in names}
    kinds = list({kind: None for counted in counts.values() for kind in counted})
    shown = [name for name in names if any(measure(counts[task, name], kind).value is not None for task in tasks for kind in kinds)]
    if not shown:
        return None
    groups = []
    for task in tasks:
        rows = [
            {
                "label": column_label(name),
                "series": names.index(name),
                "cells": [_reading_cell(measure(counts[task, name], kind), "count", notes) for kind in kinds],
            }
            for name in shown
            if counts[task, name]
        ]
        groups.append((visible(task), rows))
    return {
        "kinds": [visible(kind.replace("_", " ")) for kind in kinds],
        "groups": [(task, rows) for task, rows in groups if rows],
        "absent": [column_label(name) for name in names if name not in shown],
        "svg": kind_plot(metrics, kinds),
    }


def _models_view(metrics: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    models = part(metrics, "models")
    names = model_measures(models) or list(MODEL_MEASURES)
    rows = [
        {
            **_named(MODELS, model),
            "name": visible(part(models, model).get("name", "")),
            "cells": [
                _reading_cell(read_number(part(models, model).get(name)), term(MODEL_MEASURES, name).kind, notes) for name in names
            ],
        }
        for model in model_names(models)
    ]
    return {"measures": [term(MODEL_MEASURES, name) for name in names], "rows": rows}


def _named(terms: dict[str, Term], name: str) -> dict[str, Any]:
    known = term(terms, name)
    label = visible(known.label)
    return {"label": label, "spoken": label[:1].lower() + label[1:], "meaning": known.meaning}


def _any_held_out(metrics: Mapping[str, Any]) -> bool:
    tasks = part(metrics, "tasks")
    return any(
        "heldout_circuit_loss" in part(tasks, task, "columns", name) for task in tasks for name in part(tasks, task, "columns")
    )


def _pairs(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as pairs for print; lists and nested values as JSON."""
    return [
        (visible(str(name).replace("_", " ")), visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
        for name, value in content.items()
    ]
