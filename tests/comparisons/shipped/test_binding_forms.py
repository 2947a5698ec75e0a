"""Binding in all forms: tables over planted training seeds, the docs' numbers, and the command in its least form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_lens.comparisons.shipped.binding_forms import BEHAVIOUR, EXCHANGED, INSIDE, KEPT, LOGITS, MEASURES, forms_page, main
from sparse_lens.results import Result, exact, from_plain, not_measurable


def planted(gap: float = 0.0) -> list[dict[str, dict[str, dict[str, Result]]]]:
    """Three seeds; the sparse model composes better by 0.2, and neither binds, but for rounding."""
    seeds = []
    assert 1 / 3 + 1e-16 != 1 / 3
    for seed in range(3):
        sides = {}
        for side, gain, noise in (("sparse", 0.2, 1e-16), ("dense", 0.0, 0.0)):
            names = {metric.rpartition(": ")[2] for columns in MEASURES.values() for metric in columns.values()}
            form = {name: Result(0.5, null=0.125) for name in names}
            form |= {"composition_gap": exact(-0.4 + gain + 0.01 * seed), "representation": exact(1 / 3 + noise)}
            form |= {"leakage_logits": not_measurable("two variables") if seed == 1 else exact(0.1)}
            sides[side] = {"value_2_0": form, "model": {"loss": exact(3 + (gap if side == "dense" else 0))}}
        seeds.append(sides)
    return seeds


def test_differences_are_over_seeds_at_one_loss() -> None:
    """A number that one seed lacks is no mean; at other losses there is no verdict."""
    page = forms_page(planted())
    [row] = page[BEHAVIOUR].splitlines()[2:]
    assert row.startswith("| number, 2, 0 | 0.5 [0.5, 0.5] |") and row.endswith("| 0.2 [0.2, 0.2] | supports |")
    [row] = page[INSIDE].splitlines()[2:]
    assert "| 0 [0, 0] | indistinguishable |" in row
    [row] = page[LOGITS].splitlines()[2:]
    assert row.endswith("| 0.125 [0.125, 0.125] | 0.125 [0.125, 0.125] | — | — | — | — |")
    [row] = page[EXCHANGED].splitlines()[2:]
    assert row.endswith("| 0.375 [0.375, 0.375] | 0.375 [0.375, 0.375] | 0 [0, 0] | indistinguishable |")
    assert forms_page(planted(0.2))[BEHAVIOUR].endswith("| not measurable |")
    assert [table.splitlines()[0].count("|") for table in page.values()] == [14, 14, 18, 14]


def test_the_docs_hold_the_kept_tables() -> None:
    docs = Path(__file__).parents[3] / "docs"
    kept, page = json.loads((docs / "binding" / KEPT).read_text()), (docs / "pages" / "claims-details.md").read_text()
    assert kept["scope"] == {"quick": False, "seeds": 3} and len(kept["measured"]) == 3
    for marker, table in forms_page(from_plain(kept["measured"])).items():
        assert f"<!-- table: {marker} -->\n{table}\n<!-- end -->" in page


@pytest.mark.slow
def test_the_pair_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In its least form, kept, printed and on the page."""
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in MEASURES))
    out = tmp_path / "kept"
    main(["--quick", "--out", str(out), "--cells", str(tmp_path / "cells"), "--page", str(page), "--workers", "1"])
    kept = json.loads((out / KEPT).read_text())
    assert kept["measured"][0]["sparse"]["value_2_0"]["accuracy"]["value"] > 0.9 and "number, 3, 2" in capsys.readouterr().out
    assert forms_page(from_plain(kept["measured"]))[INSIDE] in page.read_text()
