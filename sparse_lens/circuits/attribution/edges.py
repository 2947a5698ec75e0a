"""What every weight between a circuit's nodes is worth to a task: by its slope, or exactly, by cutting one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.circuit import NOT_MEASURED, Circuit
from sparse_lens.circuits.edges.cutting import CircuitEdges, Means, input_means
from sparse_lens.circuits.edges.latents import latent_sites
from sparse_lens.circuits.edges.search import EdgeProblem, edge_attribution
from sparse_lens.circuits.edges.space import EdgeSpace, candidate_edges
from sparse_lens.circuits.prompts import both_sides
from sparse_lens.circuits.scoring import task_loss
from sparse_lens.circuits.search.learning import frozen
from sparse_lens.circuits.search.nodes import SearchProblem, default_windows
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.tasks import AnyTask, TaskBatch, get_task

if TYPE_CHECKING:
    import pandas as pd

EdgeMethod = Literal["eap", "eap_ig", "exact"]


@dataclass(frozen=True, eq=False)
class EdgeAttribution:
    """Scores of the weights between a circuit's nodes: the rise of its mean task loss, in nats, if a weight alone is cut."""

    scores: Float[Tensor, " edge"]
    edges: EdgeSpace
    means: Means
    nodes: Circuit
    method: str

    @property
    def ranking(self) -> Int[Tensor, " edge"]:
        """Indices of the edges, those first whose cut costs most."""
        return self.scores.argsort(descending=True, stable=True)

    def circuit(self, n_edges: int) -> Circuit:
        """The circuit with the first `n_edges` of the ranking, not measured; raises `CircuitError` for an impossible number."""
        if not 0 <= n_edges <= self.edges.n_edges:
            raise CircuitError(f"there are 0 to {self.edges.n_edges} edges between these nodes, {n_edges} were asked for")
        keep = torch.zeros(self.edges.n_edges, dtype=torch.bool)
        keep[self.ranking[:n_edges]] = True
        search = {"source": "attribution", "method": self.method, "nodes": self.nodes.search}
        latents = latent_sites(self.nodes.space, self.nodes.mask, self.nodes.how_ablated.fixed_values())
        edges = CircuitEdges(self.edges.chosen(keep), self.edges.chosen(~keep), self.means, latents)
        return replace(self.nodes, loss=NOT_MEASURED, search=search, edges=edges)

    def to_frame(self) -> pd.DataFrame:
        """One row an edge, the dearest first: `kind`, `layer` (-1: none), `output`, `input`, `score`."""
        import pandas as pd

        rows = []
        for name, index in self.edges.index.items():
            kind, _, layer = name.partition(".")
            rows += [(kind, int(layer or -1), output, source) for output, source in index.tolist()]
        frame = pd.DataFrame(rows, columns=["kind", "layer", "output", "input"])  # pyright: ignore[reportArgumentType]
        return frame.assign(score=self.scores.numpy()).iloc[self.ranking.numpy()].reset_index(drop=True)


def attribute_edges(
    bridge: Any,
    circuit: Circuit,
    task: str | AnyTask | TaskBatch | None = None,
    *,
    method: str = "eap",
    n_pairs: int = 64,
    steps: int = 5,
    windows: np.ndarray | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> EdgeAttribution:
    """The score of every weight between the nodes of `circuit`, on its task, another, or given pairs of prompts.

    `eap` is `edge_search.edge_attribution` (arXiv:2310.10348), `eap_ig` averages its slopes while all edges of one matrix go from
    cut to kept, matrix by matrix (after arXiv:2403.17806), `exact` runs the circuit once for each edge. Edges that a search has cut
    are scored, too: each as if all others were there. Raises `UnknownNameError` for another method, `CircuitError` for another
    model, an ablation that depends on the prompts, and a model that is no CircuitGPT.
    """
    if method not in get_args(EdgeMethod):
        raise UnknownNameError("edge attribution method (RelP scores nodes)", method, get_args(EdgeMethod))
    if min(n_pairs, steps, batch_size) < 1:
        raise CircuitError(f"pairs, steps and batch size must be at least 1, got {n_pairs}, {steps} and {batch_size}")
    circuit.check_model(bridge)
    problem = _problem(bridge, circuit, _batch(bridge, circuit.task if task is None else task, n_pairs, seed), windows)
    if method == "exact":
        scores = _one_by_one(problem, batch_size, progress)
    else:
        parts = _chunks(problem, batch_size)
        some = [
            share * (edge_attribution(part, n_pairs=_ALL) if method == "eap" else _integrated(part, steps)) for part, share in parts
        ]
        scores = torch.stack(some).sum(0)
    return EdgeAttribution(scores, problem.edges, problem.means, circuit, method)


_ALL = 1 << 62
"""More pairs than there are."""


def _batch(bridge: Any, task: str | AnyTask | TaskBatch, n_pairs: int, seed: int) -> TaskBatch:
    if isinstance(task, TaskBatch):
        return task
    task = get_task(task) if isinstance(task, str) else task
    return task.sample(bridge.tokenizer, n_pairs, seed=seed, split="search")


def _problem(bridge: Any, circuit: Circuit, batch: TaskBatch, windows: np.ndarray | None) -> EdgeProblem:
    if not circuit.how_ablated.fixed:
        raise CircuitError(f"edges are cut to fixed values, not under {circuit.ablation} ablation or frozen norms; give a mean one")
    ablation, prompts, graph = Ablation(circuit.how_ablated.fixed_values()), both_sides(batch), weight_graph(bridge, batch)
    means = input_means(bridge, default_windows(bridge) if windows is None else windows, ablation.means, graph.inputs)
    nodes = SearchProblem(bridge, circuit.space, ablation, circuit.task, prompts, prompts, graph)
    return EdgeProblem(nodes, circuit.mask, candidate_edges(circuit.space, circuit.mask, graph), means)


def _chunks(problem: EdgeProblem, batch_size: int) -> list[tuple[EdgeProblem, float]]:
    """The problem on some of its prompts at a time, and their share of all."""
    prompts, parts = problem.nodes.search_prompts, []
    for rows in torch.arange(len(prompts)).split(batch_size):
        part = replace(problem, nodes=replace(problem.nodes, search_prompts=prompts.rows(rows)))
        parts.append((part, len(rows) / len(prompts)))
    return parts


def _integrated(problem: EdgeProblem, steps: int) -> Float[Tensor, " edge"]:
    """Mean slopes of the mean loss on the way of each matrix' edges, all others being kept."""
    prompts, total = problem.nodes.search_prompts, torch.zeros(problem.edges.n_edges)
    start = 0
    with frozen(problem.nodes.bridge), torch.enable_grad():
        for index in problem.edges.index.values():
            part, start = slice(start, start + len(index)), start + len(index)
            for step in range(steps) if len(index) else ():
                keep = torch.ones_like(total)
                keep[part] = (step + 0.5) / steps
                loss = task_loss(problem.differences(keep.requires_grad_(), prompts)).mean()
                total[part] -= torch.autograd.grad(loss, keep)[0][part] / steps
    return total


@torch.no_grad()
def _one_by_one(problem: EdgeProblem, batch_size: int, progress: bool) -> Float[Tensor, " edge"]:
    """Brute force: the mean loss without each edge, less that with all."""
    chunks = _chunks(problem, batch_size)

    def loss(keep: Tensor) -> float:
        parts = [share * task_loss(part.differences(keep, part.nodes.search_prompts)).mean() for part, share in chunks]
        return float(torch.stack(parts).sum())

    everything = torch.ones(problem.edges.n_edges)
    with frozen(problem.nodes.bridge):
        whole, losses = loss(everything), []
        for edge in tqdm(range(len(everything)), desc="cuts", disable=not progress):
            keep = everything.clone()
            keep[edge] = 0
            losses.append(loss(keep))
    return torch.tensor(losses, dtype=torch.float64).sub(whole).float()
