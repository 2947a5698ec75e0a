"""What the docs keep of the full comparison: enough for their tables and figures, and still that of today's models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.errors import DataError
from sparse_lens.models_shipped import shipped_models
from sparse_lens.report.full.shipped_page import KEPT, PAGE, TABLES, kept_numbers, main, page_figures, page_tables
from sparse_lens.report.standalone import standalone_svg
from sparse_lens.results import Result, exact, to_plain

DOCS = Path(__file__).parents[2] / "docs"


def metrics() -> dict[str, Any]:
    points = [
        {"target": t, "results": {"kl_heldout": exact(t), "total_bits": exact(900 / t), "kl_zero": exact(1.0)}} for t in (2.0, 0.5)
    ]
    full = {
        "columns": {"sparse_neurons": {"control": False, "model": "/somewhere/python-sparse"}},
        "curves": {"a": {"sparse_neurons": [{"seed": 0, "points": points, "facts": {"long": "x" * 5000}}]}},
        "rows": {"superposition": {"sparse_neurons": {"layer 0": {"psi": Result(0.123456789, 0.1, 0.2)}}}},
        "headline": {"sparse_neurons": {"bits_ratio_at_0.5": Result(3.0, 1.5, 6.0, null=1.0)}},
        "maps": {"concepts": {}},
        "undistinguished": ["one", "two"],
    }
    return to_plain({"schema": 1, "command": "c", "models": {}, "tasks": {}, "full": full})


def test_what_is_kept_gives_the_same_tables_and_figures(tmp_path: Path) -> None:
    """Small, and nothing that a table or a figure of the page reads is lost."""
    whole = metrics()
    kept = kept_numbers(whole)
    assert (
        len(json.dumps(kept)) < 2000
        and kept["full"]["rows"]["superposition"]["sparse_neurons"]["layer 0"]["psi"]["value"] == 0.123457
    )
    assert kept["full"]["columns"]["sparse_neurons"]["model"] == "python-sparse"
    assert page_tables(kept["full"]) == page_tables(whole["full"])
    assert page_figures(kept["full"]) == page_figures(whole["full"])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text(json.dumps(whole))
    page, tables = tmp_path / PAGE, tmp_path / TABLES
    for path, markers in ((page, ("ratios", "undistinguished", "unmatched")), (tables, ("rows",))):
        path.write_text("".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in markers))
    main([str(tmp_path / "report"), "--out", str(tmp_path / "kept"), "--pages", str(tmp_path)])
    assert json.loads((tmp_path / "kept" / KEPT).read_text()) == kept
    assert "- one\n- two" in page.read_text() and "old" not in page.read_text() + tables.read_text()
    assert (tmp_path / "figures" / "full-bits-pooled.svg").is_file()
    with pytest.raises(DataError, match="schema"):
        kept_numbers({"schema": 0})


def test_the_page_shows_the_kept_numbers_of_todays_models() -> None:
    kept = json.loads((DOCS / "full" / KEPT).read_text())
    pages = {name: (DOCS / "pages" / name).read_text() for name in (PAGE, TABLES)}
    for name, tables in page_tables(kept["full"]).items():
        for marker, table in tables.items():
            assert f"<!-- table: {marker} -->\n{table}\n<!-- end -->" in pages[name]
    drawn = page_figures(kept["full"])
    assert len(drawn) == 9
    for name, svg in drawn.items():
        assert (DOCS / "pages" / "figures" / name).read_text() == standalone_svg(svg) + "\n" and f"figures/{name}" in pages[PAGE]
    pair, folders = ModelPair.open(), shipped_models()
    for role, model in kept["models"].items():
        card = json.loads((folders[pair.model_name(role)] / "card.json").read_text())
        assert model["name"] == pair.model_name(role) and model["loss"]["value"] == pytest.approx(card["loss"], rel=1e-5)
