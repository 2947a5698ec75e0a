"""The tables for the terminal and Markdown show the numbers of the metrics, and strings are never markup."""

# ruff: noqa: RUF001 - the signs of the printed form are meant

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_lens.report import comparison_table, markdown_table, models_table, patching_table
from sparse_lens.report.numbers import format_number

COLUMNS = {"sparse": "sparse_neurons", "dense": "dense_neurons", "matched": "dense_matched_neurons", "SAE": "dense_sae"}


def printed(table: Table, width: int = 100) -> str:
    out = StringIO()
    Console(file=out, width=width, color_system=None, highlight=False).print(table)
    return out.getvalue()


def test_the_terminal_table_has_the_metrics_numbers(metrics: dict[str, Any]) -> None:
    lines, task = printed(comparison_table(metrics), 80).splitlines(), ""
    assert max(map(len, lines)) <= 80
    seen = 0
    for line in lines:
        task = line.strip() if line.strip() in metrics["tasks"] else task
        label, *cells = line.split() or [""]
        if label in COLUMNS and task and line.startswith("   "):
            values = metrics["tasks"][task]["columns"][COLUMNS[label]]
            assert cells[0] == format_number(values["accuracy"]["value"], "percent").removesuffix(" %")
            assert cells[4] == format_number(values["nodes"]["value"], "count")
            assert cells[5] == "—²" if label == "SAE" else cells[5] == format_number(values["edges"]["value"], "count")
            seen += 1
    assert seen == 20


def test_the_terminal_table_explains_what_is_missing(metrics: dict[str, Any]) -> None:
    text = printed(comparison_table(metrics))
    assert "¹ not measurable: target not reached, best loss 0.431" in text
    assert "² not measurable: edges of latents are not counted" in text
    assert "Edge ratio: 6.8× (95 % interval 5.2–8.9×)" in text


def test_the_markdown_table_has_the_metrics_numbers(metrics: dict[str, Any]) -> None:
    rows = [line.strip("|").split("|") for line in markdown_table(metrics).splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {10} and len(rows) == 2 + 20
    nodes = [format_number(c["nodes"]["value"], "count") for task in metrics["tasks"].values() for c in task["columns"].values()]
    assert [row[5].strip() for row in rows[2:]] == nodes


def test_a_task_that_fails_its_gate_has_one_row_without_numbers(metrics: dict[str, Any]) -> None:
    metrics["tasks"]["if_equals"]["measurable"] = {"value": None, "measurable": False, "reason": "71 % accuracy"}
    row = next(line for line in markdown_table(metrics).splitlines() if line.startswith("| if_equals"))
    assert row.count("—") == 8 and not any(character in row for character in "0456789")
    assert "not measurable: 71 % accuracy" in printed(comparison_table(metrics))


def test_strings_are_neither_markup_nor_control_codes(metrics: dict[str, Any]) -> None:
    hostile = "[red]x[/red]\x1b[31m|y"
    metrics["tasks"][hostile] = metrics["tasks"].pop("if_equals")
    metrics["models"]["sparse"]["name"] = hostile
    metrics["patching"]["task"] = hostile
    metrics["patching"]["models"]["sparse"]["rows"].append({"component": hostile, "position": 1, "token": "[/]", "effect": 9.0})
    for table in (comparison_table(metrics), models_table(metrics), patching_table(metrics["patching"])):
        text = printed(table, 200)
        assert "[red]x[/red]\\x1b[31m|y" in text and "\x1b" not in text
    assert "\\[red\\]x" in markdown_table(metrics)


def test_models_and_patching_tables(metrics: dict[str, Any]) -> None:
    models = printed(models_table(metrics))
    assert "6,422,528" in models and "61,440" in models and "2.143" in models
    patching = printed(patching_table(metrics["patching"], most=3))
    assert "head 1.3" in patching and "+0.91" in patching and patching.count("attention 1") == 3


def test_empty_metrics_make_empty_tables() -> None:
    for table in (comparison_table({}), models_table({}), patching_table({})):
        assert not table.rows and printed(table)
