"""A legend makes a figure taller and no wider, breaks lines where they are full, and escapes labels."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from sparse_lens.report.plot_legend import with_legend
from sparse_lens.report.svg import document, tag

FIGURE = document(300, 100, tag("rect", x=0, y=0), ident="f", title="t", description="d")


def test_labels_and_marks_are_below_the_figure() -> None:
    drawn = with_legend(FIGURE, [(0, "neurons"), (1, "a <b> latents"), (2, "a third column"), (None, "gray: controls")])
    root = ElementTree.fromstring(drawn)
    legend = root[-1]
    assert float(root.attrib["width"]) == 300 and float(root.attrib["height"]) > 140
    assert root.attrib["viewBox"] == f"0 0 300 {root.attrib['height']}"
    labels = [child for child in legend if child.tag.endswith("text")]
    assert [label.text for label in labels] == ["neurons", "a <b> latents", "a third column", "gray: controls"]
    assert all(100 < float(label.attrib["y"]) < float(root.attrib["height"]) for label in labels)
    assert len({label.attrib["y"] for label in labels}) == 3 and len(re.findall('class="mark', drawn)) == 3


def test_nothing_to_tell_changes_nothing() -> None:
    assert with_legend(FIGURE, []) == FIGURE and with_legend("<p/>", [(0, "a")]) == "<p/>"
