"""The nested content of `metrics.json`, read with care: parts may be missing, and a part of the wrong type is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.errors import DataError
from sparse_lens.report.glossary import COLUMNS, MEASURES, MODEL_MEASURES, MODELS, ordered, term
from sparse_lens.report.numbers import Reading, read_number
from sparse_lens.report.strings import visible

SCHEMA = 1


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise `DataError` where `metrics` is not the content of a comparison's `metrics.json`."""
    if not isinstance(metrics, Mapping):
        raise DataError(f"these metrics are a {type(metrics).__name__}, not the object that `sparse-lens compare` writes")
    if metrics.get("schema") != SCHEMA:
        raise DataError(
            f"these metrics have schema {visible(metrics.get('schema'))}, this version reports on schema {SCHEMA}; "
            "make them again with `sparse-lens compare`"
        )
    for model in part(metrics, "models"):
        part(metrics, "models", model)
    for task in part(metrics, "tasks"):
        for column in part(metrics, "tasks", task, "columns"):
            part(metrics, "tasks", task, "columns", column, "edges_by_kind")
    for model in part(metrics, "patching", "models"):
        part(metrics, "patching", "models", model)
    part(metrics, "summary")


def part(content: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The mapping at `path`, empty where it is missing; `DataError` where something else stands there."""
    for depth, name in enumerate(path, start=1):
        found = content.get(name)
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            place = visible(".".join(path[:depth]))
            kind = type(found).__name__
            raise DataError(f"{place} in the metrics is a {kind}, not an object of named values; make the file again")
        content = found
    return content


def sequence(content: Mapping[str, Any], name: str) -> list[Any]:
    """The list at `name`, empty where it is missing; `DataError` where something else stands there."""
    found = content.get(name)
    if found is None:
        return []
    if not isinstance(found, (list, tuple)):
        raise DataError(f"{visible(name)} in the metrics is a {type(found).__name__}, not a list; make the file again")
    return list(found)


def column_names(metrics: Mapping[str, Any]) -> list[str]:
    """Every column of any task, in the order of the report."""
    found = {column: None for task in part(metrics, "tasks") for column in part(metrics, "tasks", task, "columns")}
    return ordered(COLUMNS, list(found))


def model_names(models: Mapping[str, Any]) -> list[str]:
    """The models in the order of the report."""
    return ordered(MODELS, list(models))


def model_measures(models: Mapping[str, Any]) -> list[str]:
    """The measures that any of the models has, known ones first."""
    found = {name: None for model in models for name, raw in part(models, model).items() if isinstance(raw, Mapping)}
    return ordered(MODEL_MEASURES, list(found))


def column_label(name: str) -> str:
    """A column's name for print."""
    return visible(term(COLUMNS, name).label)


def gate_reason(task: Mapping[str, Any]) -> str | None:
    """Why `task` is not measurable at all; None where it is."""
    gate = task.get("measurable", True)
    if isinstance(gate, Mapping):
        measured = read_number(gate)
        return measured.reason if measured.value in (None, 0.0) else None
    failed = ", ".join(column_label(str(name)) for name in sequence(task, "failed_gate"))
    return None if gate else visible(task.get("reason") or "the accuracy gate is failed by " + (failed or "a model"))


def measure(column: Mapping[str, Any], name: str) -> Reading:
    """One measure of one column of one task."""
    return read_number(column.get(name))


def nonsense_unreached(column: Mapping[str, Any]) -> str | None:
    """What to say where the nonsense search missed its target loss; None where it reached it or was not done."""
    if column.get("nonsense_reached") is not False:
        return None
    best = measure(column, "nonsense_loss")
    return "target not reached" + ("" if best.value is None else f", best loss {best.text('loss')}")


def cell_text(column: Mapping[str, Any], name: str) -> tuple[str, str | None]:
    """The printed form of a measure, and the reason where it has none; a nonsense ratio whose search fell short says so."""
    found = measure(column, name)
    if name == "nonsense_ratio" and found.value is None and (short := nonsense_unreached(column)):
        return found.text(), short
    return found.text(term(MEASURES, name).kind), found.reason if found.value is None else None
