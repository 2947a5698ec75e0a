"""The legend inside a figure that stands alone: on the page one list is enough for all figures, a file has only itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparse_lens.report.svg import shape, tag, text, text_width

_LINE, _MARK, _GAP = 20.0, 18.0, 18.0
_SIZE = re.compile(r'width="([\d.]+)" height="([\d.]+)" viewBox="0 0 [\d.]+ [\d.]+"')


def with_legend(svg: str, entries: Sequence[tuple[int | None, str]]) -> str:
    """A figure of `svg.document` with marks and labels of its series below it; a series of None is a line of words alone."""
    size = _SIZE.search(svg)
    if size is None or not entries:
        return svg
    width, height = float(size[1]), float(size[2])
    parts, x, y = [], 0.0, height + _LINE
    for series, label in entries:
        needed = (0.0 if series is None else _MARK) + text_width(label)
        if x > 0 and (series is None or x + needed > width):
            x, y = 0.0, y + _LINE
        if series is not None:
            parts.append(shape(series, x + 6, y - 4))
        parts.append(text(label, x + (0.0 if series is None else _MARK), y))
        x += needed + _GAP
    taller = f'width="{width:g}" height="{y + 8:g}" viewBox="0 0 {width:g} {y + 8:g}"'
    return svg.replace(size[0], taller, 1).removesuffix("</svg>") + tag("g", *parts, class_="legend") + "</svg>"
