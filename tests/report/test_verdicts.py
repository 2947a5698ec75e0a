"""The page and the tables of claims: every row, hostile text, and folders that are not ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparse_lens.errors import OutputError
from sparse_lens.models_shipped import shipped_models
from sparse_lens.report.verdicts import claims_markdown, claims_table, write_claims
from sparse_lens.report.verdicts.shipped_page import FIGURE, LINKS, main, page_figure, page_tables
from sparse_lens.report.verdicts.tables import HEAD, beside_markdown, row_cells

NUMBER = {"value": 1.25, "lo": 1.0, "hi": 1.5, "null": None, "n": 3, "seeds": 3, "measurable": True, "reason": None}
NONE = NUMBER | {"value": None, "lo": None, "hi": None, "measurable": False, "reason": "gate"}


def content(text: str = "a claim") -> dict[str, Any]:
    claim = {
        "id": "X1", "text": text, "kind": "durable", "source": text, "measure": "m", "metric": "n", "larger": "sparse",
        "unit": text,
        "sparse": NUMBER, "dense": NUMBER, "difference": NUMBER, "controls": {"rotated": NUMBER, "random_weights": NONE},
        "verdict": "supports", "reasons": [text], "found": [text],
        "literature": [{"id": text, "side": "for", "claims": ["X1"], "grounds": "abstract", "finding": text}],
    }  # fmt: skip
    empty = claim | {"id": "X2", "sparse": NONE, "dense": NONE, "difference": NONE, "controls": {}, "verdict": "not measurable"}
    return {
        "schema": 1, "command": text, "claims": [claim, empty],
        "measured": [{"m": {"sparse": {"n": NUMBER}, "dense": {"n": NONE}}}],
        "covered_until": "2026-07", "grounds": {"abstract": text}, "not_grounded": [text],
        "scope": {"pairs": [{"sparse": text, "dense": "d"}], "training_seeds": 3, "loss_gaps": [0.01],
                  "largest": "tested", "smoke": True},
    }  # fmt: skip


def test_everything_is_written(tmp_path: Path) -> None:
    page = write_claims(content(), tmp_path / "claims").read_text()
    assert page.count("<section") == 6 and "1.25 [1.00\N{EN DASH}1.50]" in page and page.count("<svg") == 3
    assert json.loads((tmp_path / "claims" / "claims.json").read_text())["claims"][0]["id"] == "X1"
    rows = (tmp_path / "claims" / "claims.csv").read_text().splitlines()
    assert rows[0].startswith("arm,seed,measure,side,metric,value") and len(rows) == 3
    with_arm = content() | {"arms": {"pruned": content()["measured"]}}
    rows = (write_claims(with_arm, tmp_path / "arms").parent / "claims.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[1].startswith(",0,") and rows[3].startswith("pruned,0,")
    table = (tmp_path / "claims" / "table.md").read_text()
    assert table.startswith(claims_markdown(content()) + "\n\n- ") and "covered until 2026-07" in table and "Not grounded" in table
    assert "\n- **X1**: a claim\n" in table
    assert "\n| a claim | for | X1, X2 | a claim | abstract |\n\nGrounds: *abstract*: a claim.\n" in table
    write_claims(content("another"), tmp_path / "claims")
    assert "another" in (tmp_path / "claims" / "index.html").read_text()


def test_hostile_text_acts_nowhere(tmp_path: Path) -> None:
    evil = '</script><script>alert(1)</script><img src=x onerror=alert(2)>"\u202e|`'
    page = write_claims(content(evil), tmp_path / "claims").read_text()
    assert "<script>alert" not in page and "<img" not in page and "\u202e" not in page
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    console.print(claims_table(content("[bold red]x[/bold red]")))
    assert "[bold red]x[/bold red]" in console.export_text()
    lines = claims_markdown(content("a | b <i>")).splitlines()
    assert all(line.replace("\\|", "").count("|") == 8 for line in lines) and "<i>" not in "".join(lines)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="thesis"):
        write_claims(content(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_next_to_nothing_is_zero() -> None:
    """A mean of differences that cancel; its interval stays. A fixed number to be held against is told."""
    small = content()["claims"][0] | {"difference": NUMBER | {"value": 1.8e-17, "lo": -0.5, "hi": 0.5}, "against": 1.0}
    assert row_cells(small)[HEAD.index("difference")] == "0 [\N{MINUS SIGN}0.500\N{EN DASH}0.500] from 1"


def test_what_ends_a_claim_is_not_what_stands_beside_it() -> None:
    """A perishable claim of one metric has numbers beside it; one made of many cells those that ended it."""
    ended = content()
    ended["claims"][0] |= {"kind": "perishable", "verdict": "contradicts", "found": ["fvu: 0.2"], "reasons": []}
    assert "fvu" not in claims_markdown(ended) and beside_markdown(ended).startswith("- **X1**: fvu: 0.2")
    ended["claims"][0]["found"] += [
        "fvu: 0.2 [0.1, 0.3] in the sparse model, — in the dense one",
        "r2: 1 in the sparse model, 2 in the dense one, difference -1",
    ]
    table, told = beside_markdown(ended).split("\n\n")
    assert table.splitlines()[2:] == [r"| X1 | fvu | 0.2 \[0.1, 0.3\] | — | — |", "| X1 | r2 | 1 | 2 | -1 |"]
    assert told.startswith("- **X1**: fvu: 0.2")
    ended["claims"][0] |= {"metric": ""}
    assert "fvu" in claims_markdown(ended) and "X1" not in beside_markdown(ended)


def test_a_claim_leads_to_its_section() -> None:
    rows = claims_markdown(content(), links={"X2": "more.md#x2"}).splitlines()
    assert rows[2].startswith("| **X1** a claim (durable) | a claim | 1.25")
    assert rows[3].startswith("| [**X2**](more.md#x2) a claim (durable) | ")


def test_the_docs_hold_the_kept_tables_and_figure() -> None:
    """Those of the docs' pages are what the runs kept beside them give, on the models of today's cards."""
    docs = Path(__file__).parents[2] / "docs"
    for page, tables in page_tables(docs / "claims").items():
        for marker, table in tables.items():
            assert f"<!-- table: {marker} -->\n{table}\n<!-- end -->" in (docs / "pages" / page).read_text()
    assert (docs / "pages" / "figures" / FIGURE).read_text() == page_figure(docs / "claims")
    assert f"(figures/{FIGURE})" in (docs / "pages" / "claims.md").read_text()
    kept = json.loads((docs / "claims" / "claims.json").read_text())
    folders = shipped_models()
    for role in ("sparse", "dense"):
        for names, loss in zip(kept["scope"]["pairs"], kept["scope"][f"{role}_loss"], strict=True):
            card = json.loads((folders[names[role]] / "card.json").read_text())
            assert loss["value"] == pytest.approx(card["loss"], abs=1e-6)


def test_sections_that_claims_lead_to_are_there() -> None:
    pages = Path(__file__).parents[2] / "docs" / "pages"
    for address in LINKS.values():
        page, _, anchor = address.partition("#")
        headings = re.findall(r"^#+ (.+)$", (pages / page).read_text(), flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_command_writes_tables_and_figure(tmp_path: Path) -> None:
    pages = {"claims.md": ("claims", "scope", "circuits"), "claims-details.md": ("pruned", "beside", "literature", "shift metrics")}
    for page, markers in pages.items():
        (tmp_path / page).write_text("".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in markers))
    main([str(Path(__file__).parents[2] / "docs" / "claims"), "--pages", str(tmp_path)])
    assert all("\nold\n" not in (tmp_path / name).read_text() for name in pages)
    assert (tmp_path / "figures" / FIGURE).read_text().startswith("<svg")
