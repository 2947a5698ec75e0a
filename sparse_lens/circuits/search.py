"""Search for the smallest circuit at a target task loss.

Masks are learned (`learning`), candidates around each are scored after their nodes off all paths have been dropped (`candidates`);
the smallest that meets the target wins, or, if none does, the one with the least loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.ablation import Ablation, AblationKind
from sparse_lens.circuits.candidates import Candidate, best_candidate, gather_candidates
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

    def score(self, mask: Bool[Tensor, " node"], source: str) -> Candidate:
        """The mask without its nodes off all paths, and its loss."""
        mask = on_paths(self.space, mask, self.graph)
        return Candidate(mask, self.loss(mask), source)


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
        candidates = [c for mask in learned for c in gather_candidates(problem.score, mask, target, config)]
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
            "trace": [{"nodes": c.size, "loss": round(c.loss, 5), "source": c.source} for c in candidates],
        },
    )


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
