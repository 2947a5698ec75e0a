"""How many edges a circuit has, how many it would have by density alone, and why two circuits' counts differ.

A circuit of `p` possible pairs of nodes in a model of density `d` has `p d` edges if its nodes know nothing of the zeros. So the
log ratio of two counts is that of possible pairs, plus that of densities, plus a remainder: only the remainder is about circuits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.edges.latents import as_channels
from sparse_lens.circuits.edges.space import possible_edges
from sparse_lens.circuits.sites import NodeSpace
from sparse_lens.circuits.weights import WeightGraph
from sparse_lens.results import Result


@dataclass(frozen=True)
class EdgeDensity:
    """Edges between a circuit's nodes by matrix: `edges` there are, `possible` pairs, and the matrix' `nonzeros` of `entries`."""

    edges: dict[str, int]
    possible: dict[str, int]
    nonzeros: dict[str, int]
    entries: dict[str, int]

    @property
    def n_edges(self) -> int:
        return sum(self.edges.values())

    @property
    def n_possible(self) -> int:
        return sum(self.possible.values())

    @property
    def expected(self) -> float:
        """Edges that there would be with each matrix' nonzeros put anywhere in it."""
        return sum(self.possible[name] * self.nonzeros[name] / self.entries[name] for name in self.edges)

    def null(self, *, n_draws: int = 1000, seed: int = 0) -> Result:
        """Edges with every zero pattern shuffled: mean and 95 % of the draws; `null` is the number that there are."""
        rng = np.random.default_rng(seed)
        total = np.zeros(n_draws)
        for name, pairs in self.possible.items():
            total += rng.hypergeometric(self.nonzeros[name], self.entries[name] - self.nonzeros[name], pairs, n_draws)
        low, high = np.percentile(total, [2.5, 97.5])
        return Result(float(total.mean()), float(low), float(high), null=float(self.n_edges), n=n_draws)


def edge_density(space: NodeSpace, mask: Bool[Tensor, " node"], graph: WeightGraph) -> EdgeDensity:
    """Count edges and possible pairs between the nodes of `mask`, matrix by matrix; of latents, of virtual weights."""
    space, graph = as_channels(space, graph)
    possible = possible_edges(space, mask, graph, nonzero_only=False)
    edges = possible_edges(space, mask, graph, nonzero_only=True)
    patterns = {name: _pattern(graph, name) for name in possible}
    return EdgeDensity(
        edges={name: int(found.sum()) for name, found in edges.items()},
        possible={name: int(found.sum()) for name, found in possible.items()},
        nonzeros={name: int(pattern.sum()) for name, pattern in patterns.items()},
        entries={name: pattern.numel() for name, pattern in patterns.items()},
    )


def _pattern(graph: WeightGraph, name: str) -> Tensor:
    kind, _, layer = name.partition(".")
    if not layer:
        return graph.embedding if kind == "embedding" else graph.unembedding
    fields = {"output": "o", "mlp_in": "fc_in", "mlp_out": "fc_out"}
    return getattr(graph.layers[int(layer)], fields.get(kind, kind))


def log_ratio_parts(first: EdgeDensity, second: EdgeDensity, kept: Sequence[int] | None = None) -> dict[str, float]:
    """`log(first / second)` of edges as `pairs + density + remainder`; with `kept` edge counts after an edge search, also `search`.

    `remainder` is how much oftener than by chance nodes of the first circuit are connected, over the same of the second;
    `search` what the search of edges took away from the ratio (negative) or added to it. The parts add up to `total`. Not a
    number where a count is 0.
    """
    pairs = _log_ratio(first.n_possible, second.n_possible)
    density = _log_ratio(first.expected, second.expected) - pairs
    total = _log_ratio(first.n_edges, second.n_edges)
    parts = {"pairs": pairs, "density": density, "remainder": total - pairs - density}
    if kept is not None:
        parts["search"] = _log_ratio(*kept) - total
        total = _log_ratio(*kept)
    return parts | {"total": total}


def _log_ratio(first: float, second: float) -> float:
    return math.log(first / second) if first > 0 and second > 0 else math.nan
