"""How large is the smallest circuit for a task, in each column, at one target loss, beside the nonsense control?

One target for all columns of a task: `max(0.15, 1.15 * the worst column's full-model loss)`, on prompts that no mask was
learned on; the same search effort everywhere; a column whose model fails the accuracy gate on held-out templates has no sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_lens.circuits import SearchConfig, both_sides, count_apart, count_edges
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.density import EdgeDensity, edge_density
from sparse_lens.circuits.prompts import Prompts, per_pair
from sparse_lens.circuits.scoring import CircuitScores, masked_differences, score_circuit, task_loss
from sparse_lens.circuits.search.nodes import DEFAULT_TARGET, SearchProblem, learn_masks, search_problem, select_circuit
from sparse_lens.circuits.sites import full_mask
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.columns import Column
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable
from sparse_lens.tasks import get_task

HELDOUT_PAIRS = 256
TARGET_SLACK = 1.15
NONSENSE_TASK = "nonsense_quote"

NO_EDGES = "latents have no weights of their own; `compare --full` counts and searches the products that stand in for them"

Step = Callable[[], Any]


@dataclass(frozen=True, eq=False)
class Setting:
    """A task in a column, before any search: the gate's accuracy and the full model's loss."""

    column: Column
    problem: SearchProblem
    heldout: Prompts
    accuracy: Result
    full_loss: Result

    @property
    def passes(self) -> bool:
        """Whether the model does the task well enough for a circuit to mean anything."""
        return self.accuracy.value is not None and self.accuracy.value >= ACCURACY_GATE


def prepare_setting(column: Column, task: str, config: SearchConfig, *, seed: int) -> Setting:
    """Sample the task's prompts and measure the full model on them."""
    problem = search_problem(column.bridge, column.space, column.ablation, get_task(task), config, seed=seed)
    heldout = both_sides(get_task(task).sample(column.bridge.tokenizer, HELDOUT_PAIRS, seed=seed, split="heldout"))
    everything = full_mask(column.space)
    differences = masked_differences(column.bridge, column.space, everything, column.ablation, heldout)
    losses = task_loss(masked_differences(column.bridge, column.space, everything, column.ablation, problem.evaluation_prompts))
    accuracy = bootstrap_mean(per_pair((differences > 0).float(), heldout), null=0.5)
    return Setting(column, problem, heldout, accuracy, bootstrap_mean(per_pair(losses, problem.evaluation_prompts)))


def common_target(settings: Sequence[Setting]) -> float:
    """The target loss of a task for all columns that pass its gate."""
    losses = [setting.full_loss.value for setting in settings if setting.passes and setting.full_loss.value is not None]
    return max([DEFAULT_TARGET, *(TARGET_SLACK * loss for loss in losses)])


@dataclass(frozen=True, eq=False)
class Found:
    """A circuit of one column and task, with its held-out scores and, between neurons, its edges and their density."""

    circuit: Circuit
    scores: CircuitScores
    edges: dict[str, int] | None
    apart: dict[str, int] | None
    density: EdgeDensity | None = None


def search_column(setting: Setting, target: float, config: SearchConfig, *, seed: int, on_step: Step) -> Found:
    """Find and score the smallest circuit of a setting; each seed has its own prompts to search on."""
    column, problem = setting.column, setting.problem
    if seed:
        task = get_task(problem.task)
        problem = search_problem(column.bridge, column.space, column.ablation, task, config, seed=seed)
    learned = learn_masks(problem, target, config, seed=seed, on_step=on_step)
    circuit = select_circuit(problem, learned, target, config)
    scores = score_circuit(column.bridge, circuit, setting.heldout)
    if circuit.space.has_dictionaries:
        return Found(circuit, scores, None, None)
    # Inputs and answers are those of seed 0, so that the edges of all seeds are counted between equal ends.
    graph = setting.problem.graph
    edges, density = count_edges(circuit.space, circuit.mask, graph), edge_density(circuit.space, circuit.mask, graph)
    return Found(circuit, scores, edges, count_apart(circuit, graph), density)


def nonsense_circuit(column: Column, target: float, config: SearchConfig, *, seed: int, on_step: Step) -> Circuit:
    """Run the same search, with the same effort and target, on the nonsense task."""
    return control_circuit(column, NONSENSE_TASK, target, config, seed=seed, on_step=on_step)


def control_circuit(column: Column, task: str, target: float, config: SearchConfig, *, seed: int, on_step: Step) -> Circuit:
    """Run the same search on another task or in another column, such as that of shuffled weights; no gate is asked."""
    problem = search_problem(column.bridge, column.space, column.ablation, get_task(task), config, seed=seed)
    return select_circuit(problem, learn_masks(problem, target, config, seed=seed, on_step=on_step), target, config)


def column_results(setting: Setting, found: Sequence[Found], nonsense: Sequence[Circuit]) -> dict[str, Any]:
    """Everything measured in one column on one task, over search seeds (one entry of `found` and `nonsense` each).

    Sizes are over the seeds that reached the target; if none did, over the best attempts, and `reached` is false.
    """
    base = {"accuracy": setting.accuracy, "full_loss": setting.full_loss}
    if not setting.passes:
        return base | _nothing(f"accuracy {setting.accuracy} is below the gate of {ACCURACY_GATE}")
    n = len(setting.problem.evaluation_prompts) // 2
    reached = [f for f in found if f.circuit.reached]
    counted = reached or list(found)
    sizes = [f.circuit.n_nodes for f in counted]
    edges = [sum(f.edges.values()) for f in counted if f.edges is not None]
    no_edges = not_measurable(NO_EDGES, n=n)
    best = counted[int(np.argmin(sizes))]
    return (
        base
        | {
            "circuit_loss": over_seeds([f.circuit.loss for f in counted], n=n),
            "reached": bool(reached),
            "seeds_reached": exact(len(reached), n=len(found), seeds=len(found)),
            "heldout_circuit_loss": best.scores.circuit_loss,
            "heldout_full_loss": best.scores.full_loss,
            "nodes": over_seeds(sizes, n=n),
            "error_nodes": over_seeds([error_nodes(f.circuit) for f in counted], n=n),
            "edges": over_seeds(edges, n=n) if edges else no_edges,
            **_density([f.density for f in counted], best.density, no_edges, n),
            "edges_by_kind": _by_kind([f.edges for f in counted], n),
            "apart_by_kind": _by_kind([f.apart for f in counted], n),
            "nodes_by_site": {name: exact(len(kept), n=n) for name, kept in best.circuit.kept().items()},
            "sufficiency": best.scores.sufficiency,
            "necessity": best.scores.necessity,
            "evaluations": over_seeds([f.circuit.search["evaluations"] for f in found], n=n),
        }
        | _nonsense([f.circuit.n_nodes for f in found], nonsense, n)
    )


def _density(densities: Sequence[EdgeDensity | None], best: EdgeDensity | None, missing: Result, n: int) -> dict[str, Result]:
    """Pairs of nodes that could be joined, edges that their matrices' density alone gives, and edges with the zeros shuffled."""
    present = [density for density in densities if density is not None]
    if not present or best is None:
        return dict.fromkeys(_DENSITY, missing)
    found = over_seeds([d.n_possible for d in present], n=n), over_seeds([d.expected for d in present], n=n), best.null()
    return dict(zip(_DENSITY, found, strict=True))


_DENSITY = ("possible_pairs", "expected_edges", "shuffled_edges")


def error_nodes(circuit: Circuit) -> int:
    """Kept nodes that stand for a dictionary's whole reconstruction error."""
    kept = circuit.space.split(circuit.mask)
    return sum(int(kept[site.name][-1]) for site in circuit.space.sites if not site.dictionary.exact)


def _nonsense(sizes: Sequence[int], nonsense: Sequence[Circuit], n: int) -> dict[str, Any]:
    reached = all(circuit.reached for circuit in nonsense)
    loss = over_seeds([circuit.loss for circuit in nonsense], n=n)
    unreached = not_measurable(f"the nonsense labels were not fitted to the target; best loss {loss}", n=n, seeds=len(nonsense))
    ratios = [circuit.n_nodes / max(size, 1) for circuit, size in zip(nonsense, sizes, strict=True)]
    return {
        "nonsense_nodes": over_seeds([circuit.n_nodes for circuit in nonsense], n=n),
        "nonsense_loss": loss,
        "nonsense_reached": reached,
        "nonsense_ratio": over_seeds(ratios, n=n, null=1.0) if reached else unreached,
    }


def _nothing(reason: str) -> dict[str, Any]:
    sizes = ("circuit_loss", "heldout_circuit_loss", "heldout_full_loss", "nodes", "error_nodes", "edges", *_DENSITY)
    scores = ("sufficiency", "necessity", "seeds_reached", "evaluations")
    nonsense = ("nonsense_nodes", "nonsense_loss", "nonsense_ratio")
    return {name: not_measurable(reason) for name in sizes + scores + nonsense} | {
        "reached": False,
        "edges_by_kind": {},
        "apart_by_kind": {},
        "nodes_by_site": {},
        "nonsense_reached": False,
    }


def _by_kind(counts: Sequence[Mapping[str, int] | None], n: int) -> dict[str, Result]:
    present = [count for count in counts if count is not None]
    if not present:
        return {}
    return {kind: over_seeds([count[kind] for count in present], n=n) for kind in present[0]}


def over_seeds(values: Sequence[float], *, n: int, null: float | None = None) -> Result:
    """Mean over search seeds; with several, `lo` and `hi` are the least and the largest (too few for a percentile)."""
    array = np.asarray(values, dtype=np.float64)
    spread = (float(array.min()), float(array.max())) if len(array) > 1 else (None, None)
    return Result(float(array.mean()), *spread, null=null, n=n, seeds=len(array))
