"""The nodes and edges of one prompt's attribution graph: nothing gets lost, what is not shown becomes error nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.attribution.direct_effects import DirectEffects, LinearRun
from sparse_lens.circuits.attribution.prompt_tokens import EncodedPrompt
from sparse_lens.circuits.exchange.attribution_graph import GraphEdge, GraphNode

Marks = dict[str, Bool[Tensor, "pos _"]]
"""Nodes by site, as marks on positions and latents; sites without any may be missing."""

CONSTANTS = "constants"
"""The site of the nodes that stand for biases and positions."""


def written_graph(run: LinearRun, prompt: EncodedPrompt, kept: Marks) -> tuple[tuple[GraphNode, ...], tuple[GraphEdge, ...]]:
    """All nodes in the order of computation, with their influence, and all edges between them; `kept` that lead nowhere go."""
    graph = _Graph(run, prompt, kept)
    features = graph.add_features()
    logits = graph.add_logits()
    return graph.with_influence(features, logits)


@dataclass(eq=False)
class _Graph:
    """Nodes and edges of the graph of `kept`, as they are found."""

    run: LinearRun
    prompt: EncodedPrompt
    kept: Marks
    sources: dict[tuple[str, int, int], GraphNode] = field(default_factory=dict)
    effects: dict[tuple[GraphNode, GraphNode], float] = field(default_factory=dict)
    targets: dict[GraphNode, list[GraphNode]] = field(default_factory=dict)
    inputs: set[GraphNode] = field(default_factory=set)

    def add_features(self) -> list[GraphNode]:
        """The kept nodes, and the edges into them."""
        names = [site.name for site in self.run.space.sites if site.name in self.kept]
        features = {name: self._features(name) for name in names}
        for name, nodes in features.items():
            left = iter(nodes)
            for effects in self.run.of_nodes(name, self.kept[name].nonzero()):
                self._add(effects, [next(left) for _ in effects.value])
        return [node for nodes in features.values() for node in nodes]

    def add_logits(self) -> list[GraphNode]:
        """The targets, and the edges into them."""
        last, answers = len(self.prompt.tokens) - 1, self.prompt.answers
        values = self.run.logits[0, last].detach()
        logits = [GraphNode("logit", "", None, last, token, activation=float(values[token])) for token in answers]
        self._add(self.run.of_logits(last, answers), logits)
        return logits

    def _features(self, name: str) -> list[GraphNode]:
        site = next(site for site in self.run.space.sites if site.name == name)
        values = self.run.leaves[name][0].detach()
        nodes = []
        for position, latent in self.kept[name].nonzero().tolist():
            node = GraphNode("feature", site.kind, site.layer, position, latent, activation=float(values[position, latent]))
            self.sources[name, position, latent] = node
            nodes.append(node)
        return nodes

    def _add(self, effects: DirectEffects, targets: list[GraphNode]) -> None:
        """Edges into some targets: from kept nodes, tokens, and what stands for all that is not kept."""
        for row, target in enumerate(targets):
            for source, weight in self._into(effects, row, target):
                if weight != 0:
                    self.effects[source, target] = weight
                    self.targets.setdefault(source, []).append(target)
                    if source.kind != "feature":
                        self.inputs.add(source)

    def _into(self, effects: DirectEffects, row: int, target: GraphNode) -> Iterator[tuple[GraphNode, float]]:
        for site in self.run.space.sites:
            part, rest = effects.nodes[site.name][row], effects.rest.get(site.name)
            if site.name in self.kept:
                kept = self.kept[site.name]
                for position, latent in (kept & (part != 0)).nonzero().tolist():
                    yield self.sources[site.name, position, latent], float(part[position, latent])
                part = part.masked_fill(kept, 0)
            left = part.sum(-1) if rest is None else part.sum(-1) + rest[row]
            for position in left.nonzero().flatten().tolist():
                label = f"all else at {site.name}"
                yield GraphNode("error", site.kind, site.layer, position, None, label=label), float(left[position])
        for position in effects.tokens[row].nonzero().flatten().tolist():
            yield self._token(position), float(effects.tokens[row, position])
        yield GraphNode("error", CONSTANTS, None, target.position, None, label="biases and positions"), float(effects.constant[row])

    def _token(self, position: int) -> GraphNode:
        text, token = self.prompt.texts[position], self.prompt.tokens[position]
        return GraphNode("embedding", "", None, position, token, label=text)

    def with_influence(
        self, features: list[GraphNode], logits: list[GraphNode]
    ) -> tuple[tuple[GraphNode, ...], tuple[GraphEdge, ...]]:
        """Everything on a way to a logit, as the graph has it."""
        alive = set(logits)
        for node in reversed(features):
            if any(target in alive for target in self.targets.get(node, ())):
                alive.add(node)
        effects = {pair: weight for pair, weight in self.effects.items() if pair[1] in alive and pair[0] in alive | self.inputs}
        inputs = sorted({source for source, _ in effects} & self.inputs, key=_place)
        nodes = [*inputs, *(node for node in features if node in alive), *logits]
        index = {node: place for place, node in enumerate(nodes)}
        edges = tuple(GraphEdge(index[source], index[target], weight) for (source, target), weight in effects.items())
        shares = shown_from(edges, len(nodes), [1.0, -1.0][: len(logits)])
        shown = [replace(node, influence=share) for node, share in zip(nodes, shares, strict=False)]
        return (*shown, *logits), edges


def _place(node: GraphNode) -> tuple[str, str, int, int]:
    return (node.kind, node.site, -1 if node.layer is None else node.layer, node.position)


def shown_from(edges: Sequence[GraphEdge], n_nodes: int, signs: Sequence[float]) -> list[float]:
    """For every node but the targets, which come last: the share of influence that it and the more influential have together.

    `signs` are those of the targets' logits in what is explained; sources come before what they act on.
    """
    n = n_nodes - len(signs)
    weights = torch.zeros(n_nodes, n_nodes, dtype=torch.float64)
    for edge in edges:
        weights[edge.target, edge.source] = edge.weight
    start = (torch.tensor(signs, dtype=torch.float64) @ weights[n:]).abs()
    shares = weights.abs() / weights.abs().sum(1, keepdim=True).clamp(min=1e-300)
    influence = (start / start.sum().clamp(min=1e-300))[:n]
    for node in reversed(range(n)):
        influence = influence + influence[node] * shares[node, :n]
    order = influence.argsort(descending=True, stable=True)
    shown = torch.empty_like(influence)
    shown[order] = influence[order].cumsum(0) / influence.sum().clamp(min=1e-300)
    return shown.clamp(max=1.0).tolist()
