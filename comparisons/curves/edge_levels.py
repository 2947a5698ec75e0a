"""Edges of one circuit at three levels, side by side: without all three one side or the other wins by definition.

| level | what is counted |
|---|---|
| structural | (virtual) weights that are not 0, between nodes that a search of nodes has kept |
| functional | the fewest effects between kept MLP nodes of different layers that are faithful under edge patching |
| searched | weights that a search of edges has kept at the same target |

Structural edges also come with their possible pairs, what the density of each matrix alone would give, and the null of shuffled
zeros. The log ratio of two circuits' counts is split into possible pairs, density, a remainder, and what the search of edges
changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparse_lens.circuits import Circuit
from sparse_lens.circuits.edges.counting import count_qk_pairs
from sparse_lens.circuits.edges.density import edge_density
from sparse_lens.circuits.edges.functional import functional_graph
from sparse_lens.circuits.edges.latents import count_skips
from sparse_lens.circuits.edges.space import EDGE_KINDS
from sparse_lens.circuits.search.problems import SearchProblem
from sparse_lens.results import Result, exact, not_measurable

FUNCTIONAL_PAIRS = 16
"""Search pairs on which functional edges are found."""

FUNCTIONAL_NODES = 256
"""Kept MLP nodes up to which they are found: a run of the model for each, a dozen times over, is what they cost."""

TOO_LARGE = f"functional edges are found between up to {FUNCTIONAL_NODES}"
"""How the reason ends where there are more."""


@dataclass(frozen=True)
class EdgeLevels:
    """Counts of one circuit: `results` by name, `by_kind` by level and kind, and the density that `decompose` needs."""

    results: Mapping[str, Result]
    by_kind: Mapping[str, Mapping[str, Result]] = field(default_factory=dict)


def edge_levels(problem: SearchProblem, nodes: Circuit, searched: Circuit | None, *, functional: bool) -> EdgeLevels:
    """Edges of `nodes` (a circuit without searched edges), and of the same after a search of edges, where there was one.

    `structural_edges` has the mean of shuffled zeros as its null; `possible_pairs` and `expected_edges` are what `decompose` takes
    apart. Functional edges cost about as many runs as the circuit has latents, times a dozen: without `functional`, not measured.
    """
    density = edge_density(problem.space, nodes.mask, problem.graph)
    null = density.null()
    results = {
        "structural_edges": Result(float(density.n_edges), null=null.value),
        "possible_pairs": exact(density.n_possible),
        "expected_edges": Result(density.expected, null.lo, null.hi),
        "qk_pairs": exact(count_qk_pairs(problem.space, nodes.mask, problem.graph)),
        "skip_pairs": exact(count_skips(problem.space, nodes.mask, problem.graph)),
    }
    by_kind = {"structural": _by_kind(density.edges), "possible": _by_kind(density.possible)}
    if searched is None or searched.edges is None:
        results["searched_edges"] = not_measurable("edges were not searched at this target")
    else:
        results["searched_edges"] = exact(searched.edges.kept.n_edges)
        by_kind["searched"] = {kind: exact(count) for kind, count in searched.edges.kept.counts().items()}
    return EdgeLevels(results | _functional(problem, nodes, functional), by_kind)


def _functional(problem: SearchProblem, nodes: Circuit, wanted: bool) -> dict[str, Result]:
    if not wanted:
        return _no_functional("functional edges were not asked for at this target")
    kept = nodes.space.split(nodes.mask)
    n_nodes = sum(int(kept[site.name][: site.n_latents].sum()) for site in nodes.space.sites if site.kind == "mlp_neuron")
    if n_nodes > FUNCTIONAL_NODES:
        return _no_functional(f"{n_nodes} MLP nodes are kept; {TOO_LARGE}")
    chosen = problem.search_prompts.pair < FUNCTIONAL_PAIRS
    prompts = problem.search_prompts.rows(chosen.nonzero().flatten())
    graph = functional_graph(problem.bridge, nodes, prompts, objective=problem.objective)
    return {
        "functional_edges": graph.n_edges,
        "functional_pairs": exact(graph.n_possible, n=len(prompts) // 2),
        "functional_faithfulness": graph.faithfulness,
    }


def _no_functional(reason: str) -> dict[str, Result]:
    return dict.fromkeys(("functional_edges", "functional_pairs", "functional_faithfulness"), not_measurable(reason))


def _by_kind(by_matrix: Mapping[str, int]) -> dict[str, Result]:
    found: dict[str, int] = dict.fromkeys(EDGE_KINDS, 0)
    for name, count in by_matrix.items():
        found[name.partition(".")[0]] += count
    return {kind: exact(count) for kind, count in found.items()}


def error_nodes(circuit: Circuit) -> int:
    """Kept nodes that stand for a dictionary's whole reconstruction error."""
    kept = circuit.space.split(circuit.mask)
    return sum(int(kept[site.name][-1]) for site in circuit.space.sites if not site.dictionary.exact)


def decompose(first: Mapping[str, Result], second: Mapping[str, Result]) -> dict[str, Result]:
    """`log(first / second)` of two circuits' edges, from their `results`, as `log_ratio_parts` does from their densities.

    Natural logarithms; `pairs + density + remainder (+ search) = total`. `search` is there where both had a search of edges. A part
    with a count of 0 is not measurable.
    """
    pairs, chance, edges = (_log_ratio(first, second, name) for name in ("possible_pairs", "expected_edges", "structural_edges"))
    parts = {"pairs": pairs, "density": chance - pairs, "remainder": edges - chance, "total": edges}
    if first["searched_edges"].measurable and second["searched_edges"].measurable:
        total = _log_ratio(first, second, "searched_edges")
        parts |= {"search": total - edges, "total": total}
    return {name: exact(value) if math.isfinite(value) else not_measurable("a count is 0") for name, value in parts.items()}


def _log_ratio(first: Mapping[str, Result], second: Mapping[str, Result], name: str) -> float:
    counts = [results[name].value or 0.0 for results in (first, second)]
    return math.log(counts[0] / counts[1]) if min(counts) > 0 else math.nan
