"""What joins the nodes of a circuit: its edges with their weights, from the tokens to the answers, as data.

Most edges run from node to node. Three of their ends are no nodes: tokens and answers, residual channels as the embedding writes
them, and channels of the heads' outputs, which mix a value channel by the head's pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.cards.input_differences import input_differences
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.space import EdgeSpace, candidate_edges
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.errors import CircuitError
from sparse_lens.hooks.layout import decoder_layout, layer_matrices
from sparse_lens.tasks import TaskBatch
from sparse_lens.tasks.tokens import Encoder

TOKEN, ANSWER, EMBEDDING, HEAD_OUT = "token", "answer", "embedding", "head_out"
"""Ends of edges that are no nodes; `head_out` has its layer behind it, as sites have."""

_ENDS = {
    "q": ("attn_in", "attn_q"),
    "k": ("attn_in", "attn_k"),
    "v": ("attn_in", "attn_v"),
    "output": (HEAD_OUT, "attn_out"),
    "mlp_in": ("mlp_in", "mlp_neuron"),
    "mlp_out": ("mlp_neuron", "mlp_out"),
}
_FIELDS = {"q": "q", "k": "k", "v": "v", "output": "o", "mlp_in": "fc_in", "mlp_out": "fc_out"}


@dataclass(frozen=True, order=True)
class Place:
    """An end of an edge: node `index` of the site of that name, or one of the ends that are no nodes."""

    site: str
    index: int

    @property
    def kind(self) -> str:
        """The site's name without its layer."""
        return self.site.partition(".")[0]

    @property
    def layer(self) -> int | None:
        """The layer, None for what stands outside all layers."""
        layer = self.site.partition(".")[2]
        return int(layer) if layer else None


@dataclass(frozen=True)
class Connection:
    """An edge: its kind, ends and weight; `effect` is the weight times how far its input differs within a pair of prompts."""

    kind: str
    source: Place
    target: Place
    weight: float
    effect: float | None = None

    @property
    def size(self) -> float:
        """What edges are ranked by: the effect's size, the weight's where there is none."""
        return abs(self.weight if self.effect is None else self.effect)


@dataclass(frozen=True)
class Connections:
    """The edges of a circuit, largest first; `total` says how many there are, `reason` why there are none to show.

    `searched` tells edges that a search has kept from all weights between kept nodes. `texts` are the strings of the tokens at the
    ends; the other fields say how channels lie in heads and in the residual stream.
    """

    edges: tuple[Connection, ...]
    total: int
    searched: bool
    texts: Mapping[int, str]
    n_head: int
    n_kv_head: int
    d_head: int
    d_model: int
    reason: str = ""

    @cached_property
    def arriving(self) -> Mapping[Place, tuple[Connection, ...]]:
        """The edges by their target."""
        return _grouped(self.edges, "target")

    @cached_property
    def leaving(self) -> Mapping[Place, tuple[Connection, ...]]:
        """The edges by their source; those of a head's output also by the value channel that it mixes."""
        found = dict(_grouped(self.edges, "source"))
        for place, edges in list(found.items()):
            if place.kind == HEAD_OUT:
                value = Place(f"attn_v.{place.layer}", self.value_channel(place.index))
                found[value] = found.get(value, ()) + edges
        return found

    def head(self, place: Place) -> int:
        """The query head that a channel of q or of a head's output belongs to; of k and v, the first that uses it."""
        head = place.index // self.d_head
        return head * (self.n_head // self.n_kv_head) if place.kind in ("attn_k", "attn_v") else head

    def value_channel(self, channel: int) -> int:
        """The value channel that a channel of the heads' outputs mixes."""
        head, rest = divmod(channel, self.d_head)
        return head // (self.n_head // self.n_kv_head) * self.d_head + rest


def circuit_connections(bridge: Any, circuit: Circuit, prompts: TaskBatch | None = None, *, most: int = 20_000) -> Connections:
    """The edges of `circuit`, its `most` largest: those that its search kept, or else all weights between its nodes.

    `prompts` are pairs of its task: they give the effects, and, for a circuit without searched edges, the tokens and answers
    that delimit it; without them such a circuit has no edges to show. Nor have circuits of latents. Raises `CircuitError`
    for another model.
    """
    space, layout = circuit.check_model(bridge), decoder_layout(bridge)
    heads = {"n_head": layout.n_head, "n_kv_head": layout.n_kv_head, "d_head": layout.widths["attn_q"] // layout.n_head}
    facts: dict[str, Any] = {"searched": circuit.edges is not None, "d_model": layout.d_model} | heads
    if space.has_dictionaries:
        return Connections((), 0, texts={}, reason="weights do not apply to the latents of a dictionary", **facts)
    if circuit.edges is not None:
        index: EdgeSpace = circuit.edges.kept
    elif prompts is None:
        return Connections((), 0, texts={}, reason="which weights count depends on prompts of the task; none were given", **facts)
    else:
        index = candidate_edges(space, circuit.mask, weight_graph(bridge, prompts))
    differences = None if prompts is None else input_differences(bridge, circuit, prompts)
    edges = _largest(bridge, index, differences, most)
    return Connections(edges, index.n_edges, texts=_texts(bridge, edges), **facts)


def _largest(bridge: Any, index: EdgeSpace, differences: Mapping[str, Tensor] | None, most: int) -> tuple[Connection, ...]:
    """The edges of largest effect (or weight) as objects; the largest of each matrix come first into question."""
    found: list[Connection] = []
    for name, pairs in index.index.items():
        rows, columns = pairs.T
        weight = weight_matrix(bridge, name)[rows, columns].detach().float().cpu()
        effect = None if differences is None else weight * _moved(differences, name, columns)
        order = (weight if effect is None else effect).abs().argsort(descending=True, stable=True)[:most]
        for i in order.tolist():
            source, target = _ends(name, int(columns[i]), int(rows[i]))
            found.append(Connection(name.partition(".")[0], source, target, float(weight[i]), _at(effect, i)))
    return tuple(sorted(found, key=lambda edge: -edge.size)[:most])


def _moved(differences: Mapping[str, Tensor], name: str, columns: Tensor) -> Tensor:
    """How far each input differs; a token is there or not."""
    return torch.ones(len(columns)) if name == "embedding" else differences[name][columns]


def _at(values: Tensor | None, index: int) -> float | None:
    return None if values is None else float(values[index])


def _ends(name: str, column: int, row: int) -> tuple[Place, Place]:
    """Source and target of an entry of a matrix; the embedding's rows are tokens, its columns what it writes."""
    kind, _, layer = name.partition(".")
    if kind == "embedding":
        return Place(TOKEN, row), Place(EMBEDDING, column)
    if kind == "unembedding":
        return Place("final_resid", column), Place(ANSWER, row)
    source, target = _ENDS[kind]
    return Place(f"{source}.{layer}", column), Place(f"{target}.{layer}", row)


def weight_matrix(bridge: Any, name: str) -> Float[Tensor, "out in"]:
    """The matrix that a name of `EdgeSpace` stands for, `[output, input]`; the embedding is `[vocab, d_model]`."""
    kind, _, layer = name.partition(".")
    if kind == "embedding":
        return bridge.W_E
    if kind == "unembedding":
        return bridge.W_U.T
    if kind not in _FIELDS:
        raise CircuitError(f"there is no matrix {name!r}; a name is a kind of edge with its layer, as in `mlp_in.0`")
    return getattr(layer_matrices(bridge, int(layer)), _FIELDS[kind])


def _texts(bridge: Any, edges: tuple[Connection, ...]) -> dict[int, str]:
    ids = {place.index for edge in edges for place in (edge.source, edge.target) if place.kind in (TOKEN, ANSWER)}
    encoder = None if bridge.tokenizer is None else Encoder(bridge.tokenizer)
    return {token: str(token) if encoder is None else encoder.text(token) for token in sorted(ids)}


def _grouped(edges: tuple[Connection, ...], end: str) -> Mapping[Place, tuple[Connection, ...]]:
    found: dict[Place, list[Connection]] = {}
    for edge in edges:
        found.setdefault(getattr(edge, end), []).append(edge)
    return {place: tuple(group) for place, group in found.items()}
