"""The files that the full comparison adds to a report: tables, one row a number, figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparse_lens.report.contents import part, sequence
from sparse_lens.report.full.figures import standalone_figures
from sparse_lens.report.full.tables import latex, markdown
from sparse_lens.report.standalone import png_is_available, write_png, write_svg
from sparse_lens.report.strings import csv_cell, visible

FULL_FILES = ("full.md", "full.tex", "full.csv", "full.parquet", "figures")
_OF_RESULTS = ("value", "lo", "hi", "null", "n", "seeds", "measurable", "reason")
FIELDS = ("section", "name", "column", "place", "dictionary", "metric", *_OF_RESULTS)


def write_full(full: Mapping[str, Any], folder: Path) -> None:
    """Write tables (Markdown, LaTeX, CSV, Parquet) and figures (SVG; PNG with the extra `[figures]`) into `folder`."""
    import pandas as pd

    (folder / "full.md").write_text(markdown(full), encoding="utf-8")
    (folder / "full.tex").write_text(latex(full), encoding="utf-8")
    frame = pd.DataFrame(numbers(full), columns=pd.Index(FIELDS))
    frame.to_parquet(folder / "full.parquet", index=False)
    frame.map(csv_cell).to_csv(folder / "full.csv", index=False)
    drawn, png = folder / "figures", png_is_available()
    drawn.mkdir()
    for name, svg in standalone_figures(full).items():
        write_svg(svg, drawn / f"{_safe(name)}.svg")
        if png:
            write_png(svg, drawn / f"{_safe(name)}.png")


def numbers(full: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every number of the part `full`, with where it stands."""
    for column, ratios in part(full, "headline").items():
        yield from _results("headline", "", column, "", ratios)
    for pair, ratios in part(full, "against_controls").items():
        yield from _results("against controls", "", pair, "", ratios)
    for column, match in part(full, "matching").items():
        yield from _results(
            "matching", visible(match.get("how")), column, "", {name: match[name] for name in match if "diff" in name}
        )
    for column, factors in part(full, "edge_parts").items():
        yield from _results("edge parts", "", column, "", factors)
    for name, content in part(full, "frontier").items():
        for row, places in part(content, "rows").items():
            for place, results in places.items():
                yield from _results("frontier", row, name, place, results)
    for row, by_column in part(full, "rows").items():
        for column, places in by_column.items():
            for place, results in places.items():
                yield from _results("rows", row, column, place, results, _dictionary(full, column, place))
    couplings = part(full, "couplings")
    yield from _results("couplings", "hybrids", "", "", part(couplings, "losses"))
    for task, boundaries in part(couplings, "steering").items():
        for boundary in boundaries:
            yield from _results("couplings", task, "", boundary, part(boundaries, boundary, "results"))
    yield from _curves(part(full, "curves"), "")
    for seed, by_task in part(full, "further_training_seeds").items():
        yield from _curves(by_task, f"training seed {seed}, ")


def _curves(by_task: Mapping[str, Any], which: str) -> Iterator[dict[str, Any]]:
    for task, by_column in by_task.items():
        for column, curves in by_column.items():
            for curve in curves:
                seed = f"{which}seed {curve.get('seed')}"
                yield from _results("curves", task, column, seed, {"accuracy": part(curve, "accuracy")})
                for point in curve.get("points", ()):
                    found = {**part(point, "results"), **_counts(point)}
                    yield from _results("curves", task, column, f"{seed}, target {point.get('target')}", found)


def _counts(point: Mapping[str, Any]) -> dict[str, Any]:
    """A circuit's nodes by site, and its edges by level and kind."""
    edges = part(point, "edges")
    found = {f"{level}_edges_{kind}": count for level in edges for kind, count in part(edges, level).items()}
    return found | {f"nodes_at_{site}": count for site, count in part(point, "sites").items()}


def _dictionary(full: Mapping[str, Any], column: str, place: str) -> str:
    """The hash of the dictionary that a number of a layer and a dictionary seed is of; empty for neurons, and for all seeds."""
    found = re.fullmatch(r"layer (\d+)(?:, seed (\d+))?", place)
    if found is None:
        return ""
    by_seed = sequence(part(full, "columns", column), "dictionaries")
    if found[2] is None and len(by_seed) > 1:
        return ""
    layer, seed = int(found[1]), int(found[2] or 0)
    of_seed = by_seed[seed] if seed < len(by_seed) and isinstance(by_seed[seed], list) else []
    return visible(of_seed[layer] or "") if layer < len(of_seed) else ""


def _results(
    section: str, name: str, column: str, place: str, results: Mapping[str, Any], dictionary: str = ""
) -> Iterator[dict[str, Any]]:
    for metric, result in results.items():
        where = {"section": section, "name": name, "column": column, "place": place, "dictionary": dictionary, "metric": metric}
        yield where | {field: result.get(field) for field in _OF_RESULTS}


def _safe(name: str) -> str:
    """A file's name from a figure's: task names come from outside."""
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in name)[:80]
