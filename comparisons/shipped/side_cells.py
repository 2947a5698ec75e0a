"""What the side questions measure of a model: its neurons' wiring, its fracture, and what it loses when something changes.

Cells are plain JSON, kept by fingerprint (`run_jobs`). The wiring of a model reads labelled tokens; the rest reads prompts of the
tasks that all models do, for on other tasks each of these numbers is another measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_lens.circuits.prompts import both_sides, per_pair
from sparse_lens.circuits.scoring import logit_differences, task_loss
from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints, mlp_neurons
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens, label_pair
from sparse_lens.comparisons.concepts.pair_labels import labels_read
from sparse_lens.comparisons.fracture.hidden_until_shift import losses_under_change
from sparse_lens.comparisons.fracture.model_fracture import FractureConfig, fracture_index
from sparse_lens.comparisons.instrument.neuron_controls import mean_results
from sparse_lens.comparisons.instrument.sizes import SMOKE, Size
from sparse_lens.comparisons.jobs import Job, Record, run_jobs
from sparse_lens.comparisons.mechanism.neuron_wiring import NeuronWiring, measure_wiring
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.family_fracture import tasks_of_all
from sparse_lens.errors import ConfigError
from sparse_lens.hooks import load, sparsity_report
from sparse_lens.models_shipped import address_of
from sparse_lens.results import Result, bootstrap_mean, from_plain
from sparse_lens.tasks import available_tasks, get_task

FORMAT = "side questions 3"
"""What every cell here depends on beside its model: raised when what cells compute changes."""

_WIRING, _SHIFT = (f"sparse_lens.comparisons.shipped.side_cells:{name}" for name in ("wiring_cell", "shift_cell"))


@dataclass(frozen=True)
class SideSize:
    """How much is read: labelled tokens (of all held-out files, or the first so many), tasks that are tried (None: all), pairs of
    prompts a task, disturbances of the weights, and the fracture as the claims have it."""

    labelled_tokens: int = 100_000
    max_files: int | None = None
    tasks: Sequence[str] | None = None
    n_pairs: int = 64
    draws: int = 3
    fracture: FractureConfig = Size().fracture


QUICK = SideSize(labelled_tokens=4096, max_files=12, tasks=("if_equals", "else_elif"), n_pairs=8, draws=1, fracture=SMOKE.fracture)
"""The least that runs everything."""


@dataclass(frozen=True, eq=False)
class SideModel:
    """One model: the `density` of all its matrices, its neurons' wiring, and `shift`, the results of `shift_cell` by name."""

    density: float
    wiring: NeuronWiring
    shift: Mapping[str, Result]


def measure_side(
    pair: ModelPair, folders: Mapping[str, Path], size: SideSize | None = None, **how: Any
) -> tuple[dict[str, SideModel], dict[str, list[str]]]:
    """Every model by its name, and what was read: in words the files that the labels are of, and the tasks that all models do.

    `how` is that of `run_jobs`. Raises `ConfigError` for a model in whose tokens the pair's windows are not and where no task is
    done by all, and what its cells raise.
    """
    for folder in folders.values():
        pair.check_tokens(folder)
    size = size or SideSize()
    tried = list(size.tasks or available_tasks())
    hashes = {name: fingerprints(pair, ColumnSpec(name, address_of(folder)))[0] for name, folder in folders.items()}
    if not (tasks := tasks_of_all(folders, hashes, tried, **how)):
        raise ConfigError(f"none of {', '.join(tried)} is done by all of {', '.join(folders)}; leave out the weakest models")
    records = run_jobs(side_jobs(pair, folders, size, tasks), **how)
    wiring, shift = records[: len(folders)], records[len(folders) :]
    models = {name: side_model(own, changed) for name, own, changed in zip(folders, wiring, shift, strict=True)}
    return models, {"labels": list(dict.fromkeys(record["labels"] for record in wiring)), "tasks": tasks}


def side_model(wiring: Record, shift: Record) -> SideModel:
    """A model from the records of its two cells."""
    fan_in, fan_out = (np.array(wiring[name], dtype=np.int64) for name in ("fan_in", "fan_out"))
    outcomes = {name: np.array(values, dtype=np.float64) for name, values in wiring["outcomes"].items()}  # None becomes NaN
    found = NeuronWiring(fan_in, fan_out, wiring["weights"], outcomes)
    return SideModel(wiring["density"], found, from_plain(shift))


def side_jobs(pair: ModelPair, folders: Mapping[str, Path], size: SideSize, tasks: Sequence[str]) -> list[Job]:
    """The cells: the wiring of every model in their order, then the shift of every model on the tasks."""
    wiring: list[Job] = []
    shift: list[Job] = []
    for name, folder in folders.items():
        place = {"folder": address_of(folder)}
        depends = [FORMAT, *fingerprints(pair, ColumnSpec(name, place["folder"]))]
        labels = {"pair": pair.address, "tokens": size.labelled_tokens, "max_files": size.max_files}
        prompts = {"tasks": list(tasks), "n_pairs": size.n_pairs, "draws": size.draws, "fracture": asdict(size.fracture)}
        of_labels = [*depends, *labels_read(pair.address)]
        wiring.append(Job(f"wiring of {name}", _WIRING, place | labels, of_labels))
        shift.append(Job(f"shift of {name}", _SHIFT, place | prompts, depends))
    return wiring + shift


def wiring_cell(*, folder: str, pair: str, tokens: int, max_files: int | None) -> Record:
    """Density of all matrices, the fields of `NeuronWiring` as lists (outcomes to five decimals, None for none), and the files
    that the `labels` are of, in words: a cell."""
    bridge, (train, test) = load(folder), _labels(pair, tokens, max_files)
    found = measure_wiring(bridge, train, test)
    return {
        "density": sparsity_report(bridge).density,
        "weights": found.weights,
        "fan_in": found.fan_in.tolist(),
        "fan_out": found.fan_out.tolist(),
        "outcomes": {name: _plain(values) for name, values in found.outcomes.items()},
        "labels": train.source,
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(value, 5) if np.isfinite(value) else None for value in values.tolist()]


@lru_cache(maxsize=1)
def _labels(pair: str, tokens: int, max_files: int | None) -> tuple[LabelledTokens, LabelledTokens]:
    return label_pair(ModelPair.at(pair), n_tokens=tokens, max_files=max_files).split()


def shift_cell(*, folder: str, tasks: Sequence[str], n_pairs: int, draws: int, fracture: Mapping[str, Any]) -> dict[str, Result]:
    """`fracture`, on mirrored prompts, the mean over layers of neurons; `task_loss` in nats; and `losses_under_change`: a cell.

    The model is taken to do the `tasks`; none is asked whether it does.
    """
    bridge, config = load(folder), FractureConfig(**fracture)
    found = [fracture_index(bridge, neurons, tasks, config, gate=0) for neurons in mlp_neurons(bridge)]
    return {
        "fracture": mean_results(found)["mirror_fracture"],
        "task_loss": _task_loss(bridge, tasks, n_pairs),
        **losses_under_change(bridge, tasks, n_pairs=n_pairs, draws=draws),
    }


@torch.no_grad()
def _task_loss(bridge: Any, tasks: Sequence[str], n_pairs: int) -> Result:
    """Mean over pairs of held-out prompts of all tasks, the prompts on which `losses_under_change` measures accuracy."""
    losses = []
    for name in tasks:
        prompts = both_sides(get_task(name).sample(bridge.tokenizer, n_pairs, seed=0, split="heldout"))
        losses.append(per_pair(task_loss(logit_differences(bridge, prompts, [], alike=True)), prompts))
    return bootstrap_mean(np.concatenate(losses))
