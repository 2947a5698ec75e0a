"""The claims as a table: for the terminal and as Markdown, from the content of `claims.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sparse_lens.report.numbers import DASH, read_number
from sparse_lens.report.strings import markdown_cell, visible
from sparse_lens.results import NOISE

HEAD = ("claim", "unit", "sparse", "dense", "difference", "controls", "verdict")
_MOST_CELLS = 3

_BESIDE = re.compile(r"([\w*-]+): (.+) in the sparse model, (.+) in the dense one(?:, difference (.+))?")
"""A line of a row's `found` that is a number of both models."""

VERDICT_STYLES = {"supports": "bold green", "contradicts": "bold red", "indistinguishable": "yellow", "not measurable": "dim"}


def claims_table(content: Mapping[str, Any]) -> Table:
    """One row a claim for the terminal, with its unit and the verdict's reasons under it."""
    scope = content["scope"]
    title = f"Claims re-tested over {scope['training_seeds']} training seed(s); difference: sparse less dense, 95 % interval"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for name in (name for name in HEAD if name != "unit"):
        left = name in ("claim", "controls", "verdict")
        table.add_column(name, justify="left" if left else "right", overflow="fold", max_width=44 if name == "claim" else None)
    for claim in content["claims"]:
        _, unit, *cells = row_cells(claim)
        verdict = Text(cells[-1], style=VERDICT_STYLES.get(cells[-1], ""))
        for line in [*claim["reasons"][:1], *ended_by(claim)[:_MOST_CELLS]]:
            verdict.append(f"\n{visible(line)}", style="dim")
        named = Text(visible(claim["id"]), style="bold").append(f" {visible(claim['text'])} ({claim['kind']})", style="not bold")
        if claim["unit"]:
            named.append(f"\n{unit}", style="not bold dim")
        table.add_row(named, *map(Text, cells[:-1]), verdict)
    return table


def claims_markdown(
    content: Mapping[str, Any], *, links: Mapping[str, str] | None = None, sides: tuple[str, str] = ("sparse", "dense")
) -> str:
    """The same as a Markdown table; a claim whose id is in `links` leads to that address, `sides` says what its models are."""
    named = {"sparse": sides[0], "dense": sides[1]}
    head = [named.get(name, name) for name in HEAD]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * 3 + "---|---|"]
    for claim in content["claims"]:
        cells = row_cells(claim)
        name = f"**{markdown_cell(claim['id'])}**"
        if address := (links or {}).get(claim["id"]):
            name = f"[{name}]({address})"
        name += f" {markdown_cell(claim['text'])} ({markdown_cell(claim['kind'])})"
        reasons = "; ".join(markdown_cell(line) for line in [*claim["reasons"], *ended_by(claim)])
        verdict = markdown_cell(cells[-1]) + (f": {reasons}" if reasons else "")
        lines.append("| " + " | ".join([name, *(markdown_cell(cell) for cell in cells[1:-1]), verdict]) + " |")
    return "\n".join(lines)


def beside_markdown(content: Mapping[str, Any]) -> str:
    """What stands beside each claim's verdict and decides nothing: numbers as a table, the rest as a list.

    Cells that ended a claim are its reasons already, and left out.
    """
    rows, lines = [], []
    for claim in content["claims"]:
        found = [] if ended_by(claim) else [str(line) for line in claim["found"]]
        rows += [(str(claim["id"]), *row) for row in beside_rows(claim)] if found else []
        if told := [markdown_cell(line) for line in found if not _BESIDE.fullmatch(line)]:
            lines.append(f"- **{markdown_cell(claim['id'])}**: " + "; ".join(told))
    head = ["| beside | number | sparse | dense | difference |", "|---|---|---:|---:|---:|"] if rows else []
    table = "\n".join([*head, *("| " + " | ".join(map(markdown_cell, row)) + " |" for row in rows)])
    return "\n\n".join(part for part in (table, "\n".join(lines)) if part)


def beside_rows(claim: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Of the numbers beside a claim the name, what it is in the sparse and the dense model, and their difference."""
    found = (_BESIDE.fullmatch(str(line)) for line in claim["found"])
    return [tuple(part or DASH for part in numbers.groups()) for numbers in found if numbers]


def literature_markdown(content: Mapping[str, Any]) -> str:
    """What has been published for and against the claims, one row for each item with all claims that it is about."""
    items: dict[tuple[str, ...], list[str]] = {}
    for claim in content["claims"]:
        for item in claim["literature"]:
            key = tuple(str(item[name]) for name in ("id", "side", "finding", "grounds"))
            items.setdefault(key, []).append(str(claim["id"]))
    rows = ["| source | side | claims | finding | grounds |", "|---|---|---|---|---|"]
    for (source, side, finding, grounds), claims in items.items():
        rows.append("| " + " | ".join(map(markdown_cell, (source, side, ", ".join(claims), finding, grounds))) + " |")
    meanings = "; ".join(f"*{markdown_cell(name)}*: {markdown_cell(told)}" for name, told in content.get("grounds", {}).items())
    return "\n".join(rows) + (f"\n\nGrounds: {meanings}." if meanings else "")


def ended_by(claim: Mapping[str, Any]) -> list[str]:
    """The cells that end a claim which one result can end, made of many (one with a `metric` has what stands beside it there)."""
    ended = claim["kind"] == "perishable" and claim["verdict"] == "contradicts" and not claim["metric"]
    return [str(line) for line in claim["found"]] if ended else []


def scope_markdown(content: Mapping[str, Any]) -> str:
    """`scope_lines` as a list."""
    return "\n".join(f"- {markdown_cell(line)}" for line in scope_lines(content))


def row_cells(claim: Mapping[str, Any]) -> list[str]:
    """The cells of a claim's row as plain text, in the order of `HEAD`."""
    controls = ", ".join(f"{visible(name).replace('_', ' ')} {shown(value)}" for name, value in claim["controls"].items())
    held = claim.get("against")
    from_fixed = "" if held is None or read_number(claim["difference"]).value is None else f" from {held:g}"
    return [
        visible(claim["id"]),
        visible(claim["unit"]) or DASH,
        *(shown(claim[side]) for side in ("sparse", "dense")),
        shown(claim["difference"]) + from_fixed,
        controls or DASH,
        visible(claim["verdict"]),
    ]


def shown(raw: Any) -> str:
    """A number with its interval, an em dash where there is none; what is of rounding is 0."""
    reading = read_number(raw)
    ends = {name: value for name in ("value", "lo", "hi") if (value := getattr(reading, name)) is not None}
    reading = replace(reading, **{name: 0.0 if abs(value) < NOISE else value for name, value in ends.items()})
    interval = reading.interval()
    return reading.text() + (f" [{interval}]" if interval else "")


def _trained(tokens: Mapping[str, Sequence[int | None]]) -> str:
    """On how many tokens the models of each side were trained, where that is known of all of them."""
    sides = {role: [count for count in counts if count is not None] for role, counts in tokens.items()}
    if not sides or any(len(sides[role]) < len(counts) for role, counts in tokens.items()):
        return ""
    told = {role: ", ".join(f"{count:,.0f}" for count in dict.fromkeys(counts)) for role, counts in sides.items()}
    return "Tokens that each model was trained on: " + "; ".join(f"{count} ({role})" for role, count in told.items()) + "."


def scope_lines(content: Mapping[str, Any]) -> Sequence[str]:
    """What the claims were tested on, and what could not be grounded, as sentences."""
    scope = content["scope"]
    gaps = ", ".join(f"{gap:+.3f}" for gap in scope["loss_gaps"])
    pairs = "; ".join(f"{pair['sparse']} with {pair['dense']}" for pair in scope["pairs"])
    lines = [
        f"Pairs: {pairs}. Loss of the dense model less that of the sparse one: {gaps} nats per token (allowed 0.05).",
        f"{scope['largest'][:1].upper()}{scope['largest'][1:]}.",
        f"The literature is covered until {content['covered_until']}.",
        "Not grounded: " + "; ".join(content["not_grounded"]) + ".",
    ]
    others: dict[tuple[str, ...], list[str]] = {}
    for claim in content["claims"]:
        if told := tuple(claim.get("scope", ())):
            others.setdefault(told, []).append(str(claim["id"]))
    lines[1:1] = [f"Other models, {', '.join(ids)}: {'; '.join(told)}." for told, ids in others.items()]
    if trained := _trained(scope.get("tokens", {})):
        lines.insert(1, trained)
    if scope["smoke"]:
        lines.insert(0, "A smoke run: one pair, as little as runs everything. Nothing can be learned from its numbers.")
    return [visible(line) for line in lines]
