"""The forest plot of the claims: how rows are divided, what is drawn in which colour, and what is only named."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from sparse_lens.report.figures import NARROW, WIDE
from sparse_lens.report.standalone import standalone_svg
from sparse_lens.report.verdicts.forest import SERIES, forest_plot, forest_rows
from sparse_lens.results import Result, not_measurable, to_plain

NONE = not_measurable("gate")


def claim(name: str, difference: Result, verdict: str = "supports", **changes: Any) -> dict[str, Any]:
    return to_plain(
        {"id": name, "larger": "sparse", "unit": "nats", "verdict": verdict, "difference": difference, "controls": {}} | changes
    )


def test_a_row_is_divided_by_its_widest_half_width() -> None:
    """Intervals of half-widths 1 and 2: all of the row is halved. Without an interval the largest number is 1."""
    controls = {"random_weights": Result(1.0, -1.0, 3.0), "rotated": NONE}
    wide, single = forest_rows(
        {"claims": [claim("A", Result(4.0, 3.0, 5.0), controls=controls), claim("B", Result(-0.2))]},
    )
    assert [(lane.name, lane.reading.value) for lane in wide.lanes] == [
        ("supports", 2.0),
        ("random weights", 0.5),
        ("rotated", None),
    ]
    assert (wide.lanes[0].reading.lo, wide.lanes[0].reading.hi) == (1.5, 2.5) and single.lanes[0].reading.value == -1.0


@pytest.mark.parametrize("difference", [Result(0.0), Result(0.0, 0.0, 0.0)])
def test_a_row_of_zeros_is_drawn(difference: Result) -> None:
    assert forest_plot({"claims": [claim("A", difference, "indistinguishable")]}).count("<circle") == 1


def test_the_verdict_colours_and_the_rest_is_named() -> None:
    """One mark for each verdict, hollow ones for controls; direction and fixed number beside the name."""
    claims = [claim(verdict[:3], Result(1.0, 0.5, 1.5), verdict) for verdict in SERIES]
    claims.append(claim("T9", Result(1.0, 0.5, 1.5), larger="dense", against=1.0, controls={"rotated": Result(0.1, 0.0, 0.2)}))
    claims += [claim("GATE", NONE, "not measurable"), claim("TWO", Result(1.0), "not measurable"), claim("T2", NONE, "supports")]
    plot = forest_plot({"claims": claims}, width=WIDE)
    marks = re.findall(r'class="mark s(\d+)( hollow)?', plot)
    assert marks == [(str(series), "") for series in SERIES.values()] + [(str(SERIES["supports"]), ""), ("1", " hollow")]
    assert "T9 against 1" in plot and plot.count("claimed \N{RIGHTWARDS ARROW}") == 3 and "\N{LEFTWARDS ARROW} claimed" in plot
    assert "Not measurable: GATE, TWO." in plot and "Judged without a difference: T2 (supports)." in plot


@pytest.mark.parametrize("width", [WIDE, 720.0, NARROW])
def test_everything_stands_inside_the_figure(width: float) -> None:
    """And it is XML, whatever a claim is called."""
    claims = [claim("T1b-<evil>&-" + "long" * 20, Result(-1.0, -2.0, 0.0), controls={"random_weights": Result(9.0, 8.0, 10.0)})]
    root = ElementTree.fromstring(standalone_svg(forest_plot({"claims": claims}, width=width)))
    places = [float(value) for each in root.iter() for name in ("x", "x1", "x2", "cx") if (value := each.get(name))]
    assert min(places) >= 0 and max(places) <= width
    heights = [float(value) for each in root.iter() for name in ("y", "y1", "y2", "cy") if (value := each.get(name))]
    assert max(heights) <= float(root.attrib["height"])


def test_without_a_difference_there_is_no_figure() -> None:
    assert forest_plot({"claims": [claim("A", NONE, "not measurable")]}) == ""
