"""Effort is a number; it is doubled until sizes settle, equally for all that is compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.cutting import input_means
from sparse_lens.circuits.edges.search import EdgeProblem, learn_edges, select_edges
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.effort import converge
from sparse_lens.circuits.search.growing import growing_edge_search, growing_search
from sparse_lens.circuits.search.nodes import search_circuit
from sparse_lens.errors import ConfigError

from ..conftest import FIRST, SECOND, Planted, problem_of


def test_effort_is_restarts_times_penalties_times_runs() -> None:
    assert SearchConfig().effort == 240 + 24
    assert SearchConfig(restarts=3, penalties=(1e-3, 1e-4), steps=10, evaluations=5).effort == 3 * 2 * 15
    assert SearchConfig().doubled().effort == 2 * SearchConfig().effort


@pytest.mark.parametrize("effort", [20, 100, 264, 500, 528, 5000])
def test_a_search_at_an_effort(effort: int) -> None:
    config = SearchConfig().at_effort(effort)
    assert config.effort <= effort < config.effort + 264
    assert (config.restarts, config.steps) == (effort // 264, 240) if effort >= 264 else config.restarts == 1
    assert SearchConfig(penalties=(1e-3, 1e-4)).at_effort(effort).effort <= effort


def test_too_little_effort_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than one step"):
        SearchConfig().at_effort(1)


@pytest.fixture(scope="module")
def circuit(planted: Planted) -> Circuit:
    return search_circuit(problem_of(planted), 0.1, SearchConfig(steps=5, pairs_per_step=4, evaluations=3))


def of_size(circuit: Circuit, size: int, *, loss: float = 0.05) -> Circuit:
    return replace(circuit, mask=torch.arange(circuit.space.n_nodes) < size, loss=loss, search={"interrupted": False})


def test_effort_is_doubled_until_the_size_settles(circuit: Circuit) -> None:
    sizes = {264: 40, 528: 30, 1056: 29, 2112: 1}
    done = converge(lambda config: of_size(circuit, sizes[config.effort]))
    assert done.settled and done.config.effort == 1056
    (best,) = done.circuits
    assert best.n_nodes == 29
    assert [(entry["effort"], entry["nodes"]) for entry in best.search["convergence"]["history"]] == [
        (264, 40),
        (528, 30),
        (1056, 29),
    ]


def test_a_change_of_five_percent_is_no_rest(circuit: Circuit) -> None:
    sizes = iter([40, 38, 36, 34, 32])
    done = converge(lambda _: of_size(circuit, next(sizes)), max_doublings=2)
    assert not done.settled and len(done.history) == 3
    assert done.circuits[0].search["convergence"]["settled"] is False


def test_a_larger_circuit_never_replaces_a_smaller_one(circuit: Circuit) -> None:
    sizes = iter([20, 45])
    done = converge(lambda _: of_size(circuit, next(sizes)))
    assert done.settled and done.circuits[0].n_nodes == 20


def test_all_that_is_compared_gets_the_effort_of_the_slowest(circuit: Circuit) -> None:
    first, second = iter([10, 10, 10, 10]), iter([60, 40, 30, 30])
    done = converge(lambda _: [of_size(circuit, next(first)), of_size(circuit, next(second))])
    assert done.settled and len(done.history) == 4
    assert [c.n_nodes for c in done.circuits] == [10, 30]


def test_where_no_circuit_meets_the_target_the_loss_settles(circuit: Circuit) -> None:
    losses = iter([0.5, 0.3, 0.295])
    done = converge(lambda _: of_size(circuit, 9, loss=next(losses)))
    assert done.settled and len(done.history) == 3 and done.circuits[0].loss == 0.295
    reached = iter([0.5, 0.05, 0.05])
    assert len(converge(lambda _: of_size(circuit, 9, loss=next(reached))).history) == 3


def test_interrupted_searches_end_it_with_the_best(circuit: Circuit) -> None:
    def find(config: SearchConfig) -> Circuit:
        if config.restarts == 2:
            return replace(of_size(circuit, 50), search={"interrupted": True})
        return of_size(circuit, 30)

    done = converge(find)
    assert not done.settled and len(done.history) == 2
    assert done.circuits[0].n_nodes == 30 and done.circuits[0].search["interrupted"] is True

    def stopped(config: SearchConfig) -> Circuit:
        if config.restarts == 2:
            raise KeyboardInterrupt
        return of_size(circuit, 30)

    done = converge(stopped)
    assert done.circuits[0].search["interrupted"] is True and done.config.restarts == 1


def test_more_restarts_never_find_a_larger_circuit(planted: Planted) -> None:
    """The masks of the single effort are among those of the double one, on the same prompts."""
    problem, config = problem_of(planted), SearchConfig(steps=30, pairs_per_step=4, evaluations=6, penalties=(1e-3,))
    sizes = [search_circuit(problem, 0.05, config.model_copy(update={"restarts": n})).n_nodes for n in (1, 2)]
    assert sizes[1] <= sizes[0]


def test_bad_bounds_are_refused(circuit: Circuit) -> None:
    for bounds in ({"tolerance": 0.0}, {"tolerance": 1.0}, {"max_doublings": 0}):
        with pytest.raises(ConfigError):
            converge(lambda _: circuit, **bounds)  # pyright: ignore[reportArgumentType]


def test_a_growing_search_finds_what_one_at_once_finds(planted: Planted) -> None:
    """Nodes and edges: the second effort adds to the first, and nothing else changes."""
    config = SearchConfig(steps=40, pairs_per_step=8, penalties=(1e-3,), evaluations=8)
    problem = problem_of(planted)
    grown, twice = growing_search(problem, 0.02), config.doubled()
    first, second = grown(config), grown(twice)
    at_once = search_circuit(problem, 0.02, twice)
    assert first.search["seeds"] == [0] and second.search == at_once.search
    assert torch.equal(second.mask, at_once.mask)
    means = input_means(planted.bridge, planted.batch.clean, planted.reference, (FIRST, SECOND))
    edges = EdgeProblem(problem, second.mask, candidate_edges(planted.space, second.mask, problem.graph), means)
    grown = growing_edge_search(edges, second, 0.02)
    grown(config)
    found, expected = grown(twice), select_edges(edges, second, learn_edges(edges, 0.02, twice), 0.02, twice)
    assert found.search == expected.search
