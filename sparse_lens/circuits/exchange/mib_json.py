"""Circuits of heads and MLPs as JSON, in the form of the Mechanistic Interpretability Benchmark's circuit track.

Source of the schema: hannamw/EAP-IG, `src/eap/graph.py` (`Graph.to_json`, `Graph.from_json`); what a submission has to hold,
the README of hannamw/MIB-circuit-track: importance scores of edges, or which edges are in the circuit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_lens.circuits.checked import field, integer, mapping, named, number, read_json_object, truth
from sparse_lens.circuits.exchange.components import LOGITS, ComponentGraph
from sparse_lens.errors import CircuitError
from sparse_lens.files import new_file

_MOST_LAYERS, _MOST_HEADS, _MOST_CHANNELS = 1 << 12, 1 << 14, 1 << 20


def write_mib_json(path: str | Path, graph: ComponentGraph, *, every_edge: bool = False) -> None:
    """Write a graph of heads and MLPs to one JSON file; `component_graph` makes one of a circuit.

    All nodes are written; of the edges those in the graph or with a score, since a reader takes others as absent with score 0.
    With `every_edge` these are written, too: millions in a model of many heads. An edge in the graph without a score gets 1.
    Raises `OutputError` if the place cannot be written.
    """
    names = graph.all_edges() if every_edge else sorted(graph.edges | graph.edge_scores.keys())
    content = {
        "cfg": {
            "n_layers": graph.n_layers,
            "n_heads": graph.n_heads,
            "parallel_attn_mlp": graph.parallel,
            "d_model": graph.d_model,
        },
        "nodes": {name: _node(name, graph) for name in graph.all_nodes()},
        "edges": {name: {"score": _score(name, graph), "in_graph": name in graph.edges} for name in names},
    }
    with new_file(path) as staging:
        staging.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def read_mib_json(path: str | Path) -> ComponentGraph:
    """The graph in a JSON file of EAP-IG, of the benchmark or of this package.

    Scores that are not numbers (NaN: not scored) are left out. Raises `CircuitError` for a file that is missing, too large or no
    such JSON, for names that its own sizes do not have, and for graphs that choose single neurons, which this package writes as a
    `Circuit`.
    """
    content = read_json_object(path)
    sizes = mapping(field(content, "cfg", str(path)), "cfg")
    nodes = named(field(content, "nodes", str(path)), "nodes")
    edges = named(field(content, "edges", str(path)), "edges")
    in_graph: set[str] = set()
    for name, row in nodes.items():
        if "neurons" in mapping(row, f"node {name}"):
            raise CircuitError(f"{path} chooses single neurons of {name[:40]!r}; only whole heads and MLPs are read, write those")
        # The reference counts the logits as always present, whatever a file says.
        if truth(field(row, "in_graph", f"node {name}"), f"in_graph of {name}") or name == LOGITS:
            in_graph.add(name)
    present = {
        n for n, row in edges.items() if truth(field(mapping(row, f"edge {n}"), "in_graph", f"edge {n}"), f"in_graph of {n}")
    }
    return ComponentGraph(
        n_layers=integer(field(sizes, "n_layers", "cfg"), "n_layers", least=1, most=_MOST_LAYERS),
        n_heads=integer(field(sizes, "n_heads", "cfg"), "n_heads", least=1, most=_MOST_HEADS),
        d_model=integer(field(sizes, "d_model", "cfg"), "d_model", least=1, most=_MOST_CHANNELS),
        nodes=frozenset(in_graph),
        edges=frozenset(present),
        node_scores=_scores(nodes),
        edge_scores=_scores(edges),
        parallel=truth(field(sizes, "parallel_attn_mlp", "cfg"), "parallel_attn_mlp"),
    )


def _node(name: str, graph: ComponentGraph) -> dict[str, Any]:
    row: dict[str, Any] = {"in_graph": name in graph.nodes or name == LOGITS}
    return row | ({"score": graph.node_scores[name]} if name in graph.node_scores else {})


def _score(name: str, graph: ComponentGraph) -> float:
    return graph.edge_scores.get(name, 1.0 if name in graph.edges else 0.0)


def _scores(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found = {name: number(row["score"], f"the score of {name}", finite=False) for name, row in rows.items() if "score" in row}
    return {name: score for name, score in found.items() if math.isfinite(score)}
