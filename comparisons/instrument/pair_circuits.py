"""Sizes of the smallest circuits in both models of a pair at one target a task, with the controls of each model by itself.

A circuit means something if the same search needs many more nodes for labels that mean nothing, and in the same model with shuffled
weights, and if random nodes, as many at every site, recover little of what it recovers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparse_lens.circuits import SearchConfig
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.trust.controls import random_circuits
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.comparisons.circuit_sizes import (
    NONSENSE_TASK,
    Setting,
    common_target,
    control_circuit,
    error_nodes,
    prepare_setting,
    search_column,
)
from sparse_lens.comparisons.column_specs import ColumnSpec, mlp_units, open_column
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.instrument.pair_superposition import train_neuron_sae, unexplained
from sparse_lens.comparisons.instrument.sizes import ON_TASK, ROLES, Measured, Size, reading_batches, tasks_of
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.results import Result, exact, not_measurable

NONSENSE, SHUFFLED = "nonsense", "random_weights"
"""The controls that are searches: labels that mean nothing, and every tensor's nonzero weights shuffled."""

RECOVERED, RANDOM = "recovered", "random_circuits_recovered"


def measure_pair_circuits(pair: ModelPair, size: Size) -> Measured:
    """Nodes of the smallest circuits of neurons, in both models of a pair; see `measure_circuits`."""
    columns = {role: open_column(pair.address, ColumnSpec(own, own)) for role, own in ROLES.items()}
    shuffled = {role: open_column(pair.address, ColumnSpec(own, own, shuffled=True)) for role, own in ROLES.items()}
    return measure_circuits(columns, shuffled, tasks_of(pair)[: size.tasks], size.search)


def measure_latent_circuits(pair: ModelPair, size: Size) -> Measured:
    """The same with the dense model's MLPs read through SAEs of its neurons, of twice as many latents, trained for this.

    What an SAE does not reconstruct is one node of its site, which a circuit keeps or not, and which counts: `fvu` is its share of
    the variance, `error_nodes` how many circuits keep. Shuffled weights have SAEs of their own.
    """
    sparse, dense = ROLES.values()
    columns, shuffled = ({"sparse": open_column(pair.address, ColumnSpec(sparse, sparse, shuffled=own))} for own in (False, True))
    with tempfile.TemporaryDirectory() as folder:
        columns["dense"], fvu = _through_saes(pair, ColumnSpec("SAE", dense), size, Path(folder) / "own")
        shuffled["dense"], _ = _through_saes(pair, ColumnSpec("SAE", dense, shuffled=True), size, Path(folder) / "shuffled")
    found = measure_circuits(columns, shuffled, tasks_of(pair)[: size.tasks], size.search)
    return found | {"dense": {**found["dense"], "fvu": fvu}}


def _through_saes(pair: ModelPair, spec: ColumnSpec, size: Size, folder: Path) -> tuple[Column, Result]:
    """A model's column with SAEs of its MLP neurons, trained into `folder`, and what they leave unexplained on average."""
    column, held_out = open_column(pair.address, spec), reading_batches(pair, size.tokens)
    places, left = [], []
    for layer, units in enumerate(mlp_units(column)):
        places.append(str(folder / f"sae-{layer}"))
        trained = train_neuron_sae(pair, column.bridge, units, size, Path(places[-1]), held_out)
        left.append(trained.statistics.fvu)
    through = ColumnSpec(spec.name, spec.model, "dictionaries", (tuple(places),), shuffled=spec.shuffled)
    known = [fvu for fvu in left if fvu is not None]
    return open_column(pair.address, through), unexplained(float(np.mean(known)) if len(known) == len(left) else None)


def measure_circuits(
    columns: Mapping[str, Column], shuffled: Mapping[str, Column], tasks: Sequence[str], config: SearchConfig
) -> Measured:
    """Nodes of the smallest circuits found at one target a task, as log2: for each task, and the mean over tasks.

    Of the tasks that all columns do, those count on which all reach the target; `shuffled` has each column once more with its
    weights shuffled. `CONTROL_margin` is log2 of the nodes that the same search needs in a control at the same targets, less that
    of the circuits, over the tasks at whose target the control was fitted at all (`CONTROL_fitted`). `recovered` is what the
    circuits recover on held-out prompts, and `random_circuits_recovered` what random ones of their size do, means over tasks.
    """
    found = {role: _Found() for role in columns}
    for task in tasks:
        settings = {role: prepare_setting(column, task, config, seed=0) for role, column in columns.items()}
        if not all(setting.passes for setting in settings.values()):
            continue
        target = common_target(list(settings.values()))
        circuits = {role: search_column(of, target, config, seed=0, on_step=_nothing).circuit for role, of in settings.items()}
        if not all(circuit.reached for circuit in circuits.values()):
            continue
        for role, circuit in circuits.items():
            found[role].add(task, settings[role], circuit, shuffled[role], config)
    return {role: of.results(tasks) for role, of in found.items()}


@dataclass
class _Found:
    """What was found in one column, task by task: log2 of nodes, of those of each control that was fitted, and recovered shares."""

    nodes: dict[str, float] = field(default_factory=dict)
    controls: dict[str, dict[str, float]] = field(default_factory=lambda: {NONSENSE: {}, SHUFFLED: {}})
    recovered: list[Result] = field(default_factory=list)
    random: list[Result] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)

    def add(self, task: str, setting: Setting, circuit: Circuit, shuffled: Column, config: SearchConfig) -> None:
        """A task's circuit, and its controls."""
        self.nodes[task], column = _log2(circuit), setting.column
        for control, where, what in ((NONSENSE, column, NONSENSE_TASK), (SHUFFLED, shuffled, task)):
            fitted = control_circuit(where, what, circuit.target_loss, config, seed=0, on_step=_nothing)
            if fitted.reached:
                self.controls[control][task] = _log2(fitted)
        runs = CircuitRuns(column.bridge, circuit, setting.heldout)
        self.recovered.append(runs.recovered(runs.alone))
        self.random.append(random_circuits(runs, same_errors=True))
        self.errors.append(error_nodes(circuit))

    def results(self, tasks: Sequence[str]) -> dict[str, Result]:
        """The numbers over the tasks that were added, of those that were asked for."""
        n = len(self.nodes)
        if not n:
            none = not_measurable(f"on no task of {', '.join(tasks)} do both models reach the target")
            of_controls = [f"{control}_{name}" for control in self.controls for name in ("margin", "fitted")]
            return dict.fromkeys(["log2_nodes", *of_controls, RECOVERED, RANDOM, "error_nodes"], none)
        found = {f"log2_nodes{ON_TASK}{task}": exact(value) for task, value in self.nodes.items()}
        found["log2_nodes"] = _mean(list(self.nodes.values()))
        for control, of in self.controls.items():
            margins = [value - self.nodes[task] for task, value in of.items()]
            unfitted = not_measurable(f"{_TOLD[control]} by no circuit at these targets", n=n)
            found[f"{control}_margin"] = _mean(margins) if margins else unfitted
            found[f"{control}_fitted"] = exact(len(margins), n=n)
        found |= {RECOVERED: _mean_share(self.recovered), RANDOM: _mean_share(self.random)}
        return found | {"error_nodes": _mean(self.errors)}


_TOLD = {NONSENSE: "nonsense labels are fitted", SHUFFLED: "with shuffled weights the task is done"}


def _log2(circuit: Circuit) -> float:
    return float(np.log2(max(circuit.n_nodes, 1)))


def _mean(values: Sequence[float]) -> Result:
    return exact(float(np.mean(values)), n=len(values))


def _mean_share(shares: Sequence[Result]) -> Result:
    """The mean over tasks; not measurable where one is not."""
    if failed := next((share for share in shares if share.value is None), None):
        return failed
    return _mean([share.value for share in shares if share.value is not None])


def _nothing(*_: Any) -> None:
    pass
