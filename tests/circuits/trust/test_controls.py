"""Overlaps, random circuits, random weights, controls' sizes, and backups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.circuits.trust import find_backups, jaccard, overlap, random_circuits, random_weights
from sparse_lens.circuits.trust.controls import control_size
from sparse_lens.circuits.trust.draws import random_like
from sparse_lens.circuits.trust.searches import Searches, config_of
from sparse_lens.errors import CircuitError

from .conftest import CONFIG, Planted, TokenTask, circuit_of, random_bridge, runs_of, speak

PATH = {"mlp_in.0": [0], "mlp_neuron.0": [1], "mlp_out.0": [3], "final_resid": [3]}


def test_jaccard_by_hand() -> None:
    first, second = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert jaccard(first, second) == pytest.approx(1 / 3) and jaccard(first, first) == 1 and jaccard(first, ~first) == 0
    assert jaccard(first & ~first, first & ~first) == 1


def test_overlap_and_its_null(planted: Planted) -> None:
    """The null is what simulated random circuits of these sizes share."""
    circuit = circuit_of(planted, {"final_resid": [0, 1, 2, 3], "mlp_out.0": [3, 4, 5]})
    assert overlap([circuit, circuit, circuit_of(planted)]).value == pytest.approx((1 + 2 * 2 / 9) / 3)
    generator = torch.Generator().manual_seed(0)
    drawn = [replace(circuit, mask=random_like(circuit, generator)) for _ in range(40)]
    shared = overlap(drawn)
    assert shared.null is not None and shared.value == pytest.approx(shared.null, rel=0.1) and shared.seeds == 40
    with pytest.raises(CircuitError, match="two circuits at least"):
        overlap([circuit])
    with pytest.raises(CircuitError, match="different models"):
        overlap([circuit, replace(circuit, model="another")])


def test_a_random_circuit_recovers_next_to_nothing(planted: Planted) -> None:
    found = random_circuits(runs_of(planted), n_draws=6)
    assert found.value is not None and found.value < 0.2 and found.seeds == 6 and found.hi is not None and found.hi < 0.9
    with pytest.raises(CircuitError, match="at least one draw"):
        random_circuits(runs_of(planted), n_draws=0)


def test_random_weights_have_the_same_zeros_and_the_same_values() -> None:
    bridge: Any = random_bridge(density=0.5)
    before = {name: parameter.detach().clone() for name, parameter in bridge.named_parameters()}
    fingerprint = model_fingerprint(bridge)
    with pytest.raises(ZeroDivisionError), random_weights(bridge) as other:
        assert other is bridge and model_fingerprint(bridge) != fingerprint
        for name, parameter in bridge.named_parameters():
            assert torch.equal(before[name] != 0, parameter != 0)
            assert torch.equal(before[name].flatten().sort().values, parameter.flatten().sort().values)
        raise ZeroDivisionError
    assert model_fingerprint(bridge) == fingerprint


def test_sizes_of_controls(planted: Planted) -> None:
    """Only circuits at the target have a size; of none, the loss alone is measured."""
    real = circuit_of(planted)
    twice = replace(circuit_of(planted, {"final_resid": list(range(8))}), loss=0.05)
    missed = replace(twice, loss=0.7)
    some = control_size([twice, missed], real)
    assert some.nodes.value == 8 and some.ratio.value == 2 and some.ratio.null == 1 and some.loss.value == pytest.approx(0.375)
    none = control_size([missed], real)
    assert not none.nodes.measurable and "best loss 0.7" in (none.ratio.reason or "") and none.loss.value == 0.7
    with pytest.raises(CircuitError, match="at least one search"):
        control_size([], real)


def searches_in(planted: Planted, circuit: Any, monkeypatch: pytest.MonkeyPatch) -> Searches:
    return Searches(speak(planted.bridge, monkeypatch), circuit, TokenTask(), config_of(circuit))


def test_a_model_with_one_circuit_has_no_backup(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = circuit_of(planted)
    found = find_backups(searches_in(planted, circuit, monkeypatch), circuit)
    assert found.count.value == 0 and not found.nodes.measurable


def test_a_model_with_two_has_one(planted_twice: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = circuit_of(planted_twice, PATH)
    found = find_backups(searches_in(planted_twice, circuit, monkeypatch), circuit)
    assert found.count.value == 1 and found.nodes.value == 4


def test_without_inner_nodes_there_is_nothing_to_forbid(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = circuit_of(planted, {"final_resid": [3]})
    assert not find_backups(searches_in(planted, circuit, monkeypatch), circuit).count.measurable


def test_a_search_like_the_recorded_one(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Effort and seed come from the record; that of an edge search holds the nodes' inside; damage is refused."""
    circuit = circuit_of(planted)
    seeded = replace(circuit, search={"config": {"steps": 7}, "nodes": circuit.search | {"seeds": [3000]}})
    assert config_of(circuit) == config_of(seeded) == CONFIG and searches_in(planted, seeded, monkeypatch).seed == 3
    assert config_of(replace(circuit, search={"derived": "dropped"})).steps == 240
    with pytest.raises(CircuitError, match="damaged"):
        config_of(replace(circuit, search={"config": {"steps": -1}}))
    found = searches_in(planted, circuit, monkeypatch).find()
    assert {name: kept for name, kept in found.kept().items() if kept} == planted.nodes
