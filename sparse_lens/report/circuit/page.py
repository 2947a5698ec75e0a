"""One offline page for one or several circuits: drawn, with a card for each node, and how each was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sparse_lens.circuits.cards.connections import Connections, Place, circuit_connections
from sparse_lens.circuits.cards.node_card import NodeCard, node_cards
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.space import EDGE_KINDS
from sparse_lens.errors import CircuitError
from sparse_lens.files import new_file
from sparse_lens.report.circuit.drawing import draw_circuit
from sparse_lens.report.circuit.figure import pair_run
from sparse_lens.report.circuit.glossary import WORDS
from sparse_lens.report.circuit.node_card import LEVELS, by_worth, card_view, deltas_of
from sparse_lens.report.circuit.origin import evaluation_number, evaluation_numbers, search_command, search_facts, verdict
from sparse_lens.report.circuit.positions import PairRun, draw_positions
from sparse_lens.report.circuit.templates import render
from sparse_lens.report.numbers import DASH, format_number
from sparse_lens.report.strings import script_json, visible
from sparse_lens.tasks import TaskBatch

MOST_CARDS = 300
_MOST_SAVED_EDGES = 5000
_MANY = 60
"""Nodes above which a card shows three contexts instead of five."""


@dataclass(frozen=True, eq=False)
class ShownCircuit:
    """A circuit with everything that a page shows of it; `look_at` computes it.

    `evaluation` is the content of the `card.json` that stands beside a circuit, `remark` what is missing and why.
    """

    name: str
    model: str
    circuit: Circuit
    connections: Connections
    cards: tuple[NodeCard, ...]
    run: PairRun | None = None
    n_pairs: int = 0
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


def look_at(
    bridge: Any,
    circuit: Circuit,
    prompts: TaskBatch | None = None,
    *,
    name: str = "",
    model: str = "",
    evaluation: Mapping[str, Any] | None = None,
    remark: str = "",
    progress: bool = False,
    **options: Any,
) -> ShownCircuit:
    """Everything that a page shows of `circuit`: edges, cards, one pair of prompts at all positions.

    `prompts` are pairs of its task: without them there are no deltas, no effects and no positions, and `remark` should say why.
    `options` are those of `node_cards`. Raises `CircuitError` for another model, as `node_cards` does, and for an empty circuit.
    """
    if circuit.n_nodes == 0:
        raise CircuitError(f"the circuit {name or circuit.task} keeps no node, so there is nothing to show; find it again")
    connections = circuit_connections(bridge, circuit, prompts)
    options = {"n_contexts": 5 if circuit.n_nodes <= _MANY else 3} | options
    cards = node_cards(bridge, circuit, prompts, connections=connections, progress=progress, **options)
    run = None if prompts is None else pair_run(bridge, circuit, prompts)
    n_pairs = 0 if prompts is None else len(prompts)
    named = {"name": name or circuit.task, "model": model or circuit.model, "remark": remark, "evaluation": evaluation or {}}
    return ShownCircuit(circuit=circuit, connections=connections, cards=cards, run=run, n_pairs=n_pairs, **named)


def write_circuit_page(shown: Sequence[ShownCircuit], path: str | Path, *, command: str = "") -> Path:
    """Write one self-contained page about `shown` to `path`; raises `OutputError` where it cannot be written.

    `command` is what made the page. The page loads nothing and works without scripts.
    """
    page = render("circuit.html.jinja", page_view(shown, command))
    with new_file(path) as staging:
        staging.write_text(page, encoding="utf-8")
    return Path(path)


def page_view(shown: Sequence[ShownCircuit], command: str) -> dict[str, Any]:
    """Every variable of `circuit.html.jinja`."""
    if not shown:
        raise CircuitError("a page needs at least one circuit")
    kinds = [kind for kind in EDGE_KINDS if any(_counts(one).get(kind) for one in shown)]
    return {
        "circuits": [_circuit_view(one, f"c{index}") for index, one in enumerate(shown)],
        "kinds": [kind.replace("_", " ") for kind in kinds],
        "rows": [_summary(one, f"c{index}", kinds) for index, one in enumerate(shown)],
        "levels": range(1, LEVELS + 1),
        "n_levels": LEVELS,
        "words": WORDS,
        "command": visible(command),
        "data": script_json({"schema": 1, "circuits": [_data(one) for one in shown]}),
    }


def _circuit_view(one: ShownCircuit, ident: str) -> dict[str, Any]:
    deltas = deltas_of(one.cards)
    drawn = draw_circuit(one.circuit, one.connections, deltas=deltas, ident=f"{ident}-drawing", anchors=ident)
    chosen = by_worth(one.cards)[:MOST_CARDS]
    places = [card.place for card in one.cards if card in chosen]
    run = one.run
    return {
        "ident": ident,
        "name": visible(one.name),
        "task": visible(one.circuit.task),
        "model": visible(one.model),
        "nodes": one.circuit.n_nodes,
        "edges": None if one.connections.reason else one.connections.total,
        "reason": visible(one.connections.reason),
        "searched": one.connections.searched,
        "remark": visible(one.remark),
        "n_pairs": one.n_pairs,
        "drawing": Markup(drawn.svg),
        "positions": None if run is None else Markup(draw_positions(one.circuit, run, ident=f"{ident}-positions")),
        "pair": None if run is None else [visible("".join(side)) for side in zip(*run.tokens, strict=True)],
        "cards": [card_view(card, places, one.connections, ident, streams=not one.circuit.space.sees_residual) for card in chosen],
        "hidden_cards": len(one.cards) - len(chosen),
        "facts": search_facts(one.circuit),
        "search_command": search_command(one.circuit, one.model),
        "ablation": visible(one.circuit.ablation) + (", frozen norms" if one.circuit.frozen_norms else ""),
        "fingerprint": visible(one.circuit.model),
        "verdict": verdict(one.evaluation),
        "evaluation": [
            (label, found.text(), found.interval(), found.reason) for label, found in evaluation_numbers(one.evaluation)
        ],
    }


def _counts(one: ShownCircuit) -> Mapping[str, int]:
    """Edges by kind: of a search, or all weights between nodes."""
    if one.circuit.edges is not None:
        return one.circuit.edges.kept.counts()
    counts: dict[str, int] = {}
    for edge in one.connections.edges:
        counts[edge.kind] = counts.get(edge.kind, 0) + 1
    return counts


def _summary(one: ShownCircuit, ident: str, kinds: Sequence[str]) -> dict[str, Any]:
    circuit, counts, complete = one.circuit, _counts(one), len(one.connections.edges) == one.connections.total
    cells = [format_number(counts.get(kind, 0), "count") if complete or one.connections.searched else DASH for kind in kinds]
    scores = [evaluation_number(one.evaluation, name) for name in ("sufficiency", "necessity")]
    measured = circuit.loss == circuit.loss  # not a number where none was measured
    return {
        "ident": ident,
        "name": visible(one.name),
        "model": visible(one.model),
        "task": visible(circuit.task),
        "nodes": format_number(circuit.n_nodes, "count"),
        "edges": DASH if one.connections.reason else format_number(one.connections.total, "count"),
        "kinds": [DASH] * len(kinds) if one.connections.reason else cells,
        "loss": format_number(circuit.loss, "loss") if measured else DASH,
        "target": format_number(circuit.target_loss, "loss"),
        "reached": circuit.reached if measured else None,
        "scores": [(DASH, "") if found is None else (found.text("share"), found.interval("share")) for found in scores],
    }


def _data(one: ShownCircuit) -> dict[str, Any]:
    """The circuit's numbers for programs: nodes and edges."""

    def name(place: Place) -> str:
        return f"{place.site} {place.index}"

    nodes = [
        {
            "node": name(card.place),
            "density": card.density,
            "in_circuit": _value(card, "in_circuit"),
            "in_model": _value(card, "in_model"),
        }
        for card in one.cards
    ]
    edges = [
        {"kind": edge.kind, "source": name(edge.source), "target": name(edge.target), "weight": edge.weight, "effect": edge.effect}
        for edge in one.connections.edges[:_MOST_SAVED_EDGES]
    ]
    facts = {"name": one.name, "model": one.model, "task": one.circuit.task, "fingerprint": one.circuit.model}
    return {name: visible(value) for name, value in facts.items()} | {"nodes": nodes, "edges": edges}


def _value(card: NodeCard, name: str) -> float | None:
    found = getattr(card, name)
    return None if found is None else found.value
