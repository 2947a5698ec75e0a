"""Searches side by side: several tasks and seeds in one model, each in a process with one thread."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sparse_lens.circuits.ablation import Ablation, AblationKind
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.nodes import DEFAULT_TARGET, prepare_search, search_circuit
from sparse_lens.circuits.search.objectives import Objective, TargetKind
from sparse_lens.circuits.search.problems import SearchProblem, default_windows, search_problem
from sparse_lens.errors import CircuitError, ConfigError
from sparse_lens.hooks import load
from sparse_lens.models import CircuitGPTForCausalLM
from sparse_lens.processes import worker_pool
from sparse_lens.tasks import AnyTask, get_task


@dataclass(frozen=True)
class _Search:
    """What all searches of one call share."""

    target: float
    objective: Objective
    ablation: AblationKind
    frozen_norms: bool
    config: SearchConfig
    windows: np.ndarray


def find_circuits(
    bridge: Any,
    tasks: Sequence[str | AnyTask],
    seeds: Sequence[int] = (0,),
    *,
    workers: int = 2,
    target_loss: float = DEFAULT_TARGET,
    target_kind: TargetKind = "task",
    calibrate: bool = False,
    ablation: AblationKind = "mean",
    frozen_norms: bool = False,
    config: SearchConfig | None = None,
    windows: np.ndarray | None = None,
    progress: bool = True,
) -> list[Circuit]:
    """The circuit of every task for every seed, task after task: what `find_circuit` finds for each, `workers` at a time.

    With several workers each search runs in a process of its own, with one thread, on a copy of the model, and comes back as a
    circuit file; a script must then guard its own start with `if __name__ == "__main__":`. Results do not depend on `workers`
    where torch runs on one thread, as with more threads sums may round otherwise. With one worker everything runs here.

    Raises `ConfigError` for less than one worker; with several, `CircuitError` for a model that is no CircuitGPT and for a task
    that cannot be sent to another process. Ctrl-C ends all searches.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    chosen = [get_task(task) if isinstance(task, str) else task for task in tasks]
    jobs = [(task, seed) for task in chosen for seed in seeds]
    windows = default_windows(bridge) if windows is None else windows
    objective = Objective(target_kind, calibrate)
    search = _Search(target_loss, objective, ablation, frozen_norms, config or SearchConfig(), windows)
    with tqdm(total=len(jobs), desc="circuits", disable=not progress) as bar:
        if workers == 1 or len(jobs) < 2:
            return _one_by_one(bridge, jobs, search, bar.update)
        return _side_by_side(bridge, jobs, search, min(workers, len(jobs)), bar.update)


def _one_by_one(
    bridge: Any, jobs: Sequence[tuple[AnyTask, int]], search: _Search, on_done: Callable[[], Any] = lambda: None
) -> list[Circuit]:
    found: list[Circuit] = []
    first: SearchProblem | None = None
    for task, seed in jobs:
        first = first or _first_problem(bridge, task, seed, search)
        how = Ablation(first.ablation.means, search.ablation, search.frozen_norms, seed)
        problem = search_problem(bridge, first.space, how, task, search.config, seed=seed, objective=search.objective)
        found.append(search_circuit(problem, search.target, search.config, seed=seed))
        on_done()
    return found


def _first_problem(bridge: Any, task: AnyTask, seed: int, search: _Search) -> SearchProblem:
    how: dict[str, Any] = {"ablation": search.ablation, "frozen_norms": search.frozen_norms, "windows": search.windows}
    return prepare_search(bridge, task, search.config, objective=search.objective, seed=seed, **how)


def _side_by_side(
    bridge: Any, jobs: Sequence[tuple[AnyTask, int]], search: _Search, workers: int, on_done: Callable[[], Any]
) -> list[Circuit]:
    _check_sendable([task for task, _ in jobs])
    with _as_folder(bridge) as folder, TemporaryDirectory() as out:
        places = [Path(out) / str(index) for index in range(len(jobs))]
        with worker_pool(workers) as pool:
            futures = [pool.submit(_run, folder, job, search, place) for job, place in zip(jobs, places, strict=True)]
            for future in as_completed(futures):
                future.result()
                on_done()
        return [Circuit.load(place, bridge) for place in places]


def _check_sendable(tasks: Sequence[AnyTask]) -> None:
    for task in tasks:
        try:
            pickle.dumps(task)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise CircuitError(f"the task {task.name!r} cannot be sent to another process ({error}); use workers=1") from error


def _run(folder: Path, job: tuple[AnyTask, int], search: _Search, place: Path) -> None:
    """One search, in a process of its own."""
    (circuit,) = _one_by_one(_loaded(folder), [job], search)
    circuit.save(place)


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> Any:
    return load(folder)


@contextmanager
def _as_folder(bridge: Any) -> Iterator[Path]:
    """The bridge's model as a folder that another process can load; bridges themselves cannot be sent."""
    model = bridge.original_model
    if not isinstance(model, CircuitGPTForCausalLM) or bridge.tokenizer is None:
        raise CircuitError("only a CircuitGPT with a tokenizer can be searched in other processes; use workers=1")
    with TemporaryDirectory() as place:
        model.save_pretrained(place)
        bridge.tokenizer.save_pretrained(place)
        yield Path(place)
