"""What the docs show of the claims: their tables and the forest plot, from the rows that are kept.

    python -m sparse_lens.report.verdicts.shipped_page docs/claims --pages docs/pages

`claims.json` is that of `sparse-lens claims`, each `t1b-ARM.json` holds the rows of the same command with a pruned arm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.comparisons.instrument.claim import CLAIMS
from sparse_lens.comparisons.instrument.literature import read_literature
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.comparisons.shipped.shift_metrics import shift_metrics_page
from sparse_lens.report.numbers import DASH
from sparse_lens.report.standalone import standalone_svg
from sparse_lens.report.strings import markdown_cell
from sparse_lens.report.verdicts.forest import forest_plot
from sparse_lens.report.verdicts.tables import beside_markdown, beside_rows, claims_markdown, literature_markdown, scope_markdown
from sparse_lens.results import from_plain

FIGURE = "claims-forest.svg"
WIDTH = 720.0

ARMS = ("magnitude", "lottery", "learned")
"""Ways of pruning that T1b was measured with."""

_DETAILS = "claims-details.md"
LINKS = {
    "T1b": f"{_DETAILS}#pruning-instead-of-sparse-training",
    "T1c": f"{_DETAILS}#shift-ladder-by-ladder",
    "SHIFT": f"{_DETAILS}#shift-ladder-by-ladder",
    "BIND": f"{_DETAILS}#binding-in-a-pair-trained-for-it",
}
"""Sections with more about a claim, by its id."""


def page_tables(kept: Path) -> dict[str, dict[str, str]]:
    """Markdown of the tables by page and marker, from the folder of the kept rows."""
    claims, *arms = (
        json.loads((kept / name).read_text(encoding="utf-8")) for name in ("claims.json", *map("t1b-{}.json".format, ARMS))
    )
    pruned = {"claims": [row for arm in arms for row in arm["claims"]]}
    known = read_literature()
    about = [{"id": claim.id, "literature": [vars(item) for item in known.about(claim.id)]} for claim in CLAIMS]
    literature = literature_markdown({"claims": about, "grounds": known.grounds})
    details = {
        "pruned": claims_markdown(pruned, sides=("sparse training", "pruned")),
        "beside": beside_markdown(claims),
        "literature": literature,
    }
    details["shift metrics"] = shift_metrics_page(from_plain(claims["measured"]))
    page = {"claims": claims_markdown(claims, links=LINKS), "scope": scope_markdown(claims), "circuits": _circuits(claims)}
    return {"claims.md": page, _DETAILS: details}


def _circuits(claims: Mapping[str, Any]) -> str:
    """Sizes by task of T3b's circuits, and of those of the dense model read through SAEs beside them."""
    nodes = {
        claim["id"]: {name.partition("_on_")[2]: rest for name, *rest in beside_rows(claim) if "_on_" in name}
        for claim in claims["claims"]
    }
    head = ["task", "sparse", "dense", "difference", "dense, through SAEs", "difference"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for task, numbers in nodes["T3b"].items():
        cells = [*numbers, *nodes["T3b-SAE"].get(task, ["", DASH, DASH])[1:]]
        lines.append(f"| `{task}` | " + " | ".join(map(markdown_cell, cells)) + " |")
    return "\n".join(lines)


def page_figure(kept: Path) -> str:
    """The forest plot as a file of its own, from the folder of the kept rows."""
    content = json.loads((kept / "claims.json").read_text(encoding="utf-8"))
    return standalone_svg(forest_plot(content, width=WIDTH)) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables and the figure anew; `DataError` where a page lacks the markers of its tables."""
    parser = argparse.ArgumentParser(description="Write the tables and the figure of the claims from the kept rows.")
    parser.add_argument("kept", type=Path, help="folder with claims.json and the files of the pruned arms")
    parser.add_argument("--pages", type=Path, required=True, help=f"folder with claims.md, {_DETAILS} and figures/{FIGURE}")
    options = parser.parse_args(arguments)
    for page, tables in page_tables(options.kept).items():
        write_tables(options.pages / page, tables)
    (options.pages / "figures").mkdir(exist_ok=True)
    (options.pages / "figures" / FIGURE).write_text(page_figure(options.kept), encoding="utf-8")


if __name__ == "__main__":
    main()
