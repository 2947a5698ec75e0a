"""Plots with two numeric axes, and figures as files of their own."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_lens.report.line_plots import Axis, Line, Point, line_plot
from sparse_lens.report.scales import Scale
from sparse_lens.report.standalone import figure_style, standalone_svg, write_png, write_svg

POINTS = [Point(100.0, 1.0, "a <b>", 0.5, 2.0), Point(1000.0, 0.1, "second")]


def plot(lines: list[Line], *, log: bool = True) -> str:
    axes = Axis("bits", log), Axis("KL, nats", log)
    return line_plot(lines, *axes, ident="p", title="T & t", description="D.", width=640)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.booleans())
def test_scales_hold_their_values_in_order_and_have_few_round_ticks(values: list[float], log: bool) -> None:
    scale = Scale.over(values, 300, 20, log=log)
    inside = sorted(value for value in values if value > 0 or not log)
    pixels = [scale.at(value) for value in inside]
    assert pixels == sorted(pixels, reverse=True) and all(20 <= pixel <= 300 for pixel in pixels)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 14 and all(math.isfinite(pixel) for pixel, _ in ticks)


def test_a_decade_is_as_long_as_the_next() -> None:
    scale = Scale.over([1, 1000], 0, 300, log=True)
    assert [scale.at(value) for value in (1, 10, 100, 1000)] == pytest.approx([0, 100, 200, 300])


def test_ticks_of_a_linear_axis_are_as_far_apart_as_their_values() -> None:
    pixels = [pixel for pixel, _ in Scale.over([0.19, 0.345], 500, 20).ticks()]
    steps = [a - b for a, b in pairwise(pixels)]
    assert len(steps) >= 2 and steps == pytest.approx([steps[0]] * len(steps))


def test_every_point_is_told_and_text_is_escaped() -> None:
    svg = plot([Line("<script>", 0, POINTS), Line("quiet", 1, POINTS, quiet=True)])
    root = ElementTree.fromstring(svg)
    assert "<script>" not in svg and "<b>" not in svg
    told = "".join(root.itertext())
    assert "a <b>" in told and "second" in told and "<script>" in told
    assert svg.index("line quiet") < svg.index("line s0")


def test_twelve_series_have_twelve_colors_and_no_two_the_same_mark() -> None:
    svg = plot([Line(str(series), series, POINTS) for series in range(12)])
    style = figure_style().replace(" ", "")
    colors = {re.search(rf"svg\.mark\.s{series}\{{fill:(#\w+)", style)[1] for series in range(12)}  # type: ignore[index]
    assert len(colors) == 12 and all(f"mark s{series}" in svg for series in range(12))
    assert "svg .line.s11 { stroke-dasharray: 9 3; }" in figure_style()


def test_a_plot_without_points_says_so() -> None:
    assert "not measurable" in plot([Line("empty", 0, [])])
    assert "not measurable" in plot([], log=False)


def test_standalone_figures_carry_their_style_and_no_variables(tmp_path: Path) -> None:
    assert "var(" not in standalone_svg(plot([Line("a", 2, POINTS)])) and ".line.s5" in figure_style().replace(" ", "")
    write_svg(plot([Line("a", 2, POINTS)]), tmp_path / "a.svg")
    ElementTree.parse(tmp_path / "a.svg")


def test_png_files_are_images(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="needs the extra [figures]")
    write_png(plot([Line("a", 2, POINTS)]), tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG") and int.from_bytes(content[16:20], "big") == 1280


def test_png_without_the_extra_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_lens.errors import ConfigError
    from sparse_lens.report import standalone

    monkeypatch.setattr(standalone, "png_is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"sparse-lens\[figures\]"):
        write_png(plot([]), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
