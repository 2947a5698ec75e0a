"""The rows of a drawn circuit: which marks stand in which, from the tokens down to the answers.

A residual channel is a lane: its marks stand one below the other. The marks of a head stand in one box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparse_lens.circuits.cards.connections import ANSWER, EMBEDDING, HEAD_OUT, TOKEN, Connection, Connections, Place
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.report.strings import shorten, token_label, visible, width_of

_LANE_SITES = (EMBEDDING, "attn_in", "attn_out", "mlp_in", "mlp_out", "final_resid")
_HEAD_SITES = ("attn_q", "attn_k", "attn_v", HEAD_OUT)
_LAYER_ROWS = (
    *(("resid_pre",), ("attn_in",), ("attn_q", "attn_k", "attn_v"), (HEAD_OUT,), ("attn_out",)),
    *(("resid_mid",), ("mlp_in",), ("mlp_neuron",), ("mlp_out",), ("resid_post",)),
)
_TOKEN_COLUMNS = 12
_DIGIT, _MONOSPACE = 6.2, 6.8
"""Pixels of a character in a mark: of a number, of a token."""


@dataclass(frozen=True)
class Mark:
    """What stands for a place: its `label`, whether it is a `node`, and the channel (`lane`) or head (`box`) it belongs to."""

    place: Place
    label: str
    node: bool
    lane: int | None = None
    box: tuple[int, int] | None = None

    @property
    def width(self) -> float:
        """Pixels that the mark takes with its label inside."""
        character = _MONOSPACE if self.token else _DIGIT
        return 8.0 if self.bare else max(22.0, character * width_of(self.label) + 5)

    @property
    def token(self) -> bool:
        """Whether the mark is a token or an answer, which always has its label."""
        return self.place.kind in (TOKEN, ANSWER)

    @property
    def bare(self) -> bool:
        """Whether the mark is a dot without a label: a channel that is no node."""
        return self.place.kind in (EMBEDDING, HEAD_OUT)


@dataclass(frozen=True)
class Row:
    """Marks at one depth of the computation; `label` names it in the margin."""

    label: str
    marks: tuple[Mark, ...]


def circuit_rows(circuit: Circuit, connections: Connections, shown: Sequence[Connection]) -> list[Row]:
    """The rows that hold any mark, in the order of computation: every kept node, and the other ends of the edges `shown`."""
    ends = {place for edge in shown for place in (edge.source, edge.target)}
    found: dict[str, list[Mark]] = {}
    for site, indices in circuit.kept().items():
        found[site] = [_mark(Place(site, index), circuit, connections) for index in indices]
    for place in sorted(ends):
        if place.kind in (TOKEN, ANSWER, EMBEDDING, HEAD_OUT):
            found.setdefault(place.site, []).append(_mark(place, circuit, connections))
    layers = sorted({site.layer for site in circuit.space.sites if site.layer is not None})
    order: list[tuple[str, Iterable[str]]] = [("tokens", (TOKEN,)), ("embedding", (EMBEDDING,))]
    for layer in layers:
        order += [(_row_label(kinds, layer), [f"{kind}.{layer}" for kind in kinds]) for kinds in _LAYER_ROWS]
    order += [("final_resid", ("final_resid",)), ("answers", (ANSWER,))]
    rows = [Row(label, tuple(mark for site in sites for mark in found.get(site, ()))) for label, sites in order]
    return [row for row in rows if row.marks]


def _mark(place: Place, circuit: Circuit, connections: Connections) -> Mark:
    if place.kind in (TOKEN, ANSWER):
        return Mark(place, shorten(token_label(connections.texts.get(place.index, place.index)), _TOKEN_COLUMNS), node=False)
    box = (place.layer or 0, connections.head(place)) if place.kind in _HEAD_SITES else None
    if place.kind in (EMBEDDING, HEAD_OUT):
        in_lane = place.kind == EMBEDDING and not circuit.space.sees_residual
        return Mark(place, visible(place.index), node=False, lane=place.index if in_lane else None, box=box)
    site = next(site for site in circuit.space.sites if site.name == place.site)
    own = site.is_identity and place.kind in _LANE_SITES and not circuit.space.sees_residual  # whose latents cut the lanes
    label = "error" if place.index >= site.n_latents else f"{_letter(place.kind)}{place.index}"
    return Mark(place, label, node=True, lane=place.index if own else None, box=box if site.is_identity else None)


def _letter(kind: str) -> str:
    """q, k and v share a row: their nodes bear the letter."""
    return kind[-1] if kind in ("attn_q", "attn_k", "attn_v") else ""


def _row_label(kinds: Sequence[str], layer: int) -> str:
    if len(kinds) > 1:
        return f"{layer} q, k, v"
    return f"{layer} heads' output" if kinds[0] == HEAD_OUT else f"{layer} {kinds[0]}"


def lanes_of(rows: Sequence[Row]) -> Mapping[int, list[tuple[int, Mark]]]:
    """The marks of every residual channel with the number of their row, downwards."""
    found: dict[int, list[tuple[int, Mark]]] = {}
    for depth, row in enumerate(rows):
        for mark in row.marks:
            if mark.lane is not None:
                found.setdefault(mark.lane, []).append((depth, mark))
    return found
