"""Where in a pair of prompts a circuit's nodes differ: nodes by depth and layer downwards, positions across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.cards.connections import Place
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.report.circuit.words import place_name, signed
from sparse_lens.report.strings import shorten, token_label, visible
from sparse_lens.report.svg import CHARACTER, document, hover, tag, text, text_width

MOST_ROWS, MOST_POSITIONS = 100, 64

_CELL, _PITCH, _TOKEN = 15.0, 15.0, 14
_UNSEEN, _BEFORE = 0.005, 8


@dataclass(frozen=True, eq=False)
class PairRun:
    """The kept nodes' values `[pos kept]` on both prompts of a pair, run as the circuit, and the tokens of both as texts."""

    clean: Float[Tensor, "pos kept"]
    corrupt: Float[Tensor, "pos kept"]
    tokens: Sequence[tuple[str, str]]


def draw_positions(circuit: Circuit, run: PairRun, *, ident: str = "positions") -> str:
    """The heat map as SVG text without a style sheet: blue where a node is higher on the clean prompt, orange where it is lower.

    Each row is scaled to its node's largest value on the two prompts. Shown are at most the last 64 positions, from shortly
    before the first difference, and the 100 nodes that differ most.
    """
    places = [Place(site, index) for site, indices in circuit.kept().items() for index in indices]
    shares = _shares(run)
    first = _first_shown(shares)
    chosen = _chosen(shares[first:])
    tokens = [_column_label(*pair) for pair in run.tokens[first:]]
    labels = [place_name(places[node], {}) for node in chosen]
    left = 10 + max([text_width(label) for label in labels], default=0.0)
    top = 10 + CHARACTER * 1.15 * max([len(token) for token in tokens], default=0)
    parts = [_token(token, left + (column + 0.5) * _CELL, top - 6) for column, token in enumerate(tokens)]
    width, height = len(tokens) * _CELL, len(chosen) * _PITCH
    parts.append(tag("rect", class_="blank", x=left, y=top, width=width, height=height))
    for row, node in enumerate(chosen):
        y = top + row * _PITCH
        parts.append(text(labels[row], left - 8, y + 11, class_="small", text_anchor="end"))
        new = row > 0 and places[node].site != places[chosen[row - 1]].site
        parts += [tag("line", class_="rule", x1=0, x2=left + width, y1=y, y2=y)] if new else []
        told = [f"{labels[row]}, position {first + i} {token}" for i, token in enumerate(tokens)]
        values = [side[first:, node].tolist() for side in (shares, run.clean, run.corrupt)]
        parts += _cells(list(zip(told, *values, strict=True)), left, y)
    frame = tag("rect", class_="frame", x=left, y=top, width=width, height=height)
    spoken = _in_words(places, shares[first:], first, len(places) - len(chosen))
    title = f"Where the nodes of the circuit of {visible(circuit.task)} differ"
    options = {"ident": ident, "title": title, "description": spoken, "class_": "circuit"}
    return document(left + width + 2, top + height + 4, *parts, frame, **options)


def _shares(run: PairRun) -> Float[Tensor, "pos kept"]:
    """Clean minus corrupt, as a share of the node's largest value on either prompt."""
    largest = run.clean.abs().amax(0).maximum(run.corrupt.abs().amax(0))
    return (run.clean - run.corrupt) / largest.where(largest > 0, largest.new_ones(()))


def _first_shown(shares: Float[Tensor, "pos kept"]) -> int:
    """Some positions before the first difference: what comes earlier is the same on both prompts."""
    differing = (shares.abs() >= _UNSEEN).any(1).nonzero().flatten().tolist()
    return max(0, len(shares) - MOST_POSITIONS, differing[0] - _BEFORE if differing else 0)


def _chosen(shares: Float[Tensor, "pos kept"]) -> list[int]:
    """The nodes shown, in the order of computation."""
    order = shares.abs().amax(0).argsort(descending=True, stable=True)[:MOST_ROWS]
    return sorted(order.tolist())


def _column_label(clean: str, corrupt: str) -> str:
    shown = shorten(token_label(clean), _TOKEN)
    return shown if clean == corrupt else f"{shown} | {shorten(token_label(corrupt), _TOKEN)}"


def _token(label: str, x: float, y: float) -> str:
    name = "token strong-token" if " | " in label else "token"
    return text(label, x + 4, y, class_=name, transform=f"rotate(-90 {x + 4:.1f} {y:.1f})")


def _cells(row: Sequence[tuple[str, float, float, float]], left: float, y: float) -> list[str]:
    """One row: of each position what it is called, the share that colors it, and both values."""
    cells = []
    for column, (told, share, clean, corrupt) in enumerate(row):
        if abs(share) < _UNSEEN:
            continue
        title = hover(f"{told}: {signed(clean)} on the clean prompt, {signed(corrupt)} on the corrupt one")
        place = {"x": left + column * _CELL, "y": y, "width": _CELL, "height": _PITCH}
        name, shade = ("positive" if share > 0 else "negative"), f"{min(abs(share), 1.0):.2f}"
        cells.append(tag("rect", title, class_=name, fill_opacity=shade, **place))
    return cells


def _in_words(places: Sequence[Place], shares: Float[Tensor, "pos kept"], first: int, hidden: int) -> str:
    """The map for those who cannot see it."""
    told = "Difference of every kept node between the clean and the corrupt prompt at each position, the model run as the circuit."
    differing = shares.abs().amax(1) >= _UNSEEN if shares.numel() else shares.new_zeros(0).bool()
    if not bool(differing.any()):
        return f"{told} No node differs anywhere."
    start = first + int(differing.nonzero()[0])
    last = shares[-1]
    strongest = last.abs().argsort(descending=True, stable=True)[:5].tolist()
    named = ", ".join(place_name(places[node], {}) for node in strongest if abs(float(last[node])) >= _UNSEEN)
    told += f" The first difference is at position {start}. "
    told += f"At the last position these differ most: {named}." if named else "No node differs at the last position."
    return told + (f" The {hidden} nodes that differ least are not shown." if hidden else "")


def token_texts(clean: Sequence[int], corrupt: Sequence[int], texts: Mapping[int, str]) -> list[tuple[str, str]]:
    """The tokens of both prompts as texts."""
    return [(texts.get(a, str(a)), texts.get(b, str(b))) for a, b in zip(clean, corrupt, strict=True)]
