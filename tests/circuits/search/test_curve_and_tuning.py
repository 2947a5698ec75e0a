"""Curves over targets, hyperparameter search and searches side by side, in the shipped model at little effort."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits.search import parallel, tuning
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.curve import curve_frame, find_curve
from sparse_lens.circuits.search.exhaustion import exhaust_circuits
from sparse_lens.circuits.search.nodes import find_circuit
from sparse_lens.circuits.search.parallel import find_circuits
from sparse_lens.circuits.search.problems import default_windows
from sparse_lens.circuits.search.tuning import tune_search
from sparse_lens.errors import CircuitError, ConfigError
from sparse_lens.hooks import load

from ..conftest import Planted, problem_of, random_bridge

QUICK = SearchConfig(steps=2, pairs_per_step=2, evaluations=3, search_pairs=8, evaluation_pairs=4)
TASK = "single_double_quote"


@pytest.fixture(scope="module")
def sparse() -> Any:
    return load("python-sparse")


@pytest.fixture(scope="module")
def few(sparse: Any) -> np.ndarray:
    return default_windows(sparse)[:2]


def same(one: Any, other: Any) -> bool:
    return torch.equal(one.mask, other.mask) and one.loss == other.loss and one.search == other.search


def test_a_curve_over_both_kinds_of_target(sparse: Any, few: np.ndarray) -> None:
    how = {"config": QUICK, "windows": few, "progress": False}
    found = find_curve(sparse, TASK, task_losses=(0.6, 0.2), divergences=(0.5,), **how)
    assert [(c.target_loss, c.search["target_kind"]) for c in found] == [(0.6, "task"), (0.2, "task"), (0.5, "kl")]
    assert same(found[1], find_circuit(sparse, TASK, target_loss=0.2, **how))
    alone = find_circuit(sparse, TASK, target_loss=0.5, target_kind="kl", **how)
    assert torch.equal(found[2].mask, alone.mask) and found[2].loss == pytest.approx(alone.loss, abs=1e-6)
    everything = next(row for row in found[2].search["trace"] if row["source"] == "everything")
    assert everything["loss"] < 0.01  # what reaches any token's logit is all that the output hangs on
    frame = curve_frame(found)
    assert list(frame["kind"]) == ["task", "task", "kl"] and list(frame["size"]) == [c.n_nodes for c in found]
    for targets in ({"task_losses": ()}, {"task_losses": (0.1, 0.0)}):
        with pytest.raises(ConfigError, match="targets above 0"):
            find_curve(sparse, TASK, **targets, **how)  # pyright: ignore[reportArgumentType]


def test_forbidden_nodes_and_exhaustion_in_a_shipped_model(sparse: Any, few: np.ndarray) -> None:
    how = {"config": QUICK, "windows": few, "progress": False, "target_loss": 5.0}
    first = find_circuit(sparse, TASK, **how)
    second = find_circuit(sparse, TASK, forbid=first.mask, **how)
    assert not bool((first.mask & second.mask).any()) and second.search["forbidden"] == first.n_nodes
    for circuit in exhaust_circuits(sparse, TASK, max_circuits=2, **how):
        assert circuit.reached and "exhaustion" in circuit.search
    with pytest.raises(ConfigError, match="max_circuits"):
        exhaust_circuits(sparse, TASK, max_circuits=0, **how)


def test_tuning_never_ends_worse_than_it_starts(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    problem = problem_of(planted)
    monkeypatch.setattr(tuning, "prepare_search", lambda *_, **__: problem)
    start = SearchConfig(steps=10, pairs_per_step=2, evaluations=6, penalties=(1e-3,))
    tried: list[tuple[SearchConfig, float]] = []
    search = tuning.search_circuit

    def noted(problem: Any, target: float, config: SearchConfig, **how: Any) -> Any:
        circuit = search(problem, target, config, **how)
        tried.append((config, tuning._cost(circuit)))
        return circuit

    monkeypatch.setattr(tuning, "search_circuit", noted)
    best = tune_search(planted.bridge, "planted", 4, target_loss=0.1, config=start, progress=False)
    configs = [config for config, _ in tried]
    assert configs[0] == start and best == min(tried, key=lambda pair: pair[1])[0]
    assert len({config.learning_rate for config in configs}) == 4
    assert {(config.steps, config.evaluations, config.effort) for config in configs} == {(10, 6, start.effort)}


def test_a_missed_target_costs_more_than_the_whole_model(planted: Planted) -> None:
    config = SearchConfig(steps=1, pairs_per_step=2, evaluations=2)
    circuit = tuning.search_circuit(problem_of(planted), 0.1, config)
    costs = [tuning._cost(replace(circuit, loss=loss)) for loss in (0.05, 0.2, 0.4)]
    assert costs[0] == circuit.n_nodes and planted.space.n_nodes < costs[1] < costs[2]


def test_without_optuna_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match="tune"):
        tune_search(None, TASK)
    with pytest.raises(ConfigError, match="n_trials"):
        tune_search(None, TASK, 0)


def test_one_worker_finds_what_find_circuit_finds(sparse: Any, few: np.ndarray) -> None:
    how = {"config": QUICK, "windows": few, "progress": False}
    found = find_circuits(sparse, [TASK], [0, 1], workers=1, **how)
    assert same(found[0], find_circuit(sparse, TASK, seed=0, **how))
    assert same(found[1], find_circuit(sparse, TASK, seed=1, **how))


def test_the_work_of_another_process_comes_back_the_same(sparse: Any, few: np.ndarray, tmp_path: Path) -> None:
    """What a worker does, done here: it loads the model from a folder and saves the circuit."""
    search = parallel._Search(0.15, parallel.Objective(), "mean", False, QUICK, few)
    task = parallel.get_task(TASK)
    with parallel._as_folder(sparse) as folder:
        parallel._run(folder, (task, 1), search, tmp_path / "c")
    again = parallel.Circuit.load(tmp_path / "c", sparse)
    (direct,) = find_circuits(sparse, [TASK], [1], config=QUICK, windows=few, progress=False)
    assert same(again, direct)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(sparse: Any, few: np.ndarray) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        how = {"config": QUICK, "windows": few, "progress": False}
        one, two = (find_circuits(sparse, [TASK, "if_equals"], [0, 1], workers=n, **how) for n in (1, 2))
    finally:
        torch.set_num_threads(threads)
    assert [(c.task, c.search["seeds"]) for c in two] == [(TASK, [0]), (TASK, [1000]), ("if_equals", [0]), ("if_equals", [1000])]
    assert all(same(*pair) for pair in zip(one, two, strict=True))


def test_what_cannot_run_elsewhere_is_said(sparse: Any, few: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="workers"):
        find_circuits(sparse, [TASK], workers=0)

    class Own:
        """A task that is no part of a module, which pickle needs."""

        name, description, control = "own", "", False

        def sample(self, tokenizer: Any, n: int, *, seed: int, split: str) -> Any: ...

    with pytest.raises(CircuitError, match="another process"):
        find_circuits(sparse, [Own(), Own()], windows=few)
    with pytest.raises(CircuitError, match="tokenizer"):
        find_circuits(random_bridge(), [TASK], [0, 1], windows=few)
