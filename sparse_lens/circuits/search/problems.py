"""What a search of one task in one model needs: nodes, means, prompts, weights, and how a loss is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.compiled.masked import node_circuit
from sparse_lens.circuits.compiled.nodes import Logits
from sparse_lens.circuits.paths import on_paths, paths_are_known
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.scoring import answer_logits
from sparse_lens.circuits.search.candidates import Candidate
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.objectives import TASK_LOSS, Measured, Objective
from sparse_lens.circuits.sites import NodeSpace
from sparse_lens.circuits.weights import WeightGraph, weight_graph
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.models_shipped import reference_windows
from sparse_lens.tasks import AnyTask, TaskBatch

ErrorMode = Literal["scored", "kept", "ablated"]
"""What becomes of a dictionary's error node: a node like any other, in every circuit, or in none."""


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """Everything a search of one task in one model needs, made once: nodes, means, prompts, weights.

    No circuit may keep a node of `forbid`, every circuit keeps those of `require` that lie on its paths. Raises `CircuitError` if
    one of them is no Boolean vector over the nodes, or if all are forbidden.
    """

    bridge: Any
    space: NodeSpace
    ablation: Ablation
    task: str
    search_prompts: Prompts
    evaluation_prompts: Prompts
    graph: WeightGraph
    forbid: Bool[Tensor, " node"] | None = None
    objective: Objective = TASK_LOSS
    require: Bool[Tensor, " node"] | None = None

    def __post_init__(self) -> None:
        for name, nodes in (("forbid", self.forbid), ("require", self.require)):
            if nodes is not None and (nodes.dtype != torch.bool or nodes.shape != (self.space.n_nodes,)):
                seen = f"{tuple(nodes.shape)} of {nodes.dtype}"
                raise CircuitError(f"{name} must be Boolean with one entry for each of {self.space.n_nodes} nodes, got {seen}")
        if self.forbid is not None and bool(self.forbid.all()):
            raise CircuitError("every node is forbidden, so there is no circuit to find; allow some")

    def under(self, objective: Objective) -> SearchProblem:
        """A problem of task loss with its target measured in another way."""
        assert self.objective.kind == "task"
        search, evaluation = (objective.prepared(self.bridge, p) for p in (self.search_prompts, self.evaluation_prompts))
        graph = objective.graph(self.graph)
        return replace(self, objective=objective, search_prompts=search, evaluation_prompts=evaluation, graph=graph)

    def measure(self, mask: Bool[Tensor, " node"]) -> Measured:
        """Losses of the masked model on the evaluation prompts."""
        run = node_circuit(self.bridge, self.space, mask, self.ablation) or self._hooked(mask)
        return self.objective.measure(run, self.search_prompts, self.evaluation_prompts)

    def _hooked(self, mask: Bool[Tensor, " node"]) -> Logits:
        """The same in the whole model, under hooks."""

        def run(prompts: Prompts) -> Tensor:
            hooks = self.ablation.hooks(self.bridge, self.space, mask, prompts)
            return answer_logits(self.bridge, prompts, hooks, alike=self.ablation.fixed)

        return run

    def loss(self, mask: Bool[Tensor, " node"]) -> float:
        """Mean loss of the masked model on the evaluation prompts."""
        return self.measure(mask).loss

    def score(self, mask: Bool[Tensor, " node"], source: str) -> Candidate:
        """The mask without its nodes off all paths, and its loss."""
        mask = mask if self.require is None else mask | self.require
        if paths_are_known(self.space):  # elsewhere nearly every node mixes with every other, and all are kept
            mask = on_paths(self.space, mask, self.graph)
        measured = self.measure(mask)
        return Candidate(mask, measured.loss, source, measured)


def with_errors(problem: SearchProblem, mode: str) -> SearchProblem:
    """The problem with the error nodes of its dictionaries treated in one of the ways of `ErrorMode`.

    Raises `UnknownNameError` for another way.
    """
    if mode not in get_args(ErrorMode):
        raise UnknownNameError("error mode", mode, get_args(ErrorMode))
    errors = torch.zeros(problem.space.n_nodes, dtype=torch.bool)
    for site in problem.space.sites:
        if not site.dictionary.exact:
            errors[problem.space.slices[site.name].stop - 1] = True
    if mode == "scored" or not bool(errors.any()):
        return problem
    name = "require" if mode == "kept" else "forbid"
    before = getattr(problem, name)
    return replace(problem, **{name: errors if before is None else before | errors})


def search_problem(
    bridge: Any,
    space: NodeSpace,
    ablation: Ablation,
    task: AnyTask,
    config: SearchConfig,
    *,
    seed: int = 0,
    objective: Objective = TASK_LOSS,
) -> SearchProblem:
    """Sample the prompts of a search: those it learns on and those it must meet the target on are disjoint.

    A task with a `metric` of its own is searched by that, unless the objective is a KL.
    """
    objective = objective.on(task)
    if bridge.tokenizer is None:
        raise CircuitError("the model has no tokenizer, so no prompts can be made; load it from a folder with tokenizer.json")
    n = config.search_pairs + config.evaluation_pairs
    batch = task.sample(bridge.tokenizer, n, seed=seed, split="search")
    _check_context(bridge, batch, task.name)
    prompts = objective.prepared(bridge, both_sides(batch))
    first = prompts.pair < len(batch) * config.search_pairs // n  # a task of one's own may have fewer pairs
    evaluation = prompts.rows((~first).nonzero().flatten())
    return SearchProblem(
        bridge=bridge,
        space=space,
        ablation=ablation,
        task=task.name,
        search_prompts=prompts.rows(first.nonzero().flatten()),
        evaluation_prompts=evaluation,
        graph=objective.graph(weight_graph(bridge, batch)),
        objective=objective,
    )


def _check_context(bridge: Any, batch: TaskBatch, name: str) -> None:
    longest, context = int(batch.length.max()), bridge.cfg.n_ctx
    if longest > context:
        raise CircuitError(f"task {name!r} has a prompt of {longest} tokens, the model reads {context}; use shorter prompts")


def default_windows(bridge: Any) -> np.ndarray:
    """Windows that came with the model's folder, or the shipped ones; raises `CircuitError` if neither fits its vocabulary."""
    if (own := getattr(bridge, "reference_windows", None)) is not None:
        return own
    windows, vocabulary = reference_windows()
    if bridge.tokenizer is None or bridge.tokenizer.get_vocab() != vocabulary:
        raise CircuitError(
            "the shipped reference windows are tokens of the shipped models' tokenizer, this model has another; "
            "pass windows=..., token ids [window, position] from the data it was trained on"
        )
    return windows
