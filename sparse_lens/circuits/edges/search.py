"""Search for the smallest set of edges between a circuit's nodes at a target task loss, in sparse and dense models alike.

One learned gate per weight between kept nodes, warm-started from attribution: at the start a gate is the more open, the more the
task loss rises, to first order, if its edge is cut. Then as for nodes: a price per open gate that is steered towards the target,
candidates, and the dropping of edges (and nodes) that lie on no path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.cutting import CircuitEdges, Means, cut_edges, input_means
from sparse_lens.circuits.edges.latents import LatentSite, hooked_mask, latent_sites
from sparse_lens.circuits.edges.running import GatedCircuit, cut_circuit, gated_circuit
from sparse_lens.circuits.edges.space import EdgeSpace, candidate_edges, edges_on_paths
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import answer_differences, answer_logits
from sparse_lens.circuits.search.candidates import Candidate, best_candidate, score_masks
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.interrupting import collected, so_far
from sparse_lens.circuits.search.learning import LearnedMask, frozen, learn_gates
from sparse_lens.circuits.search.nodes import search_record, trace
from sparse_lens.circuits.search.objectives import objective_of
from sparse_lens.circuits.search.problems import SearchProblem, default_windows, search_problem
from sparse_lens.errors import CircuitError
from sparse_lens.tasks import AnyTask, get_task


@dataclass(frozen=True, eq=False)
class EdgeProblem:
    """What an edge search needs: the nodes' problem, the nodes that are kept, the edges between them, the inputs' means."""

    nodes: SearchProblem
    mask: Bool[Tensor, " node"]
    edges: EdgeSpace
    means: Means

    def logits(self, keep: Tensor, prompts: Prompts) -> Float[Tensor, "row vocab"]:
        """Logits at the answer with all other nodes ablated and the edges of no `keep` cut; differentiable in `keep`."""
        if self.gated is not None:
            return self.gated.logits(keep.to(torch.float32), prompts)
        return self.hooked_logits(keep, prompts)

    def hooked_logits(self, keep: Tensor, prompts: Prompts) -> Float[Tensor, "row vocab"]:
        """The same in the whole model, under hooks."""
        nodes = self.nodes
        hooks = nodes.ablation.hooks(nodes.bridge, nodes.space, hooked_mask(nodes.space, self.mask), prompts)
        with cut_edges(nodes.bridge, self.edges, keep.to(torch.float32), self.means, self.latents):
            return answer_logits(nodes.bridge, prompts, hooks, alike=nodes.ablation.fixed)

    @cached_property
    def gated(self) -> GatedCircuit | None:
        """The nodes compiled, with gates on the edges; None where the whole model has to run."""
        nodes = self.nodes
        return gated_circuit(nodes.bridge, nodes.space, self.mask, nodes.ablation, self.edges, self.means)

    @property
    def latents(self) -> tuple[LatentSite, ...]:
        """The sites with dictionaries, as the nodes' mask keeps them."""
        return latent_sites(self.nodes.space, self.mask, self.nodes.ablation.fixed_values())

    def differences(self, keep: Tensor, prompts: Prompts) -> Float[Tensor, " row"]:
        """Logit differences of the right and the wrong answer under `keep`."""
        return answer_differences(self.logits(keep, prompts), prompts)

    def losses(self, keep: Tensor, prompts: Prompts) -> Float[Tensor, " row"]:
        """What gates are learned on, for each prompt."""
        return self.nodes.objective.losses(self.logits(keep, prompts), prompts)

    def score(self, keep: Bool[Tensor, " edge"], source: str) -> Candidate:
        """The edges of `keep` that lie on a path, and the loss with no others, on the evaluation prompts."""
        nodes, keep = edges_on_paths(self.nodes.space, self.mask, self.nodes.graph, self.edges, keep)
        problem = self.nodes
        run = cut_circuit(problem.bridge, problem.space, nodes, problem.ablation, self.edges, keep, self.means)
        if run is None:
            run = partial(replace(self, mask=nodes).hooked_logits, keep)
        measured = problem.objective.measure(run, problem.search_prompts, problem.evaluation_prompts)
        return Candidate(keep, measured.loss, source, measured)


def find_edges(
    bridge: Any,
    circuit: Circuit,
    task: str | AnyTask | None = None,
    *,
    target_loss: float | None = None,
    config: SearchConfig | None = None,
    windows: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Circuit:
    """The smallest set of edges found between the nodes of `circuit` at its target loss: the circuit with `edges`.

    Nodes that no kept edge needs are dropped. The target is of the kind that the nodes were searched for, calibrated or not as
    theirs. `windows` (token ids, `[window pos]`) give the mean that a cut edge carries, for inputs that are no nodes; by default
    those that come with the model. If nothing meets the target, the edges of least loss come back, with `reached` False; after a
    Ctrl-C, the best so far, with `search["interrupted"]`. Edges of latents are virtual weights (see
    `latents`). Raises `CircuitError` for another model, an ablation that depends on the prompts, a dictionary elsewhere than in an
    MLP or without encoder rows, and a model that is no CircuitGPT.
    """
    config = config or SearchConfig()
    circuit.check_model(bridge)
    if not circuit.how_ablated.fixed:
        raise CircuitError(f"edges are cut to fixed values, not under {circuit.ablation} ablation or frozen norms; find a mean one")
    chosen = get_task(task or circuit.task) if not isinstance(task, AnyTask) else task
    problem = edge_problem(bridge, circuit, chosen, config, windows=windows, seed=seed)
    target = circuit.target_loss if target_loss is None else target_loss
    with tqdm(total=config.masks * config.steps, desc=f"edges for {chosen.name}", disable=not progress) as bar:
        learned, stopped = so_far(lambda: learn_edges(problem, target, config, seed=seed, on_step=bar.update), keep=True)
    with frozen(bridge):
        candidates, cut = so_far(lambda: score_masks(problem.score, learned, target, config), keep=not stopped)
    return found_edges(problem, circuit, learned, candidates, target, config, interrupted=stopped or cut)


def edge_problem(
    bridge: Any, circuit: Circuit, task: AnyTask, config: SearchConfig, *, windows: np.ndarray | None = None, seed: int = 0
) -> EdgeProblem:
    """Prompts, means and candidate edges of a circuit's edge search."""
    ablation = Ablation(circuit.how_ablated.fixed_values())
    nodes = search_problem(bridge, circuit.space, ablation, task, config, seed=seed, objective=objective_of(circuit))
    windows = default_windows(bridge) if windows is None else windows
    means = input_means(bridge, windows, ablation.means, nodes.graph.inputs)
    return EdgeProblem(nodes, circuit.mask, candidate_edges(circuit.space, circuit.mask, nodes.graph), means)


def edge_attribution(problem: EdgeProblem, *, n_pairs: int = 64, steps: int = 1) -> Float[Tensor, " edge"]:
    """Rise of the mean loss, in nats, if an edge is cut, to first order (EAP; arXiv:2310.10348).

    With several `steps` the slope is averaged while all edges together go from cut to kept (EAP-IG; arXiv:2403.17806).
    """
    rows = problem.nodes.search_prompts.pair < n_pairs
    prompts = problem.nodes.search_prompts.rows(rows.nonzero().flatten())
    total = torch.zeros(problem.edges.n_edges)
    with frozen(problem.nodes.bridge), torch.enable_grad():
        for step in range(steps):
            keep = torch.full((problem.edges.n_edges,), 1 - step / steps).requires_grad_()
            loss = problem.losses(keep, prompts).mean()
            if loss.requires_grad:  # otherwise no edge leads to the answer, and cutting one changes nothing
                total -= torch.autograd.grad(loss, keep)[0]
    return total / steps


def learn_edges(
    problem: EdgeProblem,
    target: float,
    config: SearchConfig,
    *,
    seed: int = 0,
    first: int = 0,
    on_step: Callable[[], Any] = lambda: None,
) -> list[LearnedMask]:
    """One learned mask of edges for every initial penalty and every restart from the `first` on, as `learn_masks` does."""
    rank = edge_attribution(problem).argsort().argsort() / max(1, problem.edges.n_edges - 1)
    prompts = problem.nodes.search_prompts

    def learn(gates: int, penalty: float) -> LearnedMask:
        generator = torch.Generator().manual_seed(gates)
        start = 0.02 + 0.16 * rank + 0.01 * torch.randn(len(rank), generator=generator)  # about 0.1, as nodes start
        options: dict[str, Any] = {"penalty": penalty, "seed": gates, "generator": generator, "on_step": on_step}
        with frozen(problem.nodes.bridge):
            return learn_gates(problem.losses, start, prompts, target, config, **options)

    restarts = [(seed * 1000 + restart, penalty) for restart in range(first, config.restarts) for penalty in config.penalties]
    return collected([partial(learn, *restart) for restart in restarts])


def select_edges(
    problem: EdgeProblem, circuit: Circuit, learned: list[LearnedMask], target: float, config: SearchConfig
) -> Circuit:
    """The smallest candidate of all learned masks that meets `target`, as a circuit with the search's trace."""
    with frozen(problem.nodes.bridge):
        candidates = score_masks(problem.score, learned, target, config)
    return found_edges(problem, circuit, learned, candidates, target, config)


def found_edges(
    problem: EdgeProblem,
    circuit: Circuit,
    learned: Sequence[LearnedMask],
    candidates: Sequence[Candidate],
    target: float,
    config: SearchConfig,
    *,
    interrupted: bool = False,
) -> Circuit:
    """The best of all candidates as `circuit` with edges, with the record of its search."""
    best = best_candidate(candidates, target)
    mask, keep = edges_on_paths(problem.nodes.space, problem.mask, problem.nodes.graph, problem.edges, best.mask)
    record = search_record(problem.nodes, config, learned, candidates, best, interrupted=interrupted)
    record |= {"candidate_edges": problem.edges.n_edges, "trace": trace(candidates, "edges"), "nodes": circuit.search}
    return replace(
        circuit,
        mask=mask,
        loss=best.loss,
        target_loss=target,
        search=record,
        edges=CircuitEdges(
            problem.edges.chosen(keep), problem.edges.chosen(~keep), problem.means, replace(problem, mask=mask).latents
        ),
    )
