"""Ctrl-C during a search of nodes or edges, or of several circuits: the best so far is kept, a second one ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges import search as edge_search
from sparse_lens.circuits.edges.search import find_edges
from sparse_lens.circuits.search import growing
from sparse_lens.circuits.search import nodes as search
from sparse_lens.circuits.search.candidates import Candidate, score_masks
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.exhaustion import exhaust
from sparse_lens.circuits.search.interrupting import SearchInterrupted, collected, so_far
from sparse_lens.circuits.search.learning import LearnedMask
from sparse_lens.circuits.search.nodes import learn_masks, search_circuit

from ..conftest import Planted, problem_of

CONFIG = SearchConfig(steps=20, pairs_per_step=4, penalties=(1e-3,), restarts=2, evaluations=8)


def interrupt_at(*calls: int) -> Callable[..., None]:
    """Raises at these calls, counted from 1."""
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count in calls:
            raise KeyboardInterrupt

    return step


class Bar:
    """A progress bar at whose `update` a Ctrl-C comes."""

    def __init__(self, *calls: int) -> None:
        self.update = interrupt_at(*calls)

    def __call__(self, *_: Any, **__: Any) -> Bar:
        return self

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_what_was_learned_is_in_the_interruption(planted: Planted) -> None:
    problem = problem_of(planted)
    before = [parameter.requires_grad for parameter in planted.bridge.parameters()]
    with pytest.raises(KeyboardInterrupt) as caught:  # whoever does not ask for it is interrupted as ever
        learn_masks(problem, 0.1, CONFIG, on_step=interrupt_at(25))
    assert isinstance(caught.value, SearchInterrupted)
    whole, cut = caught.value.found
    assert (whole.seed, cut.seed) == (0, 1)
    short = learn_masks(problem, 0.1, CONFIG.model_copy(update={"restarts": 1}))
    assert torch.equal(whole.ranking, short[0].ranking)
    assert [parameter.requires_grad for parameter in planted.bridge.parameters()] == before


@pytest.mark.parametrize("step", [1, 35])
def test_the_best_circuit_so_far_comes_back(planted: Planted, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(search, "tqdm", Bar(step))
    circuit = search_circuit(problem_of(planted), 0.1, CONFIG, keep_interrupted=True)
    assert circuit.search["interrupted"] is True
    assert circuit.reached  # "everything" is always a candidate
    assert circuit.search["seeds"] == ([0] if step <= 20 else [0, 1])


def test_a_growing_search_keeps_what_both_efforts_learned(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the second half: the masks of the first half and the cut one are in the record."""
    monkeypatch.setattr(growing, "tqdm", Bar(50))
    find = growing.growing_search(problem_of(planted), 0.1)
    first = find(CONFIG)
    assert first.search["interrupted"] is False
    second = find(CONFIG.doubled())
    assert second.search["interrupted"] is True and second.search["seeds"] == [0, 1, 2] and second.loss <= 0.1


def test_uninterrupted_searches_say_so(planted: Planted) -> None:
    circuit = search_circuit(problem_of(planted), 0.1, CONFIG.model_copy(update={"steps": 2, "restarts": 1, "evaluations": 2}))
    assert circuit.search["interrupted"] is False


def test_a_second_interruption_ends_the_search(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "tqdm", Bar(3))
    monkeypatch.setattr(search, "score_masks", interrupt_at(1))
    with pytest.raises(KeyboardInterrupt):
        search_circuit(problem_of(planted), 0.1, CONFIG, keep_interrupted=True)


def _learned() -> LearnedMask:
    gates = torch.ones(6, dtype=torch.bool)
    return LearnedMask(torch.arange(6.0), gates, None, (), 1e-3, 0, gates)


@pytest.mark.parametrize("call", [1, 3])
def test_candidates_scored_before_an_interruption_are_kept(call: int) -> None:
    step = interrupt_at(call)

    def score(mask: torch.Tensor, source: str) -> Candidate:
        step()
        return Candidate(mask, 0.1, source)

    if call == 1:
        with pytest.raises(KeyboardInterrupt):
            so_far(lambda: score_masks(score, [_learned()], 0.15, CONFIG), keep=True)
        return
    found, interrupted = so_far(lambda: score_masks(score, [_learned()], 0.15, CONFIG), keep=True)
    assert interrupted and [candidate.source for candidate in found] == ["mask", "everything"]
    with pytest.raises(SearchInterrupted):
        so_far(lambda: score_masks(score_stopping(), [_learned()], 0.15, CONFIG), keep=False)


def score_stopping() -> Callable[[torch.Tensor, str], Candidate]:
    step = interrupt_at(2)

    def score(mask: torch.Tensor, source: str) -> Candidate:
        step()
        return Candidate(mask, 0.1, source)

    return score


def test_jobs_done_before_an_interruption_are_kept() -> None:
    def stop() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SearchInterrupted) as caught:
        collected([lambda: 1, lambda: 2, stop, lambda: 4])
    assert caught.value.found == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        collected([stop])


def test_edges_found_before_an_interruption_are_kept(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(planted)
    circuit = search_circuit(problem, 0.1, CONFIG.model_copy(update={"restarts": 1}))
    monkeypatch.setattr(edge_search, "tqdm", Bar(5))
    monkeypatch.setattr(edge_search, "search_problem", lambda *_, **__: problem)
    windows = np.concatenate([planted.batch.clean, planted.batch.corrupt])
    found = find_edges(planted.bridge, circuit, _Task(), config=CONFIG, windows=windows)
    assert found.edges is not None and found.search["interrupted"] is True
    assert found.reached and found.mask.sum() <= circuit.mask.sum()


class _Task:
    """Stands for the planted task, whose prompts are made already."""

    name, description, control = "planted", "", False

    def sample(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


def test_circuits_found_before_an_interruption_are_kept(planted_twice: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.model_copy(update={"restarts": 1, "evaluations": 3, "steps": 3})
    monkeypatch.setattr(search, "tqdm", Bar(5))
    (found,) = exhaust(problem_of(planted_twice), 0.1, config, keep_interrupted=True)
    assert found.reached and found.search["exhaustion"]["ended"] == "interrupted"
    for keep, step in ((False, 5), (True, 2)):  # not asked for, or in the first search, whose target is out of reach
        monkeypatch.setattr(search, "tqdm", Bar(step))
        with pytest.raises(KeyboardInterrupt):
            exhaust(problem_of(planted_twice), 0.1 if step == 5 else 1e-12, config, keep_interrupted=keep)


def test_an_interrupted_circuit_is_saved_and_read(planted: Planted, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(search, "tqdm", Bar(2))
    circuit = search_circuit(problem_of(planted), 0.1, CONFIG, keep_interrupted=True)
    circuit.save(tmp_path / "c")
    again = Circuit.load(tmp_path / "c", planted.bridge)
    assert again.search["interrupted"] is True and torch.equal(again.mask, circuit.mask)
