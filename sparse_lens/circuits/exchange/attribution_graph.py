"""An attribution graph as data: who drove whom on one prompt, from its tokens to the logits of its likely answers.

The terms are those of "Circuit Tracing" (Ameisen et al., transformer-circuits.pub, 2025). How a graph is computed is no concern of
this file, how it is written of `graph_json.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparse_lens.errors import CircuitError

NODE_KINDS = ("feature", "error", "embedding", "logit")


@dataclass(frozen=True)
class GraphNode:
    """One node at one position of the prompt.

    | kind | `site` | `layer` | `channel` |
    |---|---|---|---|
    | `feature`: a channel or latent | a site's kind ("mlp_neuron"), or what another program calls it | its layer | its index |
    | `error`: what a dictionary leaves over | as above | its layer | None |
    | `embedding`: a token of the prompt | "" | None | its token id |
    | `logit`: a target | "" | None | its token id |

    The layer of final_resid is None, too. `influence` is circuit-tracer's: the share of all influence on the targets that this
    node and those more influential have together, so that a node is shown at any threshold from its influence on.
    """

    kind: str
    site: str
    layer: int | None
    position: int
    channel: int | None
    activation: float | None = None
    influence: float | None = None
    label: str = ""


@dataclass(frozen=True)
class GraphEdge:
    """The direct effect of a node on another, both by their index in `AttributionGraph.nodes`."""

    source: int
    target: int
    weight: float


@dataclass(frozen=True)
class LogitTarget:
    """A token whose logit the graph explains, and its probability under the model."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class AttributionGraph:
    """Nodes, edges, the prompt's tokens as texts, and the targets, the one that was asked about first.

    Raises `CircuitError` for edges to nodes that do not exist, positions outside the prompt, two equal nodes, numbers that are not
    finite, and logit nodes without a target.
    """

    model: str
    n_layers: int
    tokens: tuple[str, ...]
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    targets: tuple[LogitTarget, ...]
    prompt: str = ""

    def __post_init__(self) -> None:
        targets, seen = {target.token for target in self.targets}, set()
        for index, node in enumerate(self.nodes):
            problem = _problem(node, len(self.tokens), self.n_layers)
            if problem is None and node.kind == "logit" and node.channel not in targets:
                problem = f"is the logit of token {node.channel}, no target"
            identity = (node.kind, node.site, node.layer, node.position, node.channel)
            if problem is None and identity in seen:
                problem = f"is there twice: {identity}"
            if problem is not None:
                raise CircuitError(f"node {index} of the attribution graph {problem}; correct or leave out that node")
            seen.add(identity)
        for edge in self.edges:
            if not (0 <= edge.source < len(self.nodes) and 0 <= edge.target < len(self.nodes) and math.isfinite(edge.weight)):
                raise CircuitError(f"{edge} of the attribution graph does not join two of its {len(self.nodes)} nodes by a number")
        if any(not 0 <= target.probability <= 1 for target in self.targets) or len(targets) < len(self.targets):
            raise CircuitError(
                f"the targets {self.targets} have no probabilities between 0 and 1, or one comes twice; correct them"
            )


def _problem(node: GraphNode, n_positions: int, n_layers: int) -> str | None:
    """What is wrong with a node by itself, if anything."""
    if node.kind not in NODE_KINDS:
        return f"is of the kind {node.kind!r}, not one of {', '.join(NODE_KINDS)}"
    if not 0 <= node.position < n_positions:
        return f"is at position {node.position} of a prompt of {n_positions} tokens"
    if node.layer is not None and not 0 <= node.layer < n_layers:
        return f"is in layer {node.layer} of {n_layers}"
    if (node.channel is None) != (node.kind == "error") or (node.channel is not None and node.channel < 0):
        return f"has the channel {node.channel}"
    if any(value is not None and not math.isfinite(value) for value in (node.activation, node.influence)):
        return "has an activation or influence that is not finite"
    return None
