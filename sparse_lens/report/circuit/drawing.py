"""A circuit drawn: every kept node, every edge, the residual stream as lanes, from the tokens down to the answers.

Everything in it is data of `sparse_lens.circuits`; colors are CSS classes, so the page and a notebook show it in their own theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparse_lens.circuits.cards.connections import ANSWER, EMBEDDING, HEAD_OUT, TOKEN, Connection, Connections, Place
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.report.circuit.layout import MARK, Layout, lay_out
from sparse_lens.report.circuit.legend import drawing_legend
from sparse_lens.report.circuit.rows import Mark, circuit_rows
from sparse_lens.report.circuit.words import drawing_in_words, edge_told, node_told, place_name
from sparse_lens.report.strings import visible
from sparse_lens.report.svg import document, hover, tag, text

MOST_EDGES = 1500
"""Edges that are drawn at most, the largest; the figure says how many are not."""

_DOT = 4.0


@dataclass(frozen=True)
class Drawn:
    """The figure as SVG text without a style sheet, and how many edges it leaves out."""

    svg: str
    left_out: int


def draw_circuit(
    circuit: Circuit,
    connections: Connections,
    *,
    deltas: Mapping[Place, float] | None = None,
    ident: str = "circuit",
    anchors: str | None = None,
    most_edges: int = MOST_EDGES,
) -> Drawn:
    """The figure of `circuit`: `deltas` (rise of the task loss in nats) color its nodes.

    With `anchors`, the prefix of their ids, nodes lead to their cards on the page.

    Edges are as wide as their effect, or, where none was measured, as their weight within its kind.
    """
    deltas = deltas or {}
    shown = connections.edges[:most_edges]
    left_out = connections.total - len(shown)
    rows = circuit_rows(circuit, connections, shown)
    layout = lay_out(rows, shown)
    limit = max([abs(delta) for delta in deltas.values()], default=0.0)
    marks = [mark for row in rows for mark in row.marks]
    legend, below = drawing_legend(connections, limit, left_out, layout, searched=connections.searched)
    parts = [*_lanes(layout), *_margin(layout), *_boxes(layout), *_mixing(marks, layout, connections)]
    parts += _edges(shown, layout, connections.texts)
    parts += [_mark(mark, layout, deltas, limit, connections.texts, anchors) for mark in marks]
    told = drawing_in_words(circuit, connections, deltas, left_out)
    title = f"Circuit of {visible(circuit.task)}"
    width = max(layout.width, 720.0)
    svg = document(width, layout.height + below, *parts, legend, ident=ident, title=title, description=told, class_="circuit")
    return Drawn(svg, left_out)


def anchor(ident: str, place: Place) -> str:
    """The id of a node's card on a page."""
    return f"{ident}-{place.site.replace('.', '-')}-{place.index}"


def _lanes(layout: Layout) -> list[str]:
    return [tag("line", class_="lane", x1=x, x2=x, y1=top, y2=bottom) for x, top, bottom in layout.lanes if bottom > top]


def _margin(layout: Layout) -> list[str]:
    return [text(label, 0, y + 4, class_="small") for label, y in layout.rows]


def _boxes(layout: Layout) -> list[str]:
    parts = []
    for box in layout.boxes:
        parts.append(tag("rect", hover(box.label), class_="head", x=box.x, y=box.y, width=box.width, height=box.height, rx=6))
        parts.append(text(box.label, box.x + 4, box.y + MARK + 18, class_="small through"))
    return parts


def _mixing(marks: Sequence[Mark], layout: Layout, connections: Connections) -> list[str]:
    """From a kept value channel to the channel of the head's output that mixes it."""
    parts = []
    for mark in marks:
        value = Place(f"attn_v.{mark.place.layer}", connections.value_channel(mark.place.index))
        if mark.place.kind == HEAD_OUT and value in layout.at:
            (x1, y1), (x2, y2) = layout.at[value], layout.at[mark.place]
            parts.append(tag("path", class_="lane", d=_curve(x1, y1 + _half(layout), x2, y2 - _DOT)))
    return parts


def _edges(edges: Sequence[Connection], layout: Layout, texts: Mapping[int, str]) -> list[str]:
    most: dict[str, float] = {}
    for edge in edges:
        kind = edge.kind if edge.effect is None else ""
        most[kind] = max(most.get(kind, 0.0), edge.size)
    parts = []
    for edge in reversed(edges):  # the largest on top
        (x1, y1), (x2, y2) = layout.at[edge.source], layout.at[edge.target]
        largest = most[edge.kind if edge.effect is None else ""]
        strength = edge.size / largest if largest else 0.0
        parts.append(
            tag(
                "path",
                hover(edge_told(edge, texts)),
                class_="edge positive" if edge.weight >= 0 else "edge negative",
                d=_curve(x1, y1 + _reach(edge.source, layout), x2, y2 - _reach(edge.target, layout)),
                stroke_width=f"{0.8 + 4.2 * strength:.2f}",
                stroke_opacity=f"{0.3 + 0.6 * strength:.2f}",
                data_a=_key(edge.source),
                data_b=_key(edge.target),
            )
        )
    return parts


def _mark(
    mark: Mark, layout: Layout, deltas: Mapping[Place, float], limit: float, texts: Mapping[int, str], ident: str | None
) -> str:
    x, y = layout.at[mark.place]
    delta = deltas.get(mark.place)
    title = hover(node_told(mark.place, delta, texts))
    kind = "node" if mark.node else "end"
    if mark.bare:
        return tag("circle", title, class_=kind, cx=x, cy=y, r=_DOT, data_n=_key(mark.place))
    inside = [_shape(x, y, mark, layout, kind, title)]
    strength = min(abs(delta) / limit, 1.0) if delta is not None and limit > 0 else 0.0
    if strength > 0:
        inside.append(_shape(x, y, mark, layout, "through positive" if (delta or 0) > 0 else "through negative", "", strength))
    if layout.labelled or mark.token:
        ink = "token" if mark.token else "cell strong" if strength > 0.7 else "cell"
        inside.append(text(mark.label, x, y + 4, class_=f"{ink} through", text_anchor="middle"))
    drawn = tag("g", *inside, data_n=_key(mark.place))
    if ident is None or not mark.node:
        return drawn
    return tag("a", drawn, href=f"#{anchor(ident, mark.place)}", aria_label=f"card of {place_name(mark.place, texts)}")


def _shape(x: float, y: float, mark: Mark, layout: Layout, class_: str, inside: str, opacity: float | None = None) -> str:
    """A pill that holds the label, or a dot where labels have no room."""
    shade = None if opacity is None else f"{opacity:.3f}"
    if not layout.labelled and not mark.token:
        return tag("circle", inside, class_=class_, cx=x, cy=y, r=_DOT, fill_opacity=shade)
    left, top = x - mark.width / 2, y - MARK / 2
    return tag("rect", inside, class_=class_, x=left, y=top, width=mark.width, height=MARK, rx=5, fill_opacity=shade)


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    middle = (y1 + y2) / 2
    return f"M{x1:.1f} {y1:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"


def _half(layout: Layout) -> float:
    return MARK / 2 if layout.labelled else _DOT


def _reach(place: Place, layout: Layout) -> float:
    """Pixels from a mark's middle to where edges end."""
    if place.kind in (TOKEN, ANSWER):
        return MARK / 2
    return _DOT if place.kind in (EMBEDDING, HEAD_OUT) else _half(layout)


def _key(place: Place) -> str:
    return f"{place.site}-{place.index}"
