"""What the template of the full comparison shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from sparse_lens.report.full.contents import columns
from sparse_lens.report.full.figures import figures, series_of
from sparse_lens.report.full.tables import tables
from sparse_lens.report.full.words import column_term, said_in
from sparse_lens.report.strings import visible


def full_view(full: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every variable of `full.html.jinja`; None where the metrics have no full part."""
    if not full:
        return None
    colors = series_of(full)
    return {
        "said": said_in(full),
        "columns": [_column(name, colors[name]) for name in columns(full)],
        "figures": [{"caption": caption, "svg": Markup(svg)} for caption, svg in figures(full).values()],
        "tables": list(tables(full)),
    }


def _column(name: str, color: tuple[int, bool]) -> dict[str, Any]:
    known = column_term(name)
    return {"series": color[0], "label": visible(known.label), "meaning": known.meaning, "quiet": color[1]}
