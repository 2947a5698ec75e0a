"""Circuits of heads and MLPs, the level at which the Mechanistic Interpretability Benchmark (arXiv:2504.13151) compares them.

Names after hannamw/EAP-IG, `src/eap/graph.py`: nodes `input`, `a{layer}.h{head}`, `m{layer}`, `logits`; an edge `m0->a1.h2<q>` says
that the queries of head 2 in layer 1 read, straight from the residual stream, what the MLP of layer 0 wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sparse_lens.errors import CircuitError

INPUT, LOGITS = "input", "logits"
_INDEX = "(0|[1-9][0-9]{0,4})"
COMPONENT = re.compile(rf"input|logits|m(?P<mlp>{_INDEX})|a(?P<layer>{_INDEX})\.h(?P<head>{_INDEX})")
_EDGE = re.compile(r"(?P<source>[a-z0-9.]{1,16})->(?P<target>[a-z0-9.]{1,16})(<(?P<letter>[qkv])>)?")


@dataclass(frozen=True)
class ComponentGraph:
    """Heads and MLPs, and the edges between them: which are in the circuit, and what each is worth.

    `nodes` and `edges` are the names in the circuit; scores are importances by name, of as many as were scored. Raises
    `CircuitError` for a name that the sizes do not have, and for an edge against the order of computation.
    """

    n_layers: int
    n_heads: int
    d_model: int
    nodes: frozenset[str] = frozenset()
    edges: frozenset[str] = frozenset()
    node_scores: Mapping[str, float] = field(default_factory=dict)
    edge_scores: Mapping[str, float] = field(default_factory=dict)
    parallel: bool = False

    def __post_init__(self) -> None:
        for name in (*self.nodes, *self.node_scores):
            self.step(name)
        for name in (*self.edges, *self.edge_scores):
            self._check_edge(name)

    def all_nodes(self) -> Iterator[str]:
        """Every node of a model of these sizes, in the order of computation."""
        yield INPUT
        for layer in range(self.n_layers):
            yield from (f"a{layer}.h{head}" for head in range(self.n_heads))
            yield f"m{layer}"
        yield LOGITS

    def all_edges(self) -> Iterator[str]:
        """Every edge of a model of these sizes; their number grows with the square of layers times heads."""
        steps = {name: self.step(name) for name in self.all_nodes()}
        for target, read in steps.items():
            tails = [f"{target}<{letter}>" for letter in "qkv"] if target.startswith("a") else [target]
            for source, written in steps.items():
                if written < read:
                    yield from (f"{source}->{tail}" for tail in tails)

    def step(self, name: str) -> int:
        """When a node is computed, in half-layers from 0, the input; it reads what was written at earlier steps.

        Raises `CircuitError` for a name that a model of these sizes does not have.
        """
        match = COMPONENT.fullmatch(name)
        layer = -1 if match is None else int(match["layer"] or match["mlp"] or 0)
        if match is None or layer >= self.n_layers or int(match["head"] or 0) >= self.n_heads:
            raise CircuitError(
                f"no component {name[:40]!r} in a model of {self.n_layers} layers and {self.n_heads} heads; names are input, "
                "a0.h0, m0, logits"
            )
        if name in (INPUT, LOGITS):
            return 0 if name == INPUT else 2 * self.n_layers + 1
        return 2 * layer + 1 + (match["mlp"] is not None and not self.parallel)

    def _check_edge(self, name: str) -> None:
        match = _EDGE.fullmatch(name)
        if match is None or (match["letter"] is None) == match["target"].startswith("a"):
            raise CircuitError(f"no edge is called {name[:60]!r}; edges are called input->a0.h0<q>, a0.h0->m0, m0->logits")
        if not self.step(match["source"]) < self.step(match["target"]):
            raise CircuitError(
                f"the edge {name!r} runs against the order of computation; correct it, or set parallel_attn_mlp right"
            )
