"""The one call: everything about how far a circuit can be trusted, on one card."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from tqdm.auto import tqdm

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.scoring import CircuitScores, score_circuit
from sparse_lens.circuits.trust.card import CircuitCard, measured_loss, unscored
from sparse_lens.circuits.trust.quick import QuickTests
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.circuits.trust.searched import SearchedTests, not_searched
from sparse_lens.circuits.trust.searches import Searches, config_of
from sparse_lens.errors import CircuitError, DataError, UnknownNameError
from sparse_lens.tasks import AnyTask, get_task

Effort = Literal["quick", "full"]

HELDOUT_PAIRS, REPHRASED_PAIRS = 256, 128
"""Prompt pairs that scores are measured on."""


def evaluate_circuit(
    bridge: Any,
    circuit: Circuit,
    task: str | AnyTask | None = None,
    *,
    effort: Effort = "quick",
    windows: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CircuitCard:
    """How far `circuit` can be trusted in its model on `task` (by default its own), as a card with a verdict.

    "quick" runs model and circuit only: scores on held-out and rephrased prompts, curves, hypothesis tests, knock-outs,
    interchange, mixtures, random circuits. "full" also searches again, with the circuit's own effort, ablation and target: other
    seeds, prompts and templates, nonsense and shuffled labels, random weights (means over `windows`, by default those that come
    with the model), backup circuits; about fifteen searches. `seed` draws prompts and controls.

    Raises `CircuitError` for another model and for prompts longer than its context, `UnknownNameError` for an unknown task or
    effort, `DataError` for a task without held-out prompts.
    """
    if effort not in get_args(Effort):
        raise UnknownNameError("effort", str(effort), get_args(Effort))
    circuit.check_model(bridge)
    chosen = get_task(task or circuit.task) if not isinstance(task, AnyTask) else task
    runs = CircuitRuns(bridge, circuit, _prompts(bridge, chosen, HELDOUT_PAIRS, seed, "heldout"))
    quick, searches = QuickTests.on(runs, seed), Searches(bridge, circuit, chosen, config_of(circuit))
    stages = quick.stages() | (SearchedTests(searches, windows, seed).stages() if effort == "full" else {})
    with tqdm(total=len(stages) + 2, desc="scores", disable=not progress) as bar:
        heldout, rephrased = score_circuit(bridge, circuit, runs.prompts), _rephrased(bridge, circuit, chosen, seed)
        _next(bar, "curves")
        curves, measures = quick.curves()
        for name, stage in stages.items():
            _next(bar, name)
            for section, rows in stage().items():
                measures[section] = measures.get(section, {}) | rows
        bar.update()
    if effort == "quick":
        measures |= not_searched('needs searches; use effort="full"')
    return CircuitCard(
        task=chosen.name,
        model=circuit.model,
        nodes=circuit.n_nodes,
        all_nodes=circuit.space.n_nodes,
        ablation=circuit.ablation,
        frozen_norms=circuit.frozen_norms,
        target_loss=circuit.target_loss,
        effort=effort,
        seed=seed,
        heldout=heldout,
        rephrased=rephrased,
        measures=measures,
        curves=curves,
        edges=None if circuit.edges is None else circuit.edges.kept.n_edges,
        search_loss=measured_loss(circuit.loss),
    )


def _next(bar: tqdm[Any], name: str) -> None:
    bar.update()
    bar.set_description(name)


def _prompts(bridge: Any, task: AnyTask, n_pairs: int, seed: int, split: str) -> Prompts:
    """Prompts of a split; raises `CircuitError` if one is longer than the model reads."""
    prompts = both_sides(task.sample(bridge.tokenizer, n_pairs, seed=seed, split=split))
    longest, context = int(prompts.position.max()) + 1, bridge.cfg.n_ctx
    if longest > context:
        where = f"task {task.name!r}, split {split!r}"
        raise CircuitError(f"{where}: a prompt has {longest} tokens, the model reads {context}; use shorter prompts")
    return prompts


def _rephrased(bridge: Any, circuit: Circuit, task: AnyTask, seed: int) -> CircuitScores:
    """Scores on rephrased prompts; a task of one's own need not have any, and with a line before them they may be too long."""
    try:
        return score_circuit(bridge, circuit, _prompts(bridge, task, REPHRASED_PAIRS, seed, "rephrased"))
    except (DataError, CircuitError) as error:
        return unscored(str(error))
