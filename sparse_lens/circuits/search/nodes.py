"""Search for the smallest circuit at a target task loss.

Masks are learned (`learning`), candidates around each are scored after their nodes off all paths have been dropped (`candidates`);
the smallest that meets the target wins, or, if none does, the one with the least loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.ablation import Ablation, AblationKind
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.counting import count_edges
from sparse_lens.circuits.masking import mean_reference
from sparse_lens.circuits.search.candidates import Candidate, best_candidate, score_masks
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.interrupting import collected, so_far
from sparse_lens.circuits.search.learning import LearnedMask, frozen, learn_mask
from sparse_lens.circuits.search.objectives import TASK_LOSS, Objective, TargetKind, objective_of
from sparse_lens.circuits.search.problems import SearchProblem, default_windows, search_problem
from sparse_lens.circuits.sites import full_mask, model_fingerprint, node_space
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.dictionaries import Dictionary
from sparse_lens.tasks import AnyTask, get_task, metric_name

DEFAULT_TARGET = 0.15
"""Target two-token task loss of arXiv:2511.13653, in nats."""


def find_circuit(
    bridge: Any,
    task: str | AnyTask,
    *,
    dictionaries: Sequence[Dictionary] = (),
    target_loss: float = DEFAULT_TARGET,
    target_kind: TargetKind = "task",
    calibrate: bool = False,
    ablation: AblationKind = "mean",
    frozen_norms: bool = False,
    forbid: Bool[Tensor, " node"] | None = None,
    config: SearchConfig | None = None,
    windows: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Circuit:
    """The smallest circuit found for `task` in `bridge` at `target_loss` (two-token cross-entropy, nats).

    `windows` (token ids, `[window pos]`) are the pretraining distribution whose mean activations replace what is ablated; by
    default those that come with the shipped models. `ablation` and `frozen_norms` choose another replacement (see
    `sparse_lens.circuits.ablation`): circuits found under different ones are not of comparable size. `dictionaries` replace the
    channels of their hooks, those of the residual stream come on top; no node of `forbid` is kept (`exhaust_circuits` looks for
    backup circuits so). With the `target_kind` "kl", `target_loss` is the divergence from the model's own output, and `loss` of the
    circuit too (see `sparse_lens.circuits.search.objectives`, and there for `calibrate`).

    If nothing meets the target, the circuit of least loss comes back, with `reached` False. The whole search is recorded in
    `circuit.search`; `beats_model` there says whether the circuit's task loss is below the whole model's on the same prompts. After
    a Ctrl-C the best of what was learned by then comes back, and `interrupted` there is True; a second one ends it.
    """
    config = config or SearchConfig()
    how: dict[str, Any] = {"ablation": ablation, "frozen_norms": frozen_norms, "windows": windows, "seed": seed}
    how |= {"dictionaries": dictionaries, "forbid": forbid, "objective": Objective(target_kind, calibrate), "progress": progress}
    problem = prepare_search(bridge, task, config, **how)
    return search_circuit(problem, target_loss, config, seed=seed, progress=progress, keep_interrupted=True)


def prepare_search(
    bridge: Any,
    task: str | AnyTask,
    config: SearchConfig,
    *,
    dictionaries: Sequence[Dictionary] = (),
    objective: Objective = TASK_LOSS,
    ablation: AblationKind = "mean",
    frozen_norms: bool = False,
    forbid: Bool[Tensor, " node"] | None = None,
    windows: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SearchProblem:
    """Nodes, means and prompts of a search; the arguments are those of `find_circuit`."""
    task = get_task(task) if isinstance(task, str) else task
    space = node_space(bridge, dictionaries)
    windows = default_windows(bridge) if windows is None else windows
    reference = mean_reference(bridge, space, windows, progress=progress)
    how = Ablation(reference, ablation, frozen_norms, seed)
    return replace(search_problem(bridge, space, how, task, config, seed=seed, objective=objective), forbid=forbid)


def search_circuit(
    problem: SearchProblem,
    target: float,
    config: SearchConfig,
    *,
    seed: int = 0,
    progress: bool = False,
    keep_interrupted: bool = False,
) -> Circuit:
    """Learn masks for a problem and select the smallest circuit at `target`.

    With `keep_interrupted` a first Ctrl-C gives the best circuit so far, else `SearchInterrupted`, a `KeyboardInterrupt`.
    """
    with tqdm(total=config.masks * config.steps, desc=f"circuit for {problem.task}", disable=not progress) as bar:
        learned, stopped = so_far(
            lambda: learn_masks(problem, target, config, seed=seed, on_step=bar.update), keep=keep_interrupted
        )
    with frozen(problem.bridge):
        candidates, cut = so_far(lambda: score_masks(problem.score, learned, target, config), keep=keep_interrupted and not stopped)
    return found_circuit(problem, learned, candidates, target, config, interrupted=stopped or cut)


def circuit_edges(bridge: Any, circuit: Circuit, task: AnyTask | None = None) -> dict[str, int]:
    """Edges of a circuit between neurons, by kind, from its task's input tokens to its answers, or to all tokens for a KL target.

    The input tokens are those of the search prompts of seed 0, as in a comparison. Raises `CircuitError` for another model and
    for a circuit of latents.
    """
    task, config = task or get_task(circuit.task), SearchConfig()
    batch = task.sample(bridge.tokenizer, config.search_pairs + config.evaluation_pairs, seed=0, split="search")
    return count_edges(circuit.check_model(bridge), circuit.mask, objective_of(circuit).on(task).graph(weight_graph(bridge, batch)))


def learn_masks(
    problem: SearchProblem,
    target: float,
    config: SearchConfig,
    *,
    seed: int = 0,
    first: int = 0,
    on_step: Callable[[], Any] = lambda: None,
) -> list[LearnedMask]:
    """One learned mask for every initial penalty and every restart from the `first` on.

    Raises `SearchInterrupted` with those so far after a Ctrl-C.
    """
    where = (problem.bridge, problem.space, problem.ablation, problem.search_prompts, target, config)
    how: dict[str, Any] = {"objective": problem.objective, "forbid": problem.forbid, "require": problem.require, "on_step": on_step}
    restarts = [(seed * 1000 + restart, penalty) for restart in range(first, config.restarts) for penalty in config.penalties]
    return collected([partial(learn_mask, *where, penalty=penalty, seed=gates, **how) for gates, penalty in restarts])


def select_circuit(problem: SearchProblem, learned: Sequence[LearnedMask], target: float, config: SearchConfig) -> Circuit:
    """The smallest candidate of all learned masks that meets `target`, as a circuit with the search's trace."""
    with frozen(problem.bridge):
        candidates = score_masks(problem.score, learned, target, config)
    return found_circuit(problem, learned, candidates, target, config)


def found_circuit(
    problem: SearchProblem,
    learned: Sequence[LearnedMask],
    candidates: Sequence[Candidate],
    target: float,
    config: SearchConfig,
    *,
    interrupted: bool = False,
) -> Circuit:
    """The best of all candidates as a circuit, with the record of its search."""
    best = best_candidate(candidates, target)
    record = search_record(problem, config, learned, candidates, best, interrupted=interrupted)
    forbidden = 0 if problem.forbid is None else int(problem.forbid.sum())
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
        search=record | {"forbidden": forbidden, "trace": trace(candidates, "nodes")},
    )


def search_record(
    problem: SearchProblem,
    config: SearchConfig,
    learned: Sequence[LearnedMask],
    candidates: Sequence[Candidate],
    best: Candidate,
    *,
    interrupted: bool,
) -> dict[str, Any]:
    """How a circuit of nodes or edges was searched for, and how its task loss compares with the whole model's."""
    assert best.measured is not None
    model = problem.measure(full_mask(problem.space))
    calibration = best.measured.as_record()
    return {
        "config": config.model_dump(mode="json"),
        "effort": config.effort,
        "seeds": sorted({mask.seed for mask in learned}),
        "evaluations": len(candidates),
        "source": best.source,
        "target_kind": problem.objective.kind,
        "metric": None if problem.objective.metric is None else metric_name(problem.objective.metric),
        "task_loss": best.measured.task_loss,
        "model_loss": model.task_loss,
        "beats_model": best.measured.task_loss < model.task_loss,
        "calibration": None if calibration is None else calibration | {"model": model.as_record()},
        "interrupted": interrupted,
    }


def trace(candidates: Sequence[Candidate], what: str) -> list[dict[str, Any]]:
    """Size, loss and source of every candidate."""
    return [{what: c.size, "loss": round(c.loss, 5), "source": c.source} for c in candidates]
