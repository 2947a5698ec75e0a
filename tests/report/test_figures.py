"""Every figure is well-formed XML with a name and a description, and puts its marks where the numbers say."""

# ruff: noqa: RUF001 - the signs of the printed form are meant

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from sparse_lens.report.figures import NARROW, WIDE, Mark, Row, color_key, dot_plot, effect_bar, key_mark, share_bars
from sparse_lens.report.heatmaps import Axes, heatmap
from sparse_lens.report.svg import LogAxis

HOSTILE = '</title><script>alert("1")</script>&\'\n\x00\u202e'
SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and not list(root.iter(f"{SVG}script"))
    return root


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_dot_plot_survives_hostile_labels(width: float) -> None:
    rows = [
        Row(HOSTILE, [Mark(0, 0, 120, HOSTILE, 100, 140), Mark(1, 2, 900, "b", hollow=True)], [(2, HOSTILE)], "7.5×"),
        Row("", []),
    ]
    root = parsed(
        dot_plot(rows, lanes=3, ident="x", title=HOSTILE, description=HOSTILE, axis_label="edges", note_label="ratio", width=width)
    )
    assert root.get("role") == "img" and root.get("aria-labelledby") == "x-title x-desc"
    assert {element.get("id") for element in root} >= {"x-title", "x-desc"}
    marks = [element for element in root.iter() if str(element.get("class")).startswith("mark")]
    assert [mark.tag for mark in marks] == [f"{SVG}circle", f"{SVG}polygon"]


def test_equal_ratios_are_equal_distances() -> None:
    axis = LogAxis.over([12.0, 4000.0], 100, 900)
    assert axis.at(1000) - axis.at(100) == pytest.approx(axis.at(200) - axis.at(20))
    assert axis.low <= 12 and axis.high >= 4000 and [label for _, label in axis.ticks()][:3] == ["10", "20", "50"]


def test_a_zero_stands_in_its_own_slot() -> None:
    axis = LogAxis.over([0.0, 10.0, 100.0], 0, 500)
    assert axis.at(0) < axis.at(10) - 20 and axis.ticks()[0][1] == "0"


@pytest.mark.parametrize("values", [[], [0.0], [5.0], [1e-300, 1e300]])
def test_an_axis_takes_any_values(values: list[float]) -> None:
    axis = LogAxis.over(values, 0, 300)
    assert axis.ticks() and all(0 <= axis.at(value) <= 300 for value in values)


def test_a_heatmap_has_one_cell_a_value_and_says_what_is_missing() -> None:
    axes = Axes("token", "layer", ["0 (", "1 " + HOSTILE], ["0", "1"], monospace_rows=True)
    svg = heatmap([[0.91, -0.4], [0.001, None]], axes, limit=0.91, ident="h", title="t", description=HOSTILE)
    root = parsed(svg)
    classes = [str(element.get("class")).split()[0] for element in root.iter(f"{SVG}rect")]
    assert (classes.count("blank"), classes.count("missing"), classes.count("positive"), classes.count("negative")) == (3, 1, 2, 1)
    assert "not measurable" in svg and "+0.91" in svg


def test_small_figures_are_well_formed() -> None:
    kinds = ["a", HOSTILE]
    for width in (WIDE, NARROW):
        bars = parsed(
            share_bars([(HOSTILE, [30, 10]), ("none", [0, 0])], kinds, ident="b", title="t", description="d", width=width)
        )
        lengths = [float(rect.get("width", "0")) for rect in bars.iter(f"{SVG}rect")]
        assert lengths[0] == pytest.approx(3 * lengths[1], rel=0.01)
    for svg in (effect_bar(-0.3, 1.0), effect_bar(None, 0.0), key_mark(9, hollow=True), color_key(0.97)):
        parsed(svg)
