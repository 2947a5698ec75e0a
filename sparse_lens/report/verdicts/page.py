"""Writing the claims: a folder with the page, the JSON, a tidy CSV, the table as Markdown and the figure; all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sparse_lens.errors import DataError
from sparse_lens.files import check_writable, new_directory, refuse_foreign
from sparse_lens.report.figures import NARROW, WIDE
from sparse_lens.report.standalone import standalone_svg
from sparse_lens.report.strings import csv_cell, script_json, visible
from sparse_lens.report.verdicts.figure import difference_line
from sparse_lens.report.verdicts.forest import forest_plot
from sparse_lens.report.verdicts.tables import (
    HEAD,
    beside_markdown,
    claims_markdown,
    literature_markdown,
    row_cells,
    scope_lines,
    scope_markdown,
)
from sparse_lens.results import from_plain, to_frame, to_plain

_TABLE_PARTS = (claims_markdown, scope_markdown, beside_markdown, literature_markdown)
"""What `table.md` holds, one after the other."""

CLAIMS_FILES = ("index.html", "claims.json", "claims.csv", "table.md", "forest.svg")
"""The last of them is there if any claim is judged by a difference."""

_GENERATOR = '<meta name="generator" content="sparse-lens claims">'


def write_claims(content: Mapping[str, Any], folder: str | Path) -> Path:
    """Write the content of a `Report` (`to_plain`) into `folder`; returns the page's path.

    A folder that holds claims is replaced, anything else is left alone. Raises `OutputError` where other files stand there or it
    cannot be written, `DataError` for a number that is not finite; then nothing has changed.
    """
    folder, plain = Path(folder), to_plain(content)
    try:
        text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise DataError("the claims hold a number that is not finite; what cannot be measured has no value and a reason") from error
    written = {
        "claims.json": text,
        "claims.csv": _csv(plain),
        "table.md": "\n\n".join(part(plain) for part in _TABLE_PARTS if part(plain)) + "\n",
        "index.html": _environment().get_template("claims.html.jinja").render(_view(plain)),
    }
    if plot := forest_plot(plain):
        written["forest.svg"] = standalone_svg(plot) + "\n"
    refuse_foreign(folder, CLAIMS_FILES)
    with new_directory(folder) as staging:
        for name, content_of_file in written.items():
            (staging / name).write_text(content_of_file, encoding="utf-8")
    return folder / "index.html"


def check_claims_folder(folder: str | Path) -> None:
    """Raise `OutputError` now, before the work, if `write_claims` would not write `folder` after it."""
    check_writable(folder, CLAIMS_FILES)


def _csv(plain: Mapping[str, Any]) -> str:
    groups = {"": plain["measured"], **plain.get("arms", {})}
    content = {arm: {str(number): from_plain(seed) for number, seed in enumerate(seeds)} for arm, seeds in groups.items()}
    frame = to_frame(content, ("arm", "seed", "measure", "side"))
    return frame.map(csv_cell).to_csv(index=False)


def _view(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "head": HEAD,
        "scope": scope_lines(plain),
        "forest": _forest(plain),
        "claims": [_claim(claim, plain["grounds"]) for claim in plain["claims"]],
        "command": visible(plain["command"]),
        "data": script_json(plain),
    }


def _forest(plain: Mapping[str, Any]) -> Markup:
    """The figure for wide windows and for phones; the style sheet shows one of them."""
    wide, narrow = (forest_plot(plain, ident=f"forest-{name}", width=width) for name, width in (("wide", WIDE), ("narrow", NARROW)))
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>') if wide else Markup("")


def _claim(claim: Mapping[str, Any], grounds: Mapping[str, str]) -> dict[str, Any]:
    texts = {name: visible(claim[name]) for name in ("id", "text", "kind", "source", "unit", "verdict")}
    lists = {name: [visible(entry) for entry in claim[name]] for name in ("reasons", "found")}
    literature = [{name: visible(item[name]) for name in ("id", "side", "finding", "grounds")} for item in claim["literature"]]
    known = [item | {"meaning": visible(grounds.get(item["grounds"], ""))} for item in literature]
    return texts | lists | {"cells": row_cells(claim)[1:-1], "literature": known, "figure": Markup(difference_line(claim))}


@cache
def _environment() -> Environment:
    loader = PackageLoader("sparse_lens.report", package_path="")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"generator": _GENERATOR}
    return environment
