"""Writing the report: a folder with the page and the data behind it, all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sparse_lens.errors import DataError, OutputError
from sparse_lens.files import check_writable, new_directory, new_file, refuse_foreign
from sparse_lens.report.contents import check_metrics, part
from sparse_lens.report.figures import key_mark, key_square
from sparse_lens.report.full.files import FULL_FILES, write_full
from sparse_lens.report.patching_view import patching_view
from sparse_lens.report.strings import script_json, visible
from sparse_lens.report.tables import markdown_table
from sparse_lens.report.tidy import tidy_csv
from sparse_lens.report.view import comparison_view
from sparse_lens.results import to_plain

REPORT_FILES = ("index.html", "metrics.json", "metrics.csv", "table.md")
_GENERATOR = '<meta name="generator" content="sparse-lens report">'


def write_report(metrics: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `index.html`, `metrics.json`, `metrics.csv` and `table.md` into `folder`; returns the page's path.

    A full comparison adds `full.md`, `full.tex`, `full.csv`, `full.parquet` and `figures/`.

    `metrics` is the content of `metrics.json` (`Result` objects in it are turned into JSON). A report that stands in `folder` is
    replaced, anything else is left alone. Raises `OutputError` where the folder holds other files or cannot be written,
    `DataError` where `metrics` are not a comparison's; then nothing has changed.
    """
    folder, plain = Path(folder), to_plain(metrics)
    check_metrics(plain)
    text = _json_text(plain)
    _refuse_foreign(folder)
    written = {
        "metrics.json": text,
        "metrics.csv": tidy_csv(plain),
        "table.md": markdown_table(plain),
        "index.html": _render("index.html.jinja", comparison_view(plain)),
    }
    with new_directory(folder, also=FULL_FILES) as staging:
        for name, text in written.items():
            (staging / name).write_text(text, encoding="utf-8")
        if full := part(plain, "full"):
            write_full(full, staging)
    return folder / "index.html"


def write_patching_page(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write one page with the patching figures of `result`, which has the form of the `patching` part of the metrics.

    `result` may also carry `command`. Raises `OutputError` where `path` cannot be written.
    """
    plain = to_plain(result)
    view = {"patching": patching_view(plain), "command": visible(plain.get("command", "")), "data": script_json(plain)}
    page = _render("patching.html.jinja", view)
    with new_file(path) as staging:
        staging.write_text(page, encoding="utf-8")
    return Path(path)


def check_report_folder(folder: str | Path) -> None:
    """Raise `OutputError` now, before the work, if `write_report` would not write `folder` after it."""
    _refuse_foreign(Path(folder))
    check_writable(folder)


def _json_text(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        message = "the metrics hold a number that is not finite; what cannot be measured has the value null and a reason"
        raise DataError(message) from error


def _refuse_foreign(folder: Path) -> None:
    """Raise unless `folder` is missing, empty, or holds a report and nothing else: writing it replaces the whole folder."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot write the report to {_shown(folder)}: a file of that name is in the way; choose another folder")
    refuse_foreign(folder, (*REPORT_FILES, *FULL_FILES))
    if folder.exists() and any(folder.iterdir()) and not _is_our_page(folder / "index.html"):
        raise OutputError(f"{_shown(folder)} holds files that are no report of sparse-lens's; choose a new or empty folder")


def _is_our_page(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as page:
            return _GENERATOR in page.read(2048)
    except OSError:
        return False


def _shown(path: Path) -> str:
    return visible(path)


@cache
def _environment() -> Environment:
    loader = PackageLoader("sparse_lens.report", package_path="")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"key_mark": key_mark, "key_square": key_square, "generator": _GENERATOR}
    return environment


def _render(template: str, view: Mapping[str, Any]) -> str:
    return _environment().get_template(template).render(view)
