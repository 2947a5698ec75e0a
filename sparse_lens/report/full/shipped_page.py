"""What the docs keep of the full comparison of the shipped models: its summary tables and pooled curves, and their numbers.

    sparse-lens compare --full --out report
    python -m sparse_lens.report.full.shipped_page report --out docs/full --pages docs/pages

A report holds every number in several megabytes; `full.json` holds those that the page shows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.files import new_file
from sparse_lens.report.contents import check_metrics, part, sequence
from sparse_lens.report.full.contents import row_numbers
from sparse_lens.report.full.figures import standalone_figures
from sparse_lens.report.full.tables import FRONTIER, Table, markdown_rows, ratio_tables, row_tables
from sparse_lens.report.standalone import write_svg

KEPT = "full.json"
PAGE, TABLES = "full-comparison.md", "full-tables.md"
FIGURES = (
    *("bits-pooled", "nodes-pooled", "bits-rephrased-pooled", "bits-natural-pooled"),
    *("coverage", "widths-loss", "widths-coverage", "psi", "probes"),
)
"""Those of the page, by their names in a report."""

_POINT = ("kl_heldout", "kl_rephrased", "kl_natural", "total_bits", "nodes")
_DIGITS = 6


def kept_numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a report's metrics that the page shows, to six digits. Raises `DataError` for what are no metrics."""
    check_metrics(metrics)
    full = part(metrics, "full")
    rows = {
        row: {
            column: {place: _chosen(results, row_numbers(full, row)) for place, results in places.items()}
            for column, places in part(full, "rows", row).items()
        }
        for row in part(full, "rows")
    }
    curves = {
        task: {column: [_curve(curve) for curve in found] for column, found in part(full, "curves", task).items()}
        for task in part(full, "curves")
    }
    frontier = {
        name: {**size, "rows": {row: _frontier_row(row, places) for row, places in part(size, "rows").items()}}
        for name, size in part(full, "frontier").items()
    }
    kept = {name: full[name] for name in _WHOLE if name in full} | ({"frontier": frontier} if frontier else {})
    kept["columns"] = {name: column | _named(column) for name, column in part(full, "columns").items()}
    return {
        "schema": metrics["schema"],
        "command": metrics.get("command"),
        "models": _rounded(part(metrics, "models")),
        "full": _rounded(kept | {"rows": rows, "curves": curves}),
    }


_WHOLE = (
    *("headline", "against_controls", "matching", "edge_parts", "couplings"),
    *("undistinguished", "unmatched", "left_out", "caveats"),
)


def _frontier_row(row: str, places: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a row that the frontier's table shows."""
    shown = [metric for of, metric in FRONTIER if of == row]
    return {place: _chosen(results, shown) for place, results in places.items()}


def page_tables(full: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Markdown by page and marker: ratios, what the controls show as much of, what is not compared; and all other tables."""
    said = {
        name: "\n".join(f"- {sentence}" for sentence in [*sequence(full, name), *sequence(full, further)])
        for name, further in (("undistinguished", ""), ("unmatched", "left_out"))
    }
    lists = {name: sentences or "Nothing." for name, sentences in said.items()}
    return {PAGE: {"ratios": _sections(ratio_tables(full)), **lists}, TABLES: {"rows": _sections(row_tables(full))}}


def _sections(tables: Iterable[Table]) -> str:
    return "\n\n".join(f"### {table.title}\n\n{markdown_rows(table)}" for table in tables) or "Nothing."


def page_figures(full: Mapping[str, Any]) -> dict[str, str]:
    """The page's figures as SVG, by the names of their files."""
    drawn = standalone_figures(full)
    return {f"full-{name}.svg": drawn[name] for name in FIGURES if name in drawn}


def _curve(curve: Mapping[str, Any]) -> dict[str, Any]:
    points = [
        {"target": point["target"], "results": _chosen(part(point, "results"), _POINT)} for point in sequence(curve, "points")
    ]
    return {"seed": curve.get("seed"), "reason": curve.get("reason"), "points": points}


def _chosen(results: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: results[name] for name in names if name in results}


def _named(column: Mapping[str, Any]) -> dict[str, str]:
    """A model that was given as a folder, by its name: where it lay is of no use elsewhere."""
    return {"model": Path(str(column["model"])).name} if "model" in column else {}


def _rounded(content: Any) -> Any:
    """Numbers to six digits; of a result only what is there."""
    if isinstance(content, Mapping):
        return {name: _rounded(value) for name, value in content.items() if value is not None}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    return float(f"{content:.{_DIGITS}g}") if isinstance(content, float) else content


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep the numbers, and write tables and figures anew."""
    parser = argparse.ArgumentParser(description="Keep what the docs show of a full comparison.")
    parser.add_argument("report", type=Path, help="folder that `sparse-lens compare --full` wrote")
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {KEPT}")
    parser.add_argument(
        "--pages", type=Path, required=True, help=f"folder of {PAGE} and {TABLES}, whose tables, between markers, are written anew"
    )
    options = parser.parse_args(arguments)
    kept = kept_numbers(json.loads((options.report / "metrics.json").read_text(encoding="utf-8")))
    options.out.mkdir(parents=True, exist_ok=True)
    with new_file(options.out / KEPT) as path:
        path.write_text(json.dumps(kept, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    for page, tables in page_tables(kept["full"]).items():
        write_tables(options.pages / page, tables)
    (options.pages / "figures").mkdir(exist_ok=True)
    for name, svg in page_figures(kept["full"]).items():
        write_svg(svg, options.pages / "figures" / name)


if __name__ == "__main__":
    main()
