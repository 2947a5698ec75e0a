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
from sparse_lens.circuits.trust.controls import random_circuits, random_weights_size
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.circuits.trust.searches import Searches
from sparse_lens.comparisons.circuit_sizes import Setting, common_target, nonsense_circuit, prepare_setting, search_column
from sparse_lens.comparisons.column_specs import ColumnSpec, mlp_units, open_column
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.instrument.pair_superposition import train_neuron_sae
from sparse_lens.comparisons.instrument.sizes import ON_TASK, ROLES, Measured, Size, reading_batches, tasks_of
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.results import Result, exact, not_measurable
from sparse_lens.tasks import get_task

NONSENSE, SHUFFLED = "nonsense", "random_weights"
"""The controls that are searches: labels that mean nothing, and every tensor's nonzero weights shuffled."""

RANDOM = "random_circuits_recovered"


def measure_pair_circuits(pair: ModelPair, size: Size) -> Measured:
    """Nodes of the smallest circuits of neurons, in both models of a pair; see `measure_circuits`."""
    columns = {role: open_column(pair.address, ColumnSpec(own, own)) for role, own in ROLES.items()}
    return measure_circuits(columns, tasks_of(pair)[: size.tasks], size.search)


def measure_latent_circuits(pair: ModelPair, size: Size) -> Measured:
    """The same with the dense model's MLPs read through SAEs of its neurons, of twice as many latents, trained for this.

    What an SAE does not reconstruct is one node of its site, which a circuit keeps or not, and which counts.
    """
    sparse, dense = (ColumnSpec(own, own) for own in ROLES.values())
    held_out = reading_batches(pair, size.tokens)
    with tempfile.TemporaryDirectory() as folder:
        column, folders = open_column(pair.address, dense), []
        for layer, units in enumerate(mlp_units(column)):
            folders.append(str(Path(folder) / f"sae-{layer}"))
            train_neuron_sae(pair, column.bridge, units, size, Path(folders[-1]), held_out)
        read_through = ColumnSpec("SAE", dense.model, "dictionaries", (tuple(folders),))
        columns = {role: open_column(pair.address, spec) for role, spec in zip(ROLES, (sparse, read_through), strict=True)}
    return measure_circuits(columns, tasks_of(pair)[: size.tasks], size.search)


def measure_circuits(columns: Mapping[str, Column], tasks: Sequence[str], config: SearchConfig) -> Measured:
    """Nodes of the smallest circuits found at one target a task, as log2: for each task, and the mean over tasks.

    Of the tasks that all columns do, those count on which all reach the target. `CONTROL_margin` is log2 of the nodes that the same
    search needs in a control at the same targets, less that of the circuits, over the tasks at whose target the control was fitted
    at all (`CONTROL_fitted`). `recovered` is what the circuits recover on held-out prompts, and `random_circuits_recovered` what
    random ones of their size do, means over tasks.
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
            found[role].add(task, settings[role], circuit, config)
    return {role: of.results(tasks) for role, of in found.items()}


@dataclass
class _Found:
    """What was found in one column, task by task."""

    nodes: dict[str, float] = field(default_factory=dict)
    margins: dict[str, list[float]] = field(default_factory=lambda: {NONSENSE: [], SHUFFLED: []})
    missing: dict[str, str] = field(default_factory=dict)
    recovered: list[Result] = field(default_factory=list)
    random: list[Result] = field(default_factory=list)

    def add(self, task: str, setting: Setting, circuit: Circuit, config: SearchConfig) -> None:
        """A task's circuit, and its controls."""
        column = setting.column
        self.nodes[task] = _log2(circuit)
        fitted = nonsense_circuit(column, circuit.target_loss, config, seed=0, on_step=_nothing)
        self._margin(NONSENSE, task, _log2(fitted) if fitted.reached else None)
        if column.space.has_dictionaries:
            self.missing[SHUFFLED] = "dictionaries of the model say nothing about a copy with shuffled weights"
        else:
            searches = Searches(column.bridge, circuit, get_task(task), config)
            shuffled = random_weights_size(searches, circuit, windows=column.reference).nodes.value
            self._margin(SHUFFLED, task, None if shuffled is None else float(np.log2(max(shuffled, 1))))
        runs = CircuitRuns(column.bridge, circuit, setting.heldout)
        self.recovered.append(runs.recovered(runs.alone))
        self.random.append(random_circuits(runs))

    def _margin(self, control: str, task: str, nodes: float | None) -> None:
        if nodes is not None:
            self.margins[control].append(nodes - self.nodes[task])

    def results(self, tasks: Sequence[str]) -> dict[str, Result]:
        """The numbers over the tasks that were added, of those that were asked for."""
        missing, n = not_measurable(f"on no task of {', '.join(tasks)} do both models reach the target"), len(self.nodes)
        found = {f"log2_nodes{ON_TASK}{task}": exact(value) for task, value in self.nodes.items()}
        found["log2_nodes"] = _mean(list(self.nodes.values()), missing)
        for control, margins in self.margins.items():
            told = self.missing.get(control, f"{_TOLD[control]} by no circuit at these targets")
            found[f"{control}_margin"] = _mean(margins, not_measurable(told, n=n))
            found[f"{control}_fitted"] = not_measurable(told) if control in self.missing else exact(len(margins), n=n)
        for name, shares in (("recovered", self.recovered), (RANDOM, self.random)):
            found[name] = _mean([share.value for share in shares if share.value is not None], missing)
        return found


_TOLD = {NONSENSE: "nonsense labels are fitted", SHUFFLED: "with shuffled weights the task is done"}


def _log2(circuit: Circuit) -> float:
    return float(np.log2(max(circuit.n_nodes, 1)))


def _mean(values: Sequence[float], otherwise: Result) -> Result:
    return exact(float(np.mean(values)), n=len(values)) if values else otherwise


def _nothing(*_: Any) -> None:
    pass
