"""A node's card as plain values for the template: texts, heat levels, links; no markup but its histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sparse_lens.circuits.cards.activation_summary import Histogram
from sparse_lens.circuits.cards.connections import HEAD_OUT, Connection, Connections, Place
from sparse_lens.circuits.cards.node_card import Context, NodeCard
from sparse_lens.circuits.sites import RESIDUAL_SITES
from sparse_lens.report.circuit.drawing import anchor
from sparse_lens.report.circuit.words import place_name, signed
from sparse_lens.report.numbers import DASH, format_number
from sparse_lens.report.strings import shorten, token_label, visible
from sparse_lens.report.svg import document, hover, tag
from sparse_lens.results import Result

LEVELS = 9
"""Steps of the tokens' heat on each side."""

_READS, _WRITES = ("attn_in", "mlp_in", "final_resid"), ("attn_out", "mlp_out")
_TOKEN = 24


def card_view(
    card: NodeCard, places: Sequence[Place], connections: Connections, ident: str, *, streams: bool = True
) -> dict[str, Any]:
    """The template's variables for one card; `places` are all nodes that have one, in the order of computation.

    `streams`: whether channels of the residual stream pass from site to site as they are, with no dictionary in between.
    """
    most = max([abs(value) for context in card.contexts for value in context.values], default=0.0)
    linked, own = set(places), anchor(ident, card.place)
    return {
        "id": own,
        "name": place_name(card.place, connections.texts),
        "what": _what(card, connections),
        "in_circuit": _delta(card.in_circuit),
        "in_model": _delta(card.in_model),
        "density": format_number(card.density, "percent"),
        "mean": format_number(card.mean),
        "contexts": [_context(context, most) for context in card.contexts],
        "histogram": Markup(_histogram(card.histogram, f"{own}-histogram")) if any(card.histogram.counts) else "",
        "arriving": [_edge(edge, edge.source, linked, connections, ident) for edge in card.arriving],
        "leaving": [_edge(edge, edge.target, linked, connections, ident) for edge in card.leaving],
        "more_arriving": card.n_arriving - len(card.arriving),
        "more_leaving": card.n_leaving - len(card.leaving),
        "stream": _stream(card.place, places, ident) if streams and not card.latent else None,
        "lens": _lens(card),
        "weights_apply": not card.latent,
    }


def _what(card: NodeCard, connections: Connections) -> str:
    if card.error:
        return "what the dictionary leaves over; its activation is the norm of that"
    if card.latent:
        return "a latent of a dictionary"
    if card.place.kind in ("attn_q", "attn_k", "attn_v"):
        return f"channel {card.place.index % connections.d_head} of head {connections.head(card.place)}"
    return "a residual channel" if card.place.kind in (*_READS, *_WRITES, *RESIDUAL_SITES) else "a neuron"


def _delta(delta: Result | None) -> dict[str, str]:
    if delta is None or delta.value is None:
        return {"text": DASH, "interval": "", "class": ""}
    interval = "" if delta.lo is None or delta.hi is None else f"{signed(delta.lo)} to {signed(delta.hi)}"
    return {"text": signed(delta.value), "interval": interval, "class": "up" if delta.value > 0 else "down"}


def _context(context: Context, most: float) -> dict[str, Any]:
    """Runs of tokens: those without heat together, each other with its class and value."""
    parts: list[tuple[str, str, str]] = []
    for token, value in zip(context.tokens, context.values, strict=True):
        level = round(LEVELS * abs(value) / most) if most > 0 else 0
        shown = visible(token)
        if level == 0 and parts and not parts[-1][1]:
            parts[-1] = (parts[-1][0] + shown, "", "")
        else:
            parts.append((shown, f"{'h' if value > 0 else 'n'}{level}" if level else "", signed(value, 2)))
    return {"parts": parts, "where": f"window {context.window}, from token {context.start}"}


def _edge(edge: Connection, other: Place, linked: set[Place], connections: Connections, ident: str) -> dict[str, Any]:
    if other.kind == HEAD_OUT:  # the value channel that a head mixes has a card, its mixture has none
        value = Place(f"attn_v.{other.layer}", connections.value_channel(other.index))
        target = value if value in linked else None
    else:
        target = other if other in linked else None
    effect = "" if edge.effect is None else signed(edge.effect)
    return {
        "name": place_name(other, connections.texts),
        "href": None if target is None else anchor(ident, target),
        "weight": signed(edge.weight),
        "effect": effect,
        "kind": edge.kind.replace("_", " "),
        "class": "up" if edge.weight > 0 else "down",
    }


def _stream(place: Place, places: Sequence[Place], ident: str) -> dict[str, Any] | None:
    """Kept nodes that write the residual channel which this node reads, or read the one it writes."""
    if place.kind not in (*_READS, *_WRITES) or place not in places:
        return None
    at, reads = places.index(place), place.kind in _READS
    others = places[:at] if reads else places[at + 1 :]
    wanted = _WRITES if reads else _READS
    found = [other for other in others if other.kind in wanted and other.index == place.index]
    nodes = [(place_name(other, {}), anchor(ident, other)) for other in found]
    return {"verb": "Written before by" if reads else "Read after by", "nodes": nodes}


def _lens(card: NodeCard) -> dict[str, Any] | None:
    if card.promoted is None or card.suppressed is None:
        return None

    def shown(tokens: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
        return [(shorten(token_label(token), _TOKEN), signed(value, 2)) for token, value in tokens]

    return {"promoted": shown(card.promoted), "suppressed": shown(card.suppressed)}


def _histogram(histogram: Histogram, ident: str) -> str:
    """Bars over the range of the values, the tallest as high as the figure."""
    width, height, top = 168.0, 40.0, max(histogram.counts)
    bar, parts = width / len(histogram.counts), []
    for i, count in enumerate(histogram.counts):
        low, high = ((2 * j / len(histogram.counts) - 1) * histogram.limit for j in (i, i + 1))
        if count:
            tall = max(1.0, height * count / top)
            name = "negative" if high <= 0 else "positive"
            title = hover(f"{format_number(low)} to {format_number(high)}: {count:,} tokens")
            parts.append(tag("rect", title, class_=name, x=i * bar, y=height - tall, width=bar - 1, height=tall))
    parts.append(tag("line", class_="rule", x1=width / 2, x2=width / 2, y1=0, y2=height))
    told = f"Counts of active tokens in {len(histogram.counts)} bins from {-histogram.limit:g} to {histogram.limit:g}."
    return document(width, height, *parts, ident=ident, title="Histogram of its activations", description=told, class_="circuit")


def by_worth(cards: Sequence[NodeCard]) -> list[NodeCard]:
    """The cards by the size of their delta in the circuit, the largest first; in the order of computation where there is none."""
    return sorted(cards, key=lambda card: -abs(_value(card.in_circuit)))


def _value(delta: Result | None) -> float:
    return 0.0 if delta is None or delta.value is None else delta.value


def deltas_of(cards: Sequence[NodeCard]) -> Mapping[Place, float]:
    """Rise of the task loss by node, of those that have one."""
    found = {card.place: card.in_circuit for card in cards}
    return {place: delta.value for place, delta in found.items() if delta is not None and delta.value is not None}
