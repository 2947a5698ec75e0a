"""Attribution graphs as JSON, in the form that circuit-tracer writes and Neuronpedia and its local viewer show.

Sources of the schema: hijohnnylin/neuronpedia, `apps/webapp/app/api/graph/graph-schema.json`; safety-research/circuit-tracer,
`circuit_tracer/frontend/graph_models.py`, whose ids are `layer_feature_position`, three integers (`E_token_position` for tokens,
`-1` as the feature of an error).

A layer has one kind of feature there and several kinds of channels and latents here. So that no two ids are equal, the nodes of
each site are numbered from another multiple of 2^20 on (`mlp_neuron` from 0: neurons keep their index), their errors are -1, -2,
and so on. Each node also says `site` and `channel` in plain words, which other readers ignore. They draw types that they do not
know as features.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_lens.circuits.checked import field, integer, items, mapping, number, read_json_object, text, wrong
from sparse_lens.circuits.exchange.attribution_graph import AttributionGraph, GraphEdge, GraphNode, LogitTarget
from sparse_lens.circuits.sites import FINAL_SITE, LAYER_SITES, RESIDUAL_SITES
from sparse_lens.errors import CircuitError
from sparse_lens.files import new_file

EMBEDDING, LOGIT, ERROR, TRANSCODER = "embedding", "logit", "mlp reconstruction error", "cross layer transcoder"
"""The feature types that circuit-tracer knows."""

_STRIDE = 1 << 20
_SITES = ("mlp_neuron", *(site for site in LAYER_SITES if site != "mlp_neuron"), FINAL_SITE, *RESIDUAL_SITES)
_NODE_ID = re.compile(r"(E|-?\d{1,15})_(-?\d{1,15})_(\d{1,15})")
_MOST_LAYERS = 1 << 12


def write_graph_json(path: str | Path, graph: AttributionGraph, *, slug: str | None = None) -> None:
    """Write the graph to one JSON file; `slug` names it in viewers (by default after the file).

    Raises `OutputError` if the place cannot be written, `CircuitError` for a channel of 2^20 or more and for nodes that would
    share an id: those of two sites in one layer, neither of which is a site of this package.
    """
    path = Path(path)
    rows = [_node_row(node, graph) for node in graph.nodes]
    ids = [row["node_id"] for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise CircuitError(
            f"two nodes of the graph would have the id {twice}; name their sites as in this package, or write two files"
        )
    content = {
        "metadata": {
            "slug": slug or re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "graph",
            "scan": graph.model,
            "transcoder_list": [],
            "prompt_tokens": list(graph.tokens),
            "prompt": graph.prompt or "".join(graph.tokens),
            "schema_version": 1,
            "info": {"generator": {"name": "sparse_lens"}},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": rows,
        "links": [{"source": ids[e.source], "target": ids[e.target], "weight": e.weight} for e in graph.edges],
    }
    with new_file(path) as staging:
        staging.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_graph_json(path: str | Path) -> AttributionGraph:
    """The graph in a JSON file of this package, of circuit-tracer or of Neuronpedia.

    Nodes of others are `feature` or `error` nodes whose site is their feature type. Raises `CircuitError` for a file that is
    missing, too large, no such JSON, or whose links name nodes that it does not have.
    """
    content = read_json_object(path)
    metadata = mapping(field(content, "metadata", str(path)), "metadata")
    tokens = [text(token, "a prompt token") for token in items(field(metadata, "prompt_tokens", "metadata"), "prompt_tokens")]
    rows = [mapping(row, "a node") for row in items(field(content, "nodes", str(path)), "nodes")]
    n_layers = _n_layers(rows)
    index = _indices(rows, path)
    links = [mapping(link, "a link") for link in items(field(content, "links", str(path)), "links")]
    return AttributionGraph(
        model=text(field(metadata, "scan", "metadata"), "scan"),
        n_layers=n_layers,
        tokens=tuple(tokens),
        nodes=tuple(_node(row, n_layers) for row in rows),
        edges=tuple(_edge(link, index) for link in links),
        targets=tuple(_target(row) for row in _by_rank(rows)),
        prompt=text(field(metadata, "prompt", "metadata"), "prompt"),
    )


def _node_row(node: GraphNode, graph: AttributionGraph) -> dict[str, Any]:
    token = next((target for target in graph.targets if node.kind == "logit" and target.token == node.channel), None)
    layer, middle = _layer_text(node, graph.n_layers), _middle(node)
    feature = {"feature": middle, "error": -1, "embedding": node.position, "logit": middle}[node.kind]
    # A feature's second id leaves out its position: viewers use it to find the same feature elsewhere in the prompt.
    place = 0 if node.kind == "feature" else node.position
    row = {
        "node_id": f"{layer}_{middle}_{node.position}",
        "feature": _paired(int(layer), middle) if node.kind == "feature" else feature,
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": _feature_type(node),
        "token_prob": 0.0 if token is None else token.probability,
        "is_target_logit": token is not None and token == graph.targets[0],
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{'L' if node.kind == 'logit' else layer}_{middle}-{place}",
        "clerp": node.label or ("" if token is None else f'Output "{token.text}" (p={token.probability:.3f})'),
        "influence": node.influence,
        "activation": node.activation,
    }
    if node.kind in ("feature", "error"):
        row |= {"site": node.site, "channel": node.channel}
    if token is not None:
        row |= {"token": token.text, "label": node.label}
    return row


def _layer_text(node: GraphNode, n_layers: int) -> str:
    """Tokens are layer E, final_resid comes after the last layer, the logits after that, as in circuit-tracer."""
    if node.kind == "embedding":
        return "E"
    if node.kind == "logit":
        return str(n_layers + 1)
    return str(n_layers if node.layer is None else node.layer)


def _middle(node: GraphNode) -> int:
    """The middle number of a node's id."""
    place = _SITES.index(node.site) if node.site in _SITES else 0
    if node.channel is None:
        return -1 - place
    if node.kind == "feature" and node.channel >= _STRIDE and node.site in _SITES:
        raise CircuitError(
            f"channel {node.channel} of {node.site} is too large for an id; at most {_STRIDE} channels can be written"
        )
    return node.channel + (place * _STRIDE if node.kind == "feature" else 0)


def _paired(x: int, y: int) -> int:
    """Cantor's pairing of layer and feature, by which viewers look a feature up."""
    return (x + y) * (x + y + 1) // 2 + y


def _feature_type(node: GraphNode) -> str:
    return {"embedding": EMBEDDING, "logit": LOGIT, "error": ERROR}.get(node.kind, node.site or TRANSCODER)


def _n_layers(rows: list[Mapping[Any, Any]]) -> int:
    """Two below the layer of the logits; without a logit, one more than the highest layer of a node."""
    logits = [_layer(row) for row in rows if row.get("feature_type") == LOGIT]
    highest = max((_layer(row) or 0 for row in rows), default=0)
    return max(1, (logits[0] or 0) - 1 if logits else highest + 1)


def _layer(row: Mapping[Any, Any]) -> int | None:
    """The layer as a number, None for tokens."""
    layer = field(row, "layer", "a node")
    if layer == "E":
        return None
    if isinstance(layer, str) and re.fullmatch(r"\d{1,4}", layer):
        layer = int(layer)
    return integer(layer, "the layer of a node", most=_MOST_LAYERS)


def _indices(rows: list[Mapping[Any, Any]], path: str | Path) -> dict[str, int]:
    index = {text(field(row, "node_id", "a node"), "node_id"): i for i, row in enumerate(rows)}
    if len(index) < len(rows):
        raise CircuitError(f"{path} has {len(rows) - len(index)} node ids twice; links to them mean nothing, write the graph again")
    return index


def _node(row: Mapping[Any, Any], n_layers: int) -> GraphNode:
    feature_type = text(field(row, "feature_type", "a node"), "feature_type")
    kind = {EMBEDDING: "embedding", LOGIT: "logit"}.get(feature_type, "error" if feature_type.endswith("error") else "feature")
    layer = _layer(row)
    inside = kind in ("feature", "error")
    own = inside and "site" in row and "channel" in row
    site = text(row["site"], "the site of a node") if own else feature_type
    channel = _own_channel(row) if own else _channel(row, kind)
    return GraphNode(
        kind=kind,
        site=site if inside else "",
        layer=layer if inside and site != FINAL_SITE and layer != n_layers else None,
        position=integer(field(row, "ctx_idx", "a node"), "ctx_idx"),
        channel=channel,
        activation=_maybe(row.get("activation"), "activation"),
        influence=_maybe(row.get("influence"), "influence"),
        label=text((row.get("label") if kind == "logit" and "label" in row else row.get("clerp")) or "", "the label of a node"),
    )


def _own_channel(row: Mapping[Any, Any]) -> int | None:
    return None if row["channel"] is None else integer(row["channel"], "the channel of a node")


def _channel(row: Mapping[Any, Any], kind: str) -> int | None:
    """The middle number of the id: `feature` holds a pairing of layer and index there."""
    if kind == "error":
        return None
    if match := _NODE_ID.fullmatch(str(row["node_id"])):
        return integer(int(match[2]), "the feature in a node_id")
    return integer(field(row, "feature", "a node"), "the feature of a node")


def _edge(link: Mapping[Any, Any], index: Mapping[str, int]) -> GraphEdge:
    ends = [text(field(link, end, "a link"), f"the {end} of a link") for end in ("source", "target")]
    if missing := [end for end in ends if end not in index]:
        raise CircuitError(
            f"a link names the node {missing[0]!r}, which the file does not have; it is damaged, write the graph again"
        )
    return GraphEdge(index[ends[0]], index[ends[1]], number(field(link, "weight", "a link"), "the weight of a link"))


def _by_rank(rows: list[Mapping[Any, Any]]) -> list[Mapping[Any, Any]]:
    """The logits, the one that was asked about first."""
    return sorted((row for row in rows if row.get("feature_type") == LOGIT), key=lambda row: row.get("is_target_logit") is not True)


def _target(row: Mapping[Any, Any]) -> LogitTarget:
    """The target that a logit node stands for; its text is in the label, in the words of circuit-tracer."""
    token = _channel(row, "logit")
    if token is None:
        raise wrong("the token of a logit", token, "an integer")
    label = text(row.get("clerp") or "", "the label of a node")
    quoted = re.fullmatch(r'Output "(.*)" \(p=[^()]*\)', label, flags=re.DOTALL)
    spelled = text(row["token"], "the token of a logit") if "token" in row else (quoted[1] if quoted else label)
    return LogitTarget(token, spelled, number(row.get("token_prob", 0.0), "token_prob"))


def _maybe(value: Any, what: str) -> float | None:
    return None if value is None else number(value, f"the {what} of a node")
