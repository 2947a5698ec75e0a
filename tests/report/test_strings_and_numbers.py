"""Foreign strings are harmless, numbers are printed one way, and what is missing is never a zero."""

# ruff: noqa: RUF001 - the signs of the printed form are meant

from __future__ import annotations

import json

import pytest

from sparse_lens.report.numbers import Reading, format_effect, format_number, format_tick, read_number
from sparse_lens.report.strings import csv_cell, markdown_cell, script_json, shorten, token_label, visible
from sparse_lens.results import exact, not_measurable


@pytest.mark.parametrize(
    ("value", "kind", "printed"),
    [
        (12345, "count", "12,345"),
        (62.5, "count", "62.5"),
        (0.1534, "loss", "0.153"),
        (0.9731, "percent", "97.3 %"),
        (9.61, "ratio", "9.6×"),
        (123.4, "ratio", "123×"),
        (0.42, "ratio", "0.42×"),
        (0.926, "share", "0.93"),
        (-0.1534, "loss", "\N{MINUS SIGN}0.153"),
        (0.000012, "number", "1.20e-05"),
        (0, "number", "0"),
        (61440, "number", "61,440"),
    ],
)
def test_numbers_have_one_form(value: float, kind: str, printed: str) -> None:
    assert format_number(value, kind) == printed


def test_effects_and_ticks() -> None:
    assert [format_effect(value) for value in (0.911, -0.34, 0.001, -0.001)] == ["+0.91", "\N{MINUS SIGN}0.34", "0.00", "0.00"]
    assert [format_tick(value) for value in (0.5, 200, 20_000, 1e6)] == ["0.5", "200", "20k", "1M"]


def test_results_are_read_back() -> None:
    assert read_number(exact(3.0).to_json()).value == 3
    assert read_number({**exact(6.8).to_json(), "lo": 5.2, "hi": 8.9}).interval("ratio") == "5.2\N{EN DASH}8.9×"
    assert read_number(not_measurable("too few prompts").to_json()) == Reading(reason="too few prompts")


@pytest.mark.parametrize(
    "raw", [None, {}, "7", True, float("nan"), {"value": float("inf")}, {"value": 0.0, "measurable": False}, 10**400]
)
def test_what_is_no_number_has_a_reason_and_no_value(raw: object) -> None:
    found = read_number(raw)
    assert found.value is None and found.reason and found.text() == "—"


def test_characters_that_act_are_written_out() -> None:
    assert visible("a\nb\x1b[31m\u202e\u2028\ud800") == "a⏎b\\x1b[31m\\u202e\\u2028\\ud800"
    assert token_label(" in\n") == "·in⏎"
    assert shorten("abcdef", 4) == "abc…" and shorten("日本語", 4) == "日…" and shorten("abcd", 4) == "abcd"


def test_cells_hold_no_markup_and_no_formula() -> None:
    assert markdown_cell("a|b`<i>*") == "a\\|b\\`&lt;i&gt;\\*"
    assert csv_cell("=cmd()") == "'=cmd()" and csv_cell(-1.5) == -1.5 and csv_cell("name") == "name"


def test_json_cannot_end_its_script_element() -> None:
    hostile = {"</script><!--&": "\u2028\u2029\ud800"}
    text = str(script_json(hostile))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == hostile
