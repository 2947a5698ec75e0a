"""Search for the smallest circuit at a target task loss.

Task loss is not monotone in circuit size, so a search never trusts a bisection alone: every learned mask, masks met along the
way, the whole model, prefixes of the learned ranking inside and around the mask, and the best of these less single nodes are
candidates, equally many for every mask that leads to a circuit at the target. Each is scored after its nodes off all paths have
been dropped; the smallest that meets the target wins, or, if none does, the one with the least loss.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.ablation import Ablation, AblationKind
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges import count_edges
from sparse_lens.circuits.learning import LearnedMask, SearchConfig, frozen, learn_mask
from sparse_lens.circuits.masking import mean_reference
from sparse_lens.circuits.paths import on_paths
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.scoring import masked_differences, task_loss
from sparse_lens.circuits.sites import NodeSpace, model_fingerprint, node_space
from sparse_lens.circuits.weights import WeightGraph, weight_graph
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import CircuitError
from sparse_lens.models_shipped import reference_windows
from sparse_lens.tasks import AnyTask, TaskBatch, get_task

DEFAULT_TARGET = 0.15
"""Target two-token task loss of arXiv:2511.13653, in nats."""


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """Everything a search of one task in one model needs, made once: nodes, means, prompts, weights."""

    bridge: Any
    space: NodeSpace
    ablation: Ablation
    task: str
    search_prompts: Prompts
    evaluation_prompts: Prompts
    graph: WeightGraph

    def loss(self, mask: Bool[Tensor, " node"]) -> float:
        """Mean task loss of the masked model on the evaluation prompts."""
        differences = masked_differences(self.bridge, self.space, mask, self.ablation, self.evaluation_prompts)
        return float(task_loss(differences).mean())


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mask with its dead nodes dropped, and its loss."""

    mask: Bool[Tensor, " node"]
    loss: float
    source: str

    @property
    def n_nodes(self) -> int:
        return int(self.mask.sum())


def find_circuit(
    bridge: Any,
    task: str | AnyTask,
    *,
    dictionaries: Sequence[Dictionary] = (),
    target_loss: float = DEFAULT_TARGET,
    ablation: AblationKind = "mean",
    frozen_norms: bool = False,
    config: SearchConfig | None = None,
    windows: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Circuit:
    """The smallest circuit found for `task` in `bridge` at `target_loss` (two-token cross-entropy, nats).

    `windows` (token ids, `[window pos]`) are the pretraining distribution whose mean activations replace what is ablated; by
    default those that come with the shipped models. `ablation` and `frozen_norms` choose another replacement (see
    `sparse_lens.circuits.ablation`): circuits found under different ones are not of comparable size. `dictionaries` replace the
    channels of their hooks. If nothing meets the target, the circuit of least loss comes back, with `reached` False. The whole
    search is recorded in `circuit.search`.
    """
    config = config or SearchConfig()
    task = get_task(task) if isinstance(task, str) else task
    space = node_space(bridge, dictionaries)
    windows = default_windows(bridge) if windows is None else windows
    reference = mean_reference(bridge, space, windows, progress=progress)
    problem = search_problem(bridge, space, Ablation(reference, ablation, frozen_norms, seed), task, config, seed=seed)
    with tqdm(total=config.masks * config.steps, desc=f"circuit for {task.name}", disable=not progress) as bar:
        learned = learn_masks(problem, target_loss, config, seed=seed, on_step=bar.update)
    return select_circuit(problem, learned, target_loss, config)


def circuit_edges(bridge: Any, circuit: Circuit, task: AnyTask | None = None) -> dict[str, int]:
    """Edges of a circuit between neurons, by kind, from its task's input tokens to its answers.

    The input tokens are those of the search prompts of seed 0, as in a comparison. Raises `CircuitError` for another model and
    for a circuit of latents.
    """
    task, config = task or get_task(circuit.task), SearchConfig()
    batch = task.sample(bridge.tokenizer, config.search_pairs + config.evaluation_pairs, seed=0, split="search")
    return count_edges(circuit.check_model(bridge), circuit.mask, weight_graph(bridge, batch))


def search_problem(
    bridge: Any, space: NodeSpace, ablation: Ablation, task: AnyTask, config: SearchConfig, *, seed: int = 0
) -> SearchProblem:
    """Sample the prompts of a search: those it learns on and those it must meet the target on are disjoint."""
    if bridge.tokenizer is None:
        raise CircuitError("the model has no tokenizer, so no prompts can be made; load it from a folder with tokenizer.json")
    n = config.search_pairs + config.evaluation_pairs
    batch = task.sample(bridge.tokenizer, n, seed=seed, split="search")
    _check_context(bridge, batch, task.name)
    prompts = both_sides(batch)
    first = prompts.pair < len(batch) * config.search_pairs // n  # a task of one's own may have fewer pairs
    evaluation = prompts.rows((~first).nonzero().flatten())
    return SearchProblem(
        bridge=bridge,
        space=space,
        ablation=ablation,
        task=task.name,
        search_prompts=prompts.rows(first.nonzero().flatten()),
        evaluation_prompts=evaluation,
        graph=weight_graph(bridge, batch),
    )


def _check_context(bridge: Any, batch: TaskBatch, name: str) -> None:
    longest, context = int(batch.length.max()), bridge.cfg.n_ctx
    if longest > context:
        raise CircuitError(f"task {name!r} has a prompt of {longest} tokens, the model reads {context}; use shorter prompts")


def learn_masks(
    problem: SearchProblem,
    target: float,
    config: SearchConfig,
    *,
    seed: int = 0,
    on_step: Callable[[], Any] = lambda: None,
) -> list[LearnedMask]:
    """One learned mask for every restart and every initial penalty."""
    return [
        learn_mask(
            problem.bridge,
            problem.space,
            problem.ablation,
            problem.search_prompts,
            target,
            config,
            penalty=penalty,
            seed=seed * 1000 + restart,
            on_step=on_step,
        )
        for restart in range(config.restarts)
        for penalty in config.penalties
    ]


def select_circuit(problem: SearchProblem, learned: Sequence[LearnedMask], target: float, config: SearchConfig) -> Circuit:
    """The smallest candidate of all learned masks that meets `target`, as a circuit with the search's trace."""
    with frozen(problem.bridge):
        candidates = [candidate for mask in learned for candidate in _candidates(problem, mask, target, config)]
    best = best_candidate(candidates, target)
    return Circuit(
        mask=best.mask,
        space=problem.space,
        reference=problem.ablation.means,
        ablation=problem.ablation.kind,
        frozen_norms=problem.ablation.frozen_norms,
        task=problem.task,
        model=model_fingerprint(problem.bridge),
        target_loss=target,
        loss=best.loss,
        search={
            "config": config.model_dump(mode="json"),
            "seeds": sorted({mask.seed for mask in learned}),
            "evaluations": len(candidates),
            "source": best.source,
            "trace": [{"nodes": c.n_nodes, "loss": round(c.loss, 5), "source": c.source} for c in candidates],
        },
    )


def best_candidate(candidates: Sequence[Candidate], target: float) -> Candidate:
    """The smallest candidate that meets `target`; without one, the candidate of least loss."""
    reached = [candidate for candidate in candidates if candidate.loss <= target]
    if reached:
        return min(reached, key=lambda candidate: (candidate.n_nodes, candidate.loss))
    return min(candidates, key=lambda candidate: candidate.loss)


def _candidates(problem: SearchProblem, learned: LearnedMask, target: float, config: SearchConfig) -> list[Candidate]:
    """`config.evaluations` candidates around one learned mask, fewer if none meets the target."""

    def score(mask: Tensor, source: str) -> Candidate:
        mask = on_paths(problem.space, mask, problem.graph)
        return Candidate(mask, problem.loss(mask), source)

    masks = {"mask": learned.mask, "smallest": learned.smallest, "whole model": torch.ones_like(learned.mask)}
    masks |= {f"snapshot {index}": mask for index, mask in enumerate(learned.snapshots)}
    found = [score(mask, source) for source, mask in masks.items() if mask is not None][: config.evaluations]
    order = learned.ranking.argsort(descending=True)
    sizes = _sizes(int(learned.mask.sum()), len(order), found[0].loss <= target)
    size = next(sizes, None)
    while size is not None and len(found) < config.evaluations:
        prefix = torch.zeros_like(learned.mask)
        prefix[order[:size]] = True
        found.append(score(prefix, f"prefix {size}"))
        try:
            size = sizes.send(found[-1].loss <= target)
        except StopIteration:
            size = None
    best = best_candidate(found, target)
    for node in order.flip(0).tolist():  # with what is left of the effort, single nodes are tried, the lowest ranked first
        if len(found) >= config.evaluations or best.loss > target:
            break
        if best.mask[node]:
            fewer = best.mask.clone()
            fewer[node] = False
            found.append(score(fewer, f"without {node}"))
            best = best_candidate([best, found[-1]], target)
    return found


def _sizes(size: int, most: int, met: bool) -> Generator[int, bool, None]:
    """Prefix sizes to try, told each time whether the last one met the target: grow until one does, then bisect below it."""
    low, high = (0, size) if met else (size, size)
    grow = 1.05
    while not met and high < most:
        low, high = high, min(most, max(high + 1, int(size * grow)))
        met = yield high
        grow = 1 + 2 * (grow - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if (yield middle) else (middle, high)


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
