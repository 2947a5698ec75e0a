"""A circuit in words: the names of places, what hovering shows, and a figure for those who cannot see it."""

from __future__ import annotations

from collections.abc import Mapping

from sparse_lens.circuits.cards.connections import ANSWER, EMBEDDING, HEAD_OUT, TOKEN, Connection, Connections, Place
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.report.numbers import MINUS
from sparse_lens.report.strings import token_label, visible


def place_name(place: Place, texts: Mapping[int, str]) -> str:
    """A place's name: `mlp_neuron.0 17`, or what it is where it is no node."""
    if place.kind in (TOKEN, ANSWER):
        return f"{place.kind} {token_label(texts.get(place.index, place.index))}"
    if place.kind == EMBEDDING:
        return f"embedding, channel {place.index}"
    if place.kind == HEAD_OUT:
        return f"heads' output of layer {place.layer}, channel {place.index}"
    return f"{visible(place.site)} {place.index}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign; what rounds to zero has none."""
    written = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(written) == 0 else written.replace("-", MINUS)


def edge_told(edge: Connection, texts: Mapping[int, str]) -> str:
    """What hovering over an edge shows."""
    ends = f"{place_name(edge.source, texts)} \N{RIGHTWARDS ARROW} {place_name(edge.target, texts)}"
    effect = "" if edge.effect is None else f", effect {signed(edge.effect)}"
    return f"{ends}: weight {signed(edge.weight)}{effect}"


def node_told(place: Place, delta: float | None, texts: Mapping[int, str]) -> str:
    """What hovering over a mark shows."""
    worth = "" if delta is None else f": {signed(delta)} nats of task loss when ablated"
    return place_name(place, texts) + worth


def drawing_in_words(circuit: Circuit, connections: Connections, deltas: Mapping[Place, float], left_out: int) -> str:
    """The drawn circuit as text."""
    sites = "; ".join(f"{site}: {len(kept)}" for site, kept in circuit.kept().items() if kept)
    told = f"{circuit.n_nodes} nodes by site, in the order of computation: {visible(sites)}."
    if connections.reason:
        return f"{told} No edges: {visible(connections.reason)}."
    told += f" {connections.total} edges" + (f", of which the {left_out} smallest are not drawn." if left_out else ".")
    if worth := sorted(deltas.items(), key=lambda item: -abs(item[1]))[:5]:
        named = ", ".join(f"{place_name(place, connections.texts)} ({signed(delta)})" for place, delta in worth)
        told += f" Ablating them changes the task loss most, in nats: {named}."
    if connections.edges:
        told += " The largest edges: " + "; ".join(edge_told(edge, connections.texts) for edge in connections.edges[:5]) + "."
    return told
