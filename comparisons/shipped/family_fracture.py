"""Fracture of the models of a family, on the tasks that all of them do: on other tasks it is another measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.column_specs import mlp_neurons
from sparse_lens.comparisons.fracture import FractureConfig, fracture_columns
from sparse_lens.comparisons.fracture.model_fracture import task_accuracy
from sparse_lens.comparisons.instrument.neuron_controls import mean_results
from sparse_lens.comparisons.instrument.sizes import MOST_LAYERS, SMOKE, layers_read
from sparse_lens.comparisons.jobs import Job, run_jobs
from sparse_lens.hooks import load
from sparse_lens.models_shipped import address_of, folder_at
from sparse_lens.results import Result, from_plain, not_measurable

_FORMAT = "family fracture 1"
"""Raised when what a cell computes changes, so that older records are not taken for its."""

_FEWEST = 2
"""Tasks that entanglement, a share of tasks, says anything about."""


def accuracies_cell(model: str, tasks: Sequence[str]) -> dict[str, float]:
    """How often a model, given by its address, prefers the right one of two answers, task by task."""
    bridge: Any = load(folder_at(model))
    return {task: task_accuracy(bridge, task) for task in tasks}


def fracture_cell(model: str, tasks: Sequence[str], smoke: bool, layers: Sequence[int] | None = None) -> dict[str, Result]:
    """`fracture_columns` of a model's MLP neurons, averaged over all layers, or over the given ones."""
    bridge: Any = load(folder_at(model))
    config = SMOKE.fracture if smoke else FractureConfig()
    neurons = mlp_neurons(bridge)
    read = neurons if layers is None else [neurons[layer] for layer in layers]
    return mean_results([fracture_columns({"neurons": (bridge, of)}, tasks, config, gate=0)["neurons"] for of in read])


def _fingerprint_and_depth(address: str) -> tuple[str, int]:
    bridge: Any = load(folder_at(address))
    return model_fingerprint(bridge), len(mlp_neurons(bridge))


def tasks_of_all(folders: Mapping[str, Path], fingerprints: Mapping[str, str], tasks: Sequence[str], **how: Any) -> list[str]:
    """Those of the tasks that all models do, of the `model_fingerprint` that stands beside each; `how` is that of `run_jobs`."""
    jobs = _jobs(folders, fingerprints, "accuracies", "accuracies_cell", tasks=list(tasks))
    accuracies = run_jobs(list(jobs.values()), **how)
    return [task for task in tasks if all(found[task] >= ACCURACY_GATE for found in accuracies)]


def _jobs(folders: Mapping[str, Path], fingerprints: Mapping[str, str], what: str, cell: str, **arguments: Any) -> dict[str, Job]:
    return {
        name: Job(
            f"{what} of {name}", f"{__name__}:{cell}", {"model": address_of(folder)} | arguments, [_FORMAT, fingerprints[name]]
        )
        for name, folder in folders.items()
    }


def family_fracture(
    folders: Mapping[str, Path], tasks: Sequence[str], *, smoke: bool = False, **how: Any
) -> tuple[list[str], dict[str, dict[str, Result]]]:
    """The tasks that all models do, and by model what `fracture_columns` gives on these; `how` is that of `run_jobs`.

    Of models of more than four layers `layers_read` are measured. Nothing is measurable where no task is done by all,
    entanglement not on a single one.
    """
    facts = {name: _fingerprint_and_depth(address_of(folder)) for name, folder in folders.items()}
    fingerprints = {name: fingerprint for name, (fingerprint, _) in facts.items()}
    done = tasks_of_all(folders, fingerprints, tasks, **how)
    cells = _jobs(folders, fingerprints, "fracture", "fracture_cell", tasks=done, smoke=smoke)
    cells |= {
        name: replace(cells[name], arguments={**cells[name].arguments, "layers": layers_read(depth)})
        for name, (_, depth) in facts.items()
        if depth > MOST_LAYERS
    }
    records = run_jobs(list(cells.values()), **how)
    found = {name: from_plain(record) for name, record in zip(folders, records, strict=True)}
    if len(done) < _FEWEST:
        few = not_measurable(f"{len(done)} of {len(tasks)} tasks are done by all models; a share of tasks needs {_FEWEST}")
        found = {name: of | {metric: few for metric in of if metric.endswith("entanglement")} for name, of in found.items()}
    return done, found
