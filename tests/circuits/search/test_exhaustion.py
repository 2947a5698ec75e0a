"""Forbidden nodes, and exhaustion: a model with two redundant circuits yields both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparse_lens.circuits.search.exhaustion import exhaust, nodes_at
from sparse_lens.circuits.search.learning import SearchConfig
from sparse_lens.circuits.search.nodes import search_circuit
from sparse_lens.errors import CircuitError, UnknownNameError

from ..conftest import Planted, problem_of

CONFIG = SearchConfig(steps=60, pairs_per_step=4, penalties=(1e-3,), evaluations=24)
QUICK = SearchConfig(steps=2, pairs_per_step=2, evaluations=3)
"""For what does not depend on how small a circuit is found: everything that is allowed is always a candidate."""
TARGET = 0.1
PATHS = (
    {"mlp_in.0": [0], "mlp_neuron.0": [1], "mlp_out.0": [3], "final_resid": [3]},
    {"mlp_in.0": [1], "mlp_neuron.0": [2], "mlp_out.0": [2], "final_resid": [2]},
)


def kept(circuit: object) -> dict[str, list[int]]:
    return {name: nodes for name, nodes in circuit.kept().items() if nodes}  # type: ignore[attr-defined]


def test_two_redundant_circuits_are_both_found(planted_twice: Planted) -> None:
    found = exhaust(problem_of(planted_twice), TARGET, CONFIG)
    assert sorted(map(kept, found), key=lambda nodes: nodes["mlp_in.0"]) == list(PATHS)
    first, second = (circuit.search["exhaustion"] for circuit in found)
    assert (first, second["number"], second["forbidden"]) == ({"number": 0, "forbidden": 0}, 1, 1)
    assert second["ended"].startswith("target missed")


def test_a_model_with_one_circuit_yields_one(planted: Planted) -> None:
    found = exhaust(problem_of(planted), TARGET, CONFIG)
    assert [kept(circuit) for circuit in found] == [planted.nodes]


def test_the_number_of_circuits_is_bounded(planted_twice: Planted) -> None:
    (only,) = exhaust(problem_of(planted_twice), TARGET, QUICK, max_circuits=1)
    assert only.search["exhaustion"]["ended"] == "the limit of 1 circuits"


def test_a_target_that_is_never_met_yields_none(planted: Planted) -> None:
    assert exhaust(problem_of(planted), 1e-9, QUICK) == []


def test_without_an_interior_node_nothing_more_is_forbidden(planted: Planted) -> None:
    (only,) = exhaust(problem_of(planted), TARGET, QUICK, sites=["attn_v"])
    assert "no node that could be forbidden" in only.search["exhaustion"]["ended"]


@pytest.mark.parametrize("method", ["steered", "published"])
def test_forbidden_nodes_are_in_no_candidate(planted_twice: Planted, method: str) -> None:
    """With the whole second path forbidden, everything that is left on a path is the first."""
    problem = problem_of(planted_twice)
    forbid = torch.zeros(problem.space.n_nodes, dtype=torch.bool)
    for site, nodes in PATHS[1].items():
        forbid[problem.space.slices[site]] |= torch.isin(torch.arange(len(forbid[problem.space.slices[site]])), torch.tensor(nodes))
    config = QUICK if method == "steered" else SearchConfig.published(steps=2, pairs_per_step=2)
    circuit = search_circuit(replace(problem, forbid=forbid), TARGET, config)
    assert kept(circuit) == PATHS[0]
    assert circuit.search["forbidden"] == 4
    free = circuit.space.n_nodes - 4
    assert all(row["nodes"] <= free for row in circuit.search["trace"])


def test_forbidding_the_only_path_misses_the_target_and_says_the_best(planted: Planted) -> None:
    problem = problem_of(planted)
    forbid = torch.zeros(problem.space.n_nodes, dtype=torch.bool)
    forbid[problem.space.slices["mlp_neuron.0"].start + 1] = True
    circuit = search_circuit(replace(problem, forbid=forbid), TARGET, QUICK)
    assert not circuit.reached and not bool((circuit.mask & forbid).any())


def test_bad_nodes_to_forbid(planted: Planted) -> None:
    problem = problem_of(planted)
    n = problem.space.n_nodes
    with pytest.raises(CircuitError, match="one entry for each"):
        replace(problem, forbid=torch.zeros(n - 1, dtype=torch.bool))
    with pytest.raises(CircuitError, match="every node is forbidden"):
        replace(problem, forbid=torch.ones(n, dtype=torch.bool))
    with pytest.raises(UnknownNameError):
        nodes_at(problem, ["final_resid"])
    with pytest.raises(CircuitError, match="at least one kind"):
        nodes_at(problem, [])
