"""Saving, loading and scoring circuits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sparse_lens.circuits import Circuit, model_fingerprint, score_circuit
from sparse_lens.circuits.prompts import both_sides
from sparse_lens.circuits.scoring import task_loss
from sparse_lens.circuits.sites import full_mask
from sparse_lens.errors import CircuitError

from .conftest import Planted, pairs, random_bridge


def circuit_of(planted: Planted, mask: torch.Tensor) -> Circuit:
    fingerprint = model_fingerprint(planted.bridge)
    return Circuit(mask, planted.space, planted.reference, "planted", fingerprint, 0.15, 0.01, {"seed": 0})


def test_task_loss_is_the_two_token_cross_entropy() -> None:
    logits = torch.tensor([2.0, -1.0])
    expected = -math.log(math.exp(2) / (math.exp(2) + math.exp(-1)))
    assert float(task_loss(logits[:1] - logits[1:])) == pytest.approx(expected, rel=1e-6)


def test_both_sides_swap_the_answers() -> None:
    prompts = both_sides(pairs(4))
    assert len(prompts) == 8
    for pair in range(4):
        rows = (prompts.pair == pair).nonzero().flatten()
        assert prompts.right[rows[0]] == prompts.wrong[rows[1]]


def test_whole_model_scores_one_and_nothing_scores_zero(planted: Planted) -> None:
    whole = score_circuit(planted.bridge, circuit_of(planted, full_mask(planted.space)), planted.prompts)
    empty = score_circuit(planted.bridge, circuit_of(planted, full_mask(planted.space, keep=False)), planted.prompts)
    assert whole.sufficiency.value == pytest.approx(1) and whole.necessity.value == pytest.approx(1)
    assert empty.sufficiency.value == pytest.approx(0) and empty.necessity.value == pytest.approx(0)
    assert whole.full_accuracy.value == 1


def test_planted_circuit_is_sufficient_and_necessary(planted: Planted) -> None:
    mask = full_mask(planted.space, keep=False)
    for name, nodes in planted.nodes.items():
        mask[planted.space.slices[name]][nodes] = True
    scores = score_circuit(planted.bridge, circuit_of(planted, mask), planted.prompts)
    assert scores.sufficiency.value is not None and scores.sufficiency.value > 0.95
    assert scores.necessity.value is not None and scores.necessity.value > 0.5
    assert scores.complement_loss.value is not None and scores.complement_loss.value >= math.log(2) - 1e-6


def test_saved_circuit_comes_back(planted: Planted, tmp_path: Path) -> None:
    circuit = circuit_of(planted, torch.arange(planted.space.n_nodes) % 3 == 0)
    circuit.save(tmp_path / "circuit")
    loaded = Circuit.load(tmp_path / "circuit", planted.bridge)
    assert torch.equal(loaded.mask, circuit.mask) and loaded.search == circuit.search and loaded.loss == circuit.loss
    for name, reference in circuit.reference.items():
        assert torch.equal(loaded.reference[name].latents, reference.latents)


def test_circuit_of_another_model_is_refused(planted: Planted, tmp_path: Path) -> None:
    circuit = circuit_of(planted, full_mask(planted.space))
    with pytest.raises(CircuitError, match="found in the model"):
        score_circuit(random_bridge(), circuit, planted.prompts)
    circuit.save(tmp_path / "circuit")
    with pytest.raises(CircuitError, match="other sites"):
        Circuit.load(tmp_path / "circuit", random_bridge())


@pytest.mark.parametrize("damage", ["missing", "cut", "format"])
def test_damaged_circuit_is_refused(planted: Planted, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "circuit"
    circuit_of(planted, full_mask(planted.space)).save(folder)
    if damage == "missing":
        (folder / "circuit.json").unlink()
    elif damage == "cut":
        weights = folder / "circuit.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        record = json.loads((folder / "circuit.json").read_text())
        (folder / "circuit.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(CircuitError):
        Circuit.load(folder, planted.bridge)
