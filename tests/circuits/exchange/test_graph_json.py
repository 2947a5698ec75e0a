"""Attribution graphs as JSON: the form others read, and what others write."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.circuits.exchange.attribution_graph import AttributionGraph, GraphEdge, GraphNode, LogitTarget
from sparse_lens.circuits.exchange.graph_json import read_graph_json, write_graph_json
from sparse_lens.errors import CircuitError

from .schema_checker import violations


def small_graph() -> AttributionGraph:
    """Two layers, three tokens, a node of every kind, and one channel at two sites of a layer."""
    nodes = (
        GraphNode("embedding", "", None, 0, 7),
        GraphNode("embedding", "", None, 1, 7),
        GraphNode("feature", "mlp_neuron", 0, 1, 5, activation=1.5, influence=0.25, label='quote "detector"'),
        GraphNode("feature", "attn_q", 0, 1, 5, activation=-2.0, influence=0.5),
        GraphNode("error", "mlp_out", 1, 2, None, influence=0.75),
        GraphNode("error", "attn_out", 1, 2, None),
        GraphNode("feature", "final_resid", None, 2, 3),
        GraphNode("logit", "", None, 2, 9),
        GraphNode("logit", "", None, 2, 4, label="the distractor"),
    )
    edges = (GraphEdge(0, 2, 1.0), GraphEdge(2, 3, -0.5), GraphEdge(3, 6, 0.125), GraphEdge(6, 7, 2.0), GraphEdge(4, 8, 1e-9))
    targets = (LogitTarget(9, '")\n', 0.75), LogitTarget(4, "') (p=1)", 0.125))
    return AttributionGraph("tiny", 2, ("a", " b", "\n"), nodes, edges, targets, "a b\n")


def test_graph_comes_back(tmp_path: Path) -> None:
    write_graph_json(tmp_path / "graph.json", small_graph())
    assert read_graph_json(tmp_path / "graph.json") == small_graph()


def test_file_keeps_to_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "Quotes, clean.json"
    write_graph_json(path, small_graph())
    assert violations(path, "graph_json.schema.json") == []
    content = json.loads(path.read_text())
    assert content["metadata"]["slug"] == "quotes-clean" and content["metadata"]["scan"] == "tiny"
    ids = [node["node_id"] for node in content["nodes"]]
    assert len(set(ids)) == len(ids) and len({node["jsNodeId"] for node in content["nodes"]}) == len(ids)
    assert ids[0] == "E_7_0" and ids[2] == "0_5_1" and ids[7] == "3_9_2"
    assert {part for link in content["links"] for part in (link["source"], link["target"])} <= set(ids)
    # Neuronpedia's limit: ids and features are read as numbers of 53 bits.
    assert all(abs(node["feature"]) < 1 << 53 for node in content["nodes"])


def test_schema_checker_finds_faults(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    write_graph_json(path, small_graph())
    content = json.loads(path.read_text())
    del content["nodes"][0]["clerp"]
    content["links"][0]["weight"] = "1"
    content["nodes"][1]["node_id"] = "E-7"
    path.write_text(json.dumps(content))
    assert len(violations(path, "graph_json.schema.json")) == 3


def theirs() -> dict[str, Any]:
    """A graph as circuit-tracer writes one for a model of three layers."""

    def node(node_id: str, feature: int, feature_type: str, **more: Any) -> dict[str, Any]:
        layer, _, position = node_id.split("_")
        common = {"node_id": node_id, "feature": feature, "layer": layer, "ctx_idx": int(position), "feature_type": feature_type}
        return common | {"jsNodeId": node_id, "clerp": "", "influence": None, "activation": None, "token_prob": 0.0} | more

    nodes = [
        node("0_35_1", 665, "cross layer transcoder", influence=0.5, activation=22.0, clerp="digits"),
        node("2_-1_1", -1, "mlp reconstruction error", influence=0.75),
        node("E_235_0", 0, "embedding"),
        node("4_31_1", 31, "logit", token_prob=0.25, clerp='Output "6" (p=0.250)'),
        node("4_30_1", 30, "logit", token_prob=0.5, is_target_logit=True, clerp='Output "4" (p=0.500)'),
    ]
    return {
        "metadata": {
            "slug": "digits",
            "scan": "other-model",
            "transcoder_list": [],
            "prompt_tokens": ["<bos>", "1"],
            "prompt": "1",
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [{"source": "E_235_0", "target": "0_35_1", "weight": 24.5}, {"source": "0_35_1", "target": "4_30_1", "weight": 3}],
    }


def test_graphs_of_circuit_tracer_are_read_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(theirs()))
    graph = read_graph_json(path)
    assert graph.n_layers == 3 and graph.model == "other-model"
    assert graph.nodes[0] == GraphNode("feature", "cross layer transcoder", 0, 1, 35, 22.0, 0.5, "digits")
    assert graph.nodes[1].kind == "error" and graph.nodes[1].layer == 2
    assert graph.nodes[2].channel == 235
    assert graph.targets == (LogitTarget(30, "4", 0.5), LogitTarget(31, "6", 0.25))
    assert graph.edges == (GraphEdge(2, 0, 24.5), GraphEdge(0, 4, 3.0))
    write_graph_json(path, graph)
    again = json.loads(path.read_text())
    assert [node["node_id"] for node in again["nodes"]] == [node["node_id"] for node in theirs()["nodes"]]
    assert [node["feature"] for node in again["nodes"]] == [node["feature"] for node in theirs()["nodes"]]
    assert read_graph_json(path) == graph


def test_impossible_graphs_are_refused() -> None:
    graph = small_graph()
    first = graph.nodes[0]
    broken = [
        {"edges": (GraphEdge(0, 99, 1.0),)},
        {"edges": (GraphEdge(0, 2, float("nan")),)},
        {"nodes": (*graph.nodes, first)},
        {"nodes": (dataclasses.replace(first, position=3), *graph.nodes[1:])},
        {"nodes": (dataclasses.replace(first, kind="token"), *graph.nodes[1:])},
        {"nodes": (dataclasses.replace(first, channel=None), *graph.nodes[1:])},
        {"nodes": (*graph.nodes[:2], dataclasses.replace(graph.nodes[2], layer=2), *graph.nodes[3:])},
        {"targets": graph.targets[:1]},
        {"targets": (LogitTarget(9, "", 1.5), graph.targets[1])},
    ]
    for change in broken:
        with pytest.raises(CircuitError):
            dataclasses.replace(graph, **change)  # type: ignore[arg-type]


def test_nodes_that_would_share_an_id_are_refused(tmp_path: Path) -> None:
    graph = small_graph()
    other = GraphNode("feature", "cross layer transcoder", 0, 1, 5)
    with pytest.raises(CircuitError, match="would have the id 0_5_1"):
        write_graph_json(tmp_path / "graph.json", dataclasses.replace(graph, nodes=(*graph.nodes, other)))
    large = GraphNode("feature", "attn_k", 0, 1, 1 << 20)
    with pytest.raises(CircuitError, match="too large for an id"):
        write_graph_json(tmp_path / "graph.json", dataclasses.replace(graph, nodes=(*graph.nodes, large)))
    assert not (tmp_path / "graph.json").exists()


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_refused_or_read(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "graph.json"
    write_graph_json(path, small_graph())
    whole = path.read_text()
    choose = random.Random(seed)
    for _ in range(40):
        path.write_text(whole[: choose.randrange(len(whole) - 1)])
        with pytest.raises(CircuitError):
            read_graph_json(path)
        content = json.loads(whole)
        spoil(content, choose)
        path.write_text(json.dumps(content))
        try:
            read_graph_json(path)
        except CircuitError as error:
            assert len(str(error)) < 2000


def spoil(content: Any, choose: random.Random) -> None:
    """Put a value of the wrong kind somewhere, or take one away."""
    place, key = content, None
    while isinstance(place, dict | list) and place and (key is None or choose.random() < 0.8):
        parent, key = place, choose.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place = parent[key]
    values: list[Any] = [None, -1, 1e999, "x", [], {}, True, 10**400, "9" * 70_000, [[]] * 3, float("nan")]
    if isinstance(parent, dict) and choose.random() < 0.2:
        del parent[key]
    else:
        parent[key] = choose.choice(values)


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "[]", "3", '{"metadata": 3}', "\x00", '{"a": ' + "9" * 5000 + "}"])
def test_other_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "graph.json").write_text(content)
    with pytest.raises(CircuitError):
        read_graph_json(tmp_path / "graph.json")
    with pytest.raises(CircuitError, match="cannot be read"):
        read_graph_json(tmp_path / "missing.json")
