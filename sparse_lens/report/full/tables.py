"""The tables of the full comparison as plain cells, and as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from sparse_lens.report.contents import part, sequence
from sparse_lens.report.full.contents import Cell, columns, frontier_cell, points, row_cell, row_numbers
from sparse_lens.report.full.words import ROWS, column_term, said_in
from sparse_lens.report.numbers import DASH, MINUS, RANGE, TIMES, Reading, format_number, read_number
from sparse_lens.report.strings import markdown_cell, visible

_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", TIMES: r"$\times$", DASH: "---", RANGE: "--", MINUS: "$-$"}
_POINT = (
    *("kl_heldout", "kl_random", "total_bits", "total_without_dictionary_bits", "nodes", "error_nodes"),
    *("structural_edges", "searched_edges", "functional_edges"),
)


@dataclass(frozen=True)
class Table:
    """A table of strings: a title, a head, rows; every row as long as the head."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(full: Mapping[str, Any]) -> Iterator[Table]:
    """The headline's ratios, one table for each row, and the points of every curve."""
    yield from summary_tables(full)
    for task in part(full, "curves"):
        yield _task(full, task)
        yield _survival(full, task)
        if (typed := _typed(full, task)).rows:
            yield typed


def summary_tables(full: Mapping[str, Any]) -> Iterator[Table]:
    """The tables that do not grow with tasks, seeds and targets."""
    yield from ratio_tables(full)
    yield from row_tables(full)


def ratio_tables(full: Mapping[str, Any]) -> Iterator[Table]:
    """Sizes of circuits over those of the sparse neurons, and of controls; edges in factors."""
    yield _headline(full)
    if (other := _other_bits(full)).rows:
        yield other
    if (elsewhere := _elsewhere(full)).rows:
        yield elsewhere
    if part(full, "against_controls"):
        yield _against_controls(full)
    if part(full, "edge_parts"):
        yield _edge_parts(full)


def row_tables(full: Mapping[str, Any]) -> Iterator[Table]:
    """Dictionaries over widths, one table for each row, hybrids and steering."""
    if part(full, "frontier"):
        yield _frontier(full)
    for row, (title, _) in ROWS.items():
        if part(full, "rows", row):
            yield _row(full, row, title)
    if part(full, "couplings"):
        yield _hybrids(full)
        yield _steering(full)


_ELSEWHERE = ("_rephrased", "_natural")
"""How names of ratios end that are not at a divergence on held-out templates."""

_OTHER_BITS = ("bits_once_", "bits_without_dictionaries_")
"""How names of ratios begin that are of another count of bits."""


def _headline(full: Mapping[str, Any]) -> Table:
    ratios, matching = part(full, "headline"), part(full, "matching")
    names = [name for name in _ratio_names(ratios) if not name.endswith(_ELSEWHERE) and not name.startswith(_OTHER_BITS)]
    rows = []
    for column in ratios:
        losses = [_loss_difference(part(matching, column))] if matching else []
        cells = [_with_n(read_number(part(ratios, column).get(name))) for name in names]
        rows.append([_label(full, column), *losses, *cells])
    title = f"Sizes over those of {_base(full)}, at equal divergence (geometric means [95 % intervals], n tasks)"
    return Table(title, ["column", *(["loss off, nats"] if matching else []), *map(_spoken, names)], rows)


def _base(full: Mapping[str, Any]) -> str:
    """The column that sizes are held against, in a sentence."""
    return f"“{visible(full['base'])}”" if full.get("base") else "the sparse neurons"


def _other_bits(full: Mapping[str, Any]) -> Table:
    """Ratios of bits by other counts; columns without dictionaries have the same by all of them, but for rounding."""
    title = (
        "Bits with no number charged twice (a dictionary's virtual weights follow from its rows), and with dictionaries for nothing"
    )
    return _ratios_named(full, title, lambda name: name.startswith(_OTHER_BITS))


def _elsewhere(full: Mapping[str, Any]) -> Table:
    """The same ratios at a divergence on shifted prompts and on natural text."""
    title = "The same at equal divergence on rephrased prompts, and on real files that no circuit was searched on"
    return _ratios_named(full, title, lambda name: name.endswith(_ELSEWHERE))


def _ratios_named(full: Mapping[str, Any], title: str, is_wanted: Callable[[str], bool]) -> Table:
    ratios = part(full, "headline")
    names = [name for name in _ratio_names(ratios) if is_wanted(name)]
    rows = [[_label(full, c), *(_with_n(read_number(part(ratios, c).get(name))) for name in names)] for c in ratios]
    rows = [row for row in rows if any(cell != DASH for cell in row[1:])]
    return Table(title, ["column", *map(_spoken, names)], rows)


def _against_controls(full: Mapping[str, Any]) -> Table:
    """Columns' sizes over those of their controls."""
    ratios = part(full, "against_controls")
    names = [name for name in _ratio_names(ratios) if not name.endswith(_ELSEWHERE)]
    rows = []
    for pair in ratios:
        sides = " over ".join(visible(column_term(name).label) for name in str(pair).split(" over "))
        rows.append([sides, *(_with_n(read_number(part(ratios, pair).get(name))) for name in names)])
    return Table("Sizes over those of a column's control, at equal divergence", ["pair", *map(_spoken, names)], rows)


def _ratio_names(ratios: Mapping[str, Any]) -> list[str]:
    """All names of all columns, in the order in which they first come."""
    return list({name: None for column in ratios for name in part(ratios, column)})


def _loss_difference(match: Mapping[str, Any]) -> str:
    """How far a column's loss is from the sparse model's, and with its dictionaries in place; unmatched ones are marked."""
    own, spliced = (read_number(match.get(name)) for name in ("difference", "difference_spliced"))
    text = own.text("loss") + ("" if match.get("how") in ("matched", "interpolated", None) else " (not matched)")
    return text + ("" if spliced.value is None else f", spliced {spliced.text('loss')}")


def _with_n(reading: Reading) -> str:
    """A ratio with its number of tasks and, where there are several, of trainings."""
    trainings = f", {reading.seeds} trainings" if (reading.seeds or 1) > 1 else ""
    return _shown(reading, "ratio") + (f" (n={reading.n}{trainings})" if reading.value is not None else "")


def _edge_parts(full: Mapping[str, Any]) -> Table:
    """The factors of ratios of edges: what is left after pairs and density is about circuits."""
    parts = part(full, "edge_parts")
    names = _ratio_names(parts)
    rows = [[_label(full, c), *(_with_n(read_number(part(parts, c).get(name))) for name in names)] for c in parts]
    rows = [row for row in rows if any(cell != DASH for cell in row[1:])]
    title = (
        f"Edges over those of the sparse neurons at one target: structural ones in factors (pairs that could be joined {TIMES} "
        f"density {TIMES} remainder), searched and functional ones, and bits with searched ones"
    )
    return Table(title, ["column", *map(_spoken, names)], rows)


FRONTIER = (
    *(("activation", "l0"), ("reconstruction", "explained_variance"), ("reconstruction", "loss_added_spliced")),
    *(("concepts", "coverage_f1"), ("superposition", "psi"), ("superposition", "effective_features")),
)
"""Rows and numbers of a dictionary on the frontier."""


def _frontier(full: Mapping[str, Any]) -> Table:
    """Dictionaries over widths and active latents, means over layers."""
    found = part(full, "frontier")
    order = sorted(found, key=lambda name: (part(found, name).get("d_sae", 0), part(found, name).get("k", 0)))
    rows = []
    for name in order:
        size = [str(part(found, name).get(number)) for number in ("d_sae", "k")]
        rows.append([*map(visible, size), *(frontier_cell(full, name, row, metric).text() for row, metric in FRONTIER)])
    title = "The first kind of SAE over widths and active latents (means over layers, one seed)"
    return Table(title, ["latents", "active", *(_spoken(metric) for _, metric in FRONTIER)], rows)


def _row(full: Mapping[str, Any], row: str, title: str) -> Table:
    names = row_numbers(full, row)
    rows = []
    for column in columns(full):
        if column in part(full, "rows", row):
            rows.append([_label(full, column), *(_over_places(row_cell(full, row, column, name)) for name in names)])
    return Table(f"{title} ({_OVER.get(row, _LAYERS)})", ["column", *map(_spoken, names)], rows)


_LAYERS = f"means [least{RANGE}largest] over layers and seeds"
_OVER = {"capability": "[95 % intervals] over windows", "overlap": f"means [least{RANGE}largest] over tasks"}
"""What the brackets of a row's table are."""


def _over_places(cell: Cell) -> str:
    """A mean over places, with what chance gives, and how many places have no number."""
    missing = f", {cell.missing} of {cell.places} without" if cell.missing and cell.reading.value is not None else ""
    return _with_null(replace(cell.reading, null=cell.null)) + missing


def _hybrids(full: Mapping[str, Any]) -> Table:
    """The losses of what runs in one model up to a boundary and in the other from there."""
    losses = part(full, "couplings", "losses")
    rows = []
    for boundary in sequence(part(full, "couplings"), "boundaries"):
        readings = [read_number(losses.get(f"loss_{way}_at_{boundary}")) for way in ("dense_to_sparse", "sparse_to_dense")]
        rows.append([visible(boundary), *(_with_null(reading) for reading in readings)])
    dense, sparse = (read_number(losses.get(f"loss_{name}")) for name in ("dense", "sparse"))
    windows = "" if dense.n is None else f" on {dense.n} held-out windows"
    title = f"Hybrids, nats per token{windows} (dense alone {dense.text()}, sparse alone {sparse.text()})"
    return Table(title, ["boundary", "dense, then sparse", "sparse, then dense"], rows)


_STEERING = ("effect", "effect_equal_norm", "whole_effect", "sparse_effect", "flipped")


def _steering(full: Mapping[str, Any]) -> Table:
    """What one channel of the sparse model does in the dense one, at the boundary at which that is most on search prompts."""
    rows, best = [], []
    for task, boundaries in part(full, "couplings", "steering").items():
        readings = {name: _choosing(part(boundaries, name, "results")) for name in boundaries}
        if not readings:
            continue
        most = max(readings, key=lambda name: abs(readings[name].value or 0.0))
        best.append((task, most))
        results = part(boundaries, most, "results")
        place = f"{visible(most)}, channel {visible(part(boundaries, most).get('channel'))}"
        rows.append([visible(task), place, *(_with_null(read_number(results.get(name))) for name in _STEERING)])
    other = all("effect_search" in part(part(full, "couplings", "steering"), *place, "results") for place in best)
    where = f"boundary chosen on {'other' if other else 'the same'} prompts"
    title = f"Steering the dense model through one channel of the sparse one, in logits ({where}; null: random channels)"
    return Table(title, ["task", "where it does most", *map(_spoken, _STEERING)], rows)


def _choosing(results: Mapping[str, Any]) -> Reading:
    """The effect that a boundary is chosen by: that on search prompts, or on the same ones in records that have no other."""
    return read_number(results.get("effect_search", results.get("effect")))


def _with_null(reading: Reading) -> str:
    return _shown(reading) + (f" (null {format_number(reading.null)})" if reading.null is not None else "")


def _task(full: Mapping[str, Any], task: str) -> Table:
    rows = []
    for column in columns(full):
        for place, results in points(full, task, column):
            numbers = [read_number(results.get(name)) for name in _POINT]
            rows.append([_label(full, column), *place, *(number.text() for number in numbers)])
    return Table(f"Curve of {visible(task)}", ["column", "seed", "target", *map(_spoken, _POINT)], rows)


_SURVIVAL = ("kl_mean", "kl_zero", "kl_counterfactual", "kl_adversarial", "kl_rephrased", "kl_natural")


def _survival(full: Mapping[str, Any], task: str) -> Table:
    """What is left of each circuit under other ablations and elsewhere: KL by KL, and the share of everything ablated."""
    rows = []
    for column in columns(full):
        for place, results in points(full, task, column):
            cells = [_with_share(read_number(results.get(name))) for name in _SURVIVAL]
            rows.append([_label(full, column), *place, *cells])
    title = f"What survives other ablations, {visible(task)}: KL in nats, and as a share of that of everything ablated"
    return Table(title, ["column", "seed", "target", *map(_spoken, _SURVIVAL)], rows)


def _typed(full: Mapping[str, Any], task: str) -> Table:
    """Edges by kind at each level, of the first seed's circuit at each target."""
    kinds: dict[str, None] = {}
    found = []
    for column in columns(full):
        for curve in (part(full, "curves", task).get(column) or [])[:1]:
            for point in sequence(curve, "points"):
                for level in part(point, "edges"):
                    counts = part(point, "edges", level)
                    kinds |= dict.fromkeys(counts)
                    found.append(([_label(full, column), str(point.get("target")), visible(level)], counts))
    rows = [[*place, *(read_number(counts.get(kind)).text("count") for kind in kinds)] for place, counts in found]
    return Table(f"Edges by kind, {visible(task)}", ["column", "target", "level", *map(_spoken, kinds)], rows)


def _with_share(reading: Reading) -> str:
    share = f" ({reading.value / reading.null:.0%})" if reading.value is not None and reading.null else ""
    return reading.text() + share


def _label(full: Mapping[str, Any], column: str) -> str:
    return visible(column_term(column).label) + (" (control)" if columns(full).get(column) else "")


def _spoken(name: str) -> str:
    return visible(name).replace("_", " ")


def _shown(reading: Reading, kind: str = "number") -> str:
    if reading.value is None:
        return DASH
    interval = reading.interval(kind)
    return reading.text(kind) + (f" [{interval}]" if interval else "")


def headline_table(full: Mapping[str, Any]) -> RichTable:
    """The headline's ratios for the terminal."""
    content = _headline(full)
    table = RichTable(title=content.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index, cell in enumerate(content.head):
        table.add_column(Text(cell), justify="right" if index else "left", overflow="fold")
    for row in content.rows:
        table.add_row(*map(Text, row))
    return table


def markdown(full: Mapping[str, Any]) -> str:
    """What the run cannot show, and all tables, as GitHub-flavored Markdown."""
    said = [f"## {title}\n\n" + "\n".join(f"- {markdown_cell(s)}" for s in sentences) for title, sentences in said_in(full)]
    return "\n\n".join([*said, *(f"## {table.title}\n\n{markdown_rows(table)}" for table in tables(full))]) + "\n"


def markdown_rows(table: Table) -> str:
    """One table as GitHub-flavored Markdown, without its title."""
    lines = [_line(table.head), "|---|" + "---:|" * (len(table.head) - 1)]
    return "\n".join([*lines, *(_line(row) for row in table.rows)])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(markdown_cell(cell) for cell in cells) + " |"


def latex(full: Mapping[str, Any]) -> str:
    """What the run cannot show as itemized sentences, and all tables as tabulars (booktabs), every string escaped."""
    parts = []
    for title, sentences in said_in(full):
        items = [rf"\item {latex_text(sentence)}" for sentence in sentences]
        parts.append("\n".join([rf"% {latex_text(title)}", r"\begin{itemize}", *items, r"\end{itemize}"]))
    for table in tables(full):
        body = [" & ".join(map(latex_text, row)) + r" \\" for row in table.rows]
        head = " & ".join(map(latex_text, table.head)) + r" \\"
        lines = [rf"% {latex_text(table.title)}", rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\toprule", head]
        parts.append("\n".join([*lines, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is; control characters and line ends become spaces."""
    return "".join(_LATEX.get(character, character) if character.isprintable() else " " for character in text)
