"""The headline: how many bits does a circuit take at each divergence from its own model, and does it hold elsewhere?

One column, one task, one search seed: circuits at several targets of KL(model, circuit), each measured on prompts and text that no
mask was learned on, and under other ablations than the one it was found under. A cell of its own: plain numbers in, plain numbers
out.

KL on prompts is over the whole vocabulary at the answer position, on natural text over the whole vocabulary at all positions; both
in nats, means over prompts or tokens. The model is the column's own: the dense model for an SAE's latents, error nodes as stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from sparse_lens.circuits import Circuit, SearchConfig
from sparse_lens.circuits.edges.cutting import input_means
from sparse_lens.circuits.edges.search import EdgeProblem, learn_edges, select_edges
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.paths import paths_are_known
from sparse_lens.circuits.search.effort import size_of
from sparse_lens.circuits.search.objectives import Objective
from sparse_lens.circuits.search.problems import SearchProblem, search_problem, with_errors
from sparse_lens.circuits.search.tracing import trace_circuits
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.circuit_sizes import HELDOUT_PAIRS
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.curves.curve_measures import CurveMeasures, CurvePrompts, model_accuracy
from sparse_lens.comparisons.curves.description_length import description_length
from sparse_lens.comparisons.curves.edge_levels import edge_levels, error_nodes
from sparse_lens.results import Result, exact, from_plain, not_measurable, to_frame, to_plain
from sparse_lens.tasks import get_task

if TYPE_CHECKING:
    import pandas as pd

TARGETS = (2.0, 1.0, 0.5, 0.25)
"""Divergences from the model that circuits are searched for, in nats."""

EDGE_STARTS = (1.0, 0.5)
"""Edges at a target are searched between the nodes that meet each of these shares of it, and the fewest are taken. Nodes at the
target itself can leave an edge search no room, so that it keeps nearly all edges; nodes at half of it can be too many to drop."""

SCHEMA = 3


@dataclass(frozen=True)
class CurvePoint:
    """A circuit at one target: whether the search met it, and everything measured, by name.

    `results` are flat: bits (`description_length`), `nodes`, `error_nodes`, KL and task losses by where and under what they are
    measured (`curve_measures`), all of the circuit of kept nodes with all (virtual) weights between them, and edges by level
    (`edge_levels`). Where edges were searched, the circuit of those has the same results under names that begin with `searched_`,
    and is a point of another curve. `edges` has counts by level and kind, `sites` nodes by site, `kept` their indices at each site
    (an error node has the one behind the last latent's).
    """

    target: float
    reached: bool
    results: Mapping[str, Result]
    edges: Mapping[str, Mapping[str, Result]]
    sites: Mapping[str, Result]
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class CircuitCurve:
    """The circuits of one column on one task for one search seed, the loosest target first.

    Without a measurable task (`accuracy` below the gate) there are no points, and `reason` says so. `facts` hold what the numbers
    depend on: effort, targets, error mode, ablation, numbers of prompts.
    """

    column: str
    task: str
    seed: int
    accuracy: Result
    points: tuple[CurvePoint, ...] = ()
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values; `from_plain` is the inverse."""
        return {"schema": SCHEMA} | to_plain({**vars(self), "points": [vars(point) for point in self.points]})

    @classmethod
    def from_plain(cls, record: Mapping[str, Any]) -> CircuitCurve:
        """A curve from `to_plain`; raises `ValueError` for a record of another schema."""
        if record.get("schema") != SCHEMA:
            raise ValueError(f"a curve has schema {SCHEMA}, this record {record.get('schema')!r}; compute the curve anew")
        fields: dict[str, Any] = {name: from_plain(value) for name, value in record.items() if name != "schema"}
        fields["points"] = tuple(CurvePoint(**point) for point in fields["points"])
        return cls(**fields)

    def to_frame(self) -> pd.DataFrame:
        """Tidy table: one row for each number of each point."""
        content = {self.task: {self.column: {str(point.target): dict(point.results) for point in self.points}}}
        return to_frame(content, ("task", "column", "target")).assign(seed=self.seed)


def circuit_curve(
    column: Column,
    task: str,
    windows: Int[np.ndarray, "window pos"],
    reference: Int[np.ndarray, "reference_window reference_pos"],
    *,
    targets: Sequence[float] = TARGETS,
    edge_targets: Sequence[float] = (),
    functional_targets: Sequence[float] = (),
    also_traced: Sequence[float] = (),
    error_mode: str = "scored",
    config: SearchConfig | None = None,
    heldout_pairs: int = HELDOUT_PAIRS,
    seed: int = 0,
    on_step: Callable[[], Any] = lambda: None,
) -> CircuitCurve:
    """Search and measure the circuits of `column` on `task` at `targets` (KL to the column's own model, nats).

    `windows` are natural text, held-out real files in the column's tokens; `reference` those of the pretraining distribution, for
    the means that cut edges carry. Edges are searched at `edge_targets`, functional graphs found at `functional_targets`, both
    among `targets`; edges are searched as `EDGE_STARTS` says. Nodes are searched at the targets `also_traced`, too: all share their
    candidates, and a column in which no edges are searched has the same effort if it is given the `edge_starts` of the others.
    """
    config, loss = config or SearchConfig(), Objective("kl")
    problem = search_problem(column.bridge, column.space, column.ablation, get_task(task), config, seed=seed, objective=loss)
    problem = with_errors(problem, error_mode)
    prompts = CurvePrompts.sample(problem, task, windows, heldout_pairs, seed=0)
    accuracy = model_accuracy(column.bridge, prompts.heldout)
    facts = _facts(column, config, targets, error_mode, prompts)
    if (accuracy.value or 0) < ACCURACY_GATE:
        reason = f"accuracy {accuracy} is below the gate of {ACCURACY_GATE}"
        return CircuitCurve(column.name, task, seed, accuracy, reason=reason, facts=facts)
    edge_targets = edge_targets if paths_are_known(problem.space) else ()
    wanted = sorted({*targets, *also_traced, *edge_starts(edge_targets)}, reverse=True)
    found = dict(zip(wanted, trace_circuits(problem, wanted, config, seed=seed, on_step=on_step), strict=True))
    measures, points = CurveMeasures(column.bridge, column.space, column.ablation, prompts), []
    for target in sorted(set(targets), reverse=True):
        searched = None
        if target in edge_targets:
            starts = [found[share * target] for share in EDGE_STARTS]
            searched = _fewest_edges(problem, starts, target, reference, config, seed, on_step)
        points.append(_point(problem, found[target], searched, measures, functional=target in functional_targets))
    return CircuitCurve(column.name, task, seed, accuracy, tuple(points), facts=facts)


def edge_starts(edge_targets: Sequence[float]) -> list[float]:
    """The targets of the nodes between which edges are searched."""
    return [share * target for target in edge_targets for share in EDGE_STARTS]


def _fewest_edges(
    problem: SearchProblem,
    starts: Sequence[Circuit],
    target: float,
    reference: np.ndarray,
    config: SearchConfig,
    seed: int,
    on_step: Callable[[], Any],
) -> Circuit:
    """The fewest edges found at `target` between the nodes of any start: same learner, effort and warm start in every column."""
    means, found = input_means(problem.bridge, reference, problem.ablation.means, problem.graph.inputs), []
    for nodes in starts:
        edges = EdgeProblem(problem, nodes.mask, candidate_edges(problem.space, nodes.mask, problem.graph), means)
        learned = learn_edges(edges, target, config, seed=seed, on_step=on_step)
        found.append(select_edges(edges, nodes, learned, target, config))
    return min(found, key=lambda circuit: (not circuit.reached, size_of(circuit) if circuit.reached else circuit.loss))


def _point(
    problem: SearchProblem, nodes: Circuit, searched: Circuit | None, measures: CurveMeasures, *, functional: bool
) -> CurvePoint:
    if not paths_are_known(problem.space):
        return _point_of_nodes(nodes, measures)
    levels = edge_levels(problem, nodes, searched, functional=functional)
    results = dict(levels.results) | _sizes(problem, nodes, measures)
    if searched is not None:
        results |= {f"searched_{name}": result for name, result in _sizes(problem, searched, measures).items()}
        results["searched_reached"] = exact(searched.reached)
    return CurvePoint(nodes.target_loss, nodes.reached, results, levels.by_kind, *_by_site(nodes))


def _by_site(nodes: Circuit) -> tuple[dict[str, Result], dict[str, list[int]]]:
    """Kept nodes by site: how many, and which."""
    kept = {name: [int(index) for index in indices] for name, indices in nodes.kept().items()}
    return {name: exact(len(indices)) for name, indices in kept.items()}, kept


def _sizes(problem: SearchProblem, circuit: Circuit, measures: CurveMeasures) -> dict[str, Result]:
    """Nodes, bits and divergences of a circuit, of its nodes alone or of its searched edges."""
    counts = {"nodes": exact(circuit.n_nodes), "error_nodes": exact(error_nodes(circuit))}
    return counts | description_length(circuit, problem.graph) | measures.of(circuit)


def _point_of_nodes(nodes: Circuit, measures: CurveMeasures) -> CurvePoint:
    """A point in a basis that mixes the channels of other sites than MLPs: nodes and divergences only."""
    missing = not_measurable("edges and bits are counted between channels and MLP latents; this basis mixes other sites, too")
    counts = {"nodes": exact(nodes.n_nodes), "error_nodes": exact(error_nodes(nodes))}
    names = ("total_bits", "total_without_dictionary_bits", "structural_edges", "searched_edges", "functional_edges")
    results = counts | dict.fromkeys(names, missing) | measures.of(nodes)
    return CurvePoint(nodes.target_loss, nodes.reached, results, {}, *_by_site(nodes))


def _facts(
    column: Column, config: SearchConfig, targets: Sequence[float], error_mode: str, prompts: CurvePrompts
) -> dict[str, Any]:
    has_errors = any(not site.dictionary.exact for site in column.space.sites)
    return {
        "config": config.model_dump(mode="json"),
        "targets": list(targets),
        "edges": f"the fewest found between nodes at {', '.join(f'{share:g}' for share in EDGE_STARTS)} of their target",
        "target": "KL(model, circuit) over the vocabulary at the answer position, nats",
        "error_nodes": error_mode if has_errors else "none: the dictionaries are exact",
        "ablation": "mean over the pretraining distribution",
        "heldout_pairs": len(prompts.heldout) // 2,
        "rephrased_pairs": len(prompts.rephrased) // 2,
        "natural_windows": len(prompts.windows),
        "sites": {site.name: site.n_nodes for site in column.space.sites},
        "dictionaries": [site.dictionary.hash for site in column.space.sites if not site.is_identity],
    }
