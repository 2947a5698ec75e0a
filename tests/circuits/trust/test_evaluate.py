"""The one call: on a planted circuit, under changes that must not matter, on random weights, and on a shipped model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import sparse_lens
from sparse_lens.circuits import CircuitCard, SearchConfig, evaluate_circuit, find_circuit, find_edges, score_circuit
from sparse_lens.circuits.sites import full_mask
from sparse_lens.circuits.trust.searched import SearchedTests
from sparse_lens.circuits.trust.searches import Searches
from sparse_lens.errors import CircuitError, DataError, UnknownNameError

from .conftest import CONFIG, VOCAB, Planted, TokenTask, circuit_of, planted_model, random_bridge, renumbered, runs_of, speak

QUIET: dict[str, Any] = {"progress": False}


def numbers(card: CircuitCard) -> dict[str, float]:
    """All values and their nulls by name."""
    found = {}
    for section, rows in card.sections().items():
        for name, result in rows.items():
            found |= {
                f"{section}.{name}.{part}": value for part in ("value", "null") if (value := getattr(result, part)) is not None
            }
    return found


@pytest.fixture(scope="module")
def plain(planted: Planted) -> CircuitCard:
    return evaluate_circuit(planted.bridge, circuit_of(planted), TokenTask(), **QUIET)


def test_the_planted_circuit_is_trusted(plain: CircuitCard) -> None:
    assert plain.effort == "quick" and plain.nodes == 4 and plain.heldout.sufficiency.n == 256
    assert "sufficient (1.00)" in plain.verdict and "not sufficient" not in plain.verdict
    assert "fits nonsense" not in plain.verdict and "beats" not in plain.verdict and "not measurable" not in plain.verdict
    assert "not tested (quick): nonsense labels" in plain.verdict
    assert (plain.result("random", "sufficiency").value or 0) < 0.5
    assert CircuitCard.from_json(plain.to_json()) == plain
    for rows in plain.sections().values():
        for result in rows.values():
            assert result.n >= 1 or not result.measurable


def test_a_random_circuit_is_not(planted: Planted) -> None:
    wrong = circuit_of(planted, {"mlp_in.0": [5], "mlp_neuron.0": [4], "mlp_out.0": [5], "final_resid": [6]})
    card = evaluate_circuit(planted.bridge, wrong, TokenTask(without="rephrased"), **QUIET)
    assert "rephrased prompts: not measurable (no pairs of the split rephrased)" in card.verdict
    assert "not sufficient" in card.verdict and "tested nodes do no more than random ones" in card.verdict
    assert "the answer follows its values from prompt to prompt in 0% only" in card.verdict


def test_padding_changes_nothing(planted: Planted, plain: CircuitCard) -> None:
    wide = evaluate_circuit(planted.bridge, circuit_of(planted), TokenTask(padding=2), **QUIET)
    assert numbers(wide) == pytest.approx(numbers(plain), abs=1e-4)


def test_the_order_of_the_channels_changes_nothing(planted: Planted, plain: CircuitCard) -> None:
    other, moved, _ = renumbered(circuit_of(planted), planted_model())
    assert numbers(evaluate_circuit(other, moved, TokenTask(), **QUIET)) == pytest.approx(numbers(plain), abs=1e-4)


def test_the_batch_size_changes_nothing(planted: Planted) -> None:
    runs = runs_of(planted)
    small = replace(runs, batch_size=5)
    for name in ("whole", "nothing", "alone", "without"):
        torch.testing.assert_close(getattr(runs, name), getattr(small, name), atol=1e-5, rtol=1e-5)
    scores = score_circuit(planted.bridge, runs.circuit, planted.prompts)
    assert runs.recovered(runs.alone).value == pytest.approx(scores.sufficiency.value)


def test_the_empty_circuit(planted: Planted) -> None:
    """It scores 0 and 0; what needs a node says so, everything else is measured."""
    circuit = replace(circuit_of(planted), mask=full_mask(planted.space, keep=False))
    card = evaluate_circuit(planted.bridge, circuit, TokenTask(), **QUIET)
    assert card.heldout.sufficiency.value == card.heldout.necessity.value == pytest.approx(0)
    assert not card.result("hypotheses", "minimality_p").measurable and card.result("mixtures", "stochastic").measurable


@pytest.mark.slow
def test_a_circuit_of_edges(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted path's edges alone: as sufficient as its nodes."""
    bridge = speak(planted.bridge, monkeypatch)
    how = {"config": CONFIG, "windows": planted.batch.clean, "target_loss": 0.1}
    found = find_edges(bridge, circuit_of(planted), TokenTask(), **how, **QUIET)
    card = evaluate_circuit(bridge, found, TokenTask(), **QUIET)
    assert found.edges is not None and card.edges == found.edges.kept.n_edges and (card.heldout.sufficiency.value or 0) > 0.8
    assert card.result("knockouts", "distance").measurable and card.result("mixtures", "adversarial").measurable


class Untrained:
    """A model with random weights, and a circuit that a search found in it, at a target that its whole model misses."""

    CONFIG = SearchConfig(steps=60, pairs_per_step=8, penalties=(1e-3,), evaluations=8, search_pairs=32, evaluation_pairs=32)
    WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bridge = speak(random_bridge(seed=3, n_layer=2, d_model=16, d_mlp=24), monkeypatch)
        how = {"config": self.CONFIG, "windows": self.WINDOWS, "target_loss": 0.3}
        self.circuit = find_circuit(self.bridge, TokenTask(), **how, **QUIET)
        assert self.circuit.reached


@pytest.mark.slow
def test_random_weights_raise_the_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search in a model that has learned nothing finds a small circuit for the task, and one as small for random answers."""
    model = Untrained(monkeypatch)
    searches = Searches(model.bridge, model.circuit, TokenTask(), model.CONFIG)
    rows = SearchedTests(searches, model.WINDOWS, 0).stages()["random answers"]()
    card = evaluate_circuit(model.bridge, model.circuit, TokenTask(), **QUIET)
    card = replace(card, measures={**card.measures, "controls": {**card.measures["controls"], **rows["controls"]}})
    assert "looks small but also fits nonsense: random tokens as answers" in card.verdict
    assert card.verdict.startswith("not measurable")


@pytest.mark.slow
def test_all_searches_on_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Untrained(monkeypatch)
    card = evaluate_circuit(model.bridge, model.circuit, TokenTask(), effort="full", windows=model.WINDOWS, **QUIET)
    assert "looks small but also fits nonsense" in card.verdict
    assert card.result("controls", "random_weights_loss").measurable and card.result("stability", "seeds").seeds > 1
    assert "no templates" in (card.result("stability", "templates").reason or "")
    assert not card.result("controls", "nonsense_loss").measurable  # its prompts are no text of these twelve words


@pytest.mark.slow
def test_a_second_path_is_a_backup(planted_twice: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = speak(planted_twice.bridge, monkeypatch)
    path = {"mlp_in.0": [0], "mlp_neuron.0": [1], "mlp_out.0": [3], "final_resid": [3]}
    how = {"effort": "full", "windows": planted_twice.batch.clean}
    card = evaluate_circuit(bridge, circuit_of(planted_twice, path), TokenTask(), **how, **QUIET)
    assert "not necessary: a backup of 4 nodes does the same" in card.verdict


def test_bad_input(planted: Planted) -> None:
    circuit = circuit_of(planted)
    with pytest.raises(DataError, match="heldout"):
        evaluate_circuit(planted.bridge, circuit, TokenTask(without="heldout"), **QUIET)
    with pytest.raises((UnknownNameError, jaxtyping.TypeCheckError), match="effort"):
        evaluate_circuit(planted.bridge, circuit, TokenTask(), effort="some", **QUIET)  # type: ignore[arg-type]
    with pytest.raises(CircuitError, match="found in the model"):
        evaluate_circuit(random_bridge(), circuit, TokenTask(), **QUIET)
    with pytest.raises(UnknownNameError, match="planted"):
        evaluate_circuit(planted.bridge, circuit, **QUIET)
    with pytest.raises(CircuitError, match="9 tokens, the model reads 8"):
        evaluate_circuit(planted.bridge, circuit, TokenTask(length=9), **QUIET)


@pytest.mark.slow
def test_a_circuit_of_the_shipped_model() -> None:
    """Found with little effort: the card is whole, and a random circuit of equal size recovers next to nothing."""
    bridge = sparse_lens.load("python-sparse")
    config = SearchConfig(steps=60, search_pairs=128, evaluation_pairs=32, evaluations=8)
    circuit = find_circuit(bridge, "single_double_quote", config=config, **QUIET)
    card = evaluate_circuit(bridge, circuit, **QUIET)
    assert "of 5,888 nodes" in card.verdict and card.heldout.full_accuracy.value == pytest.approx(1, abs=0.05)
    assert (card.result("random", "sufficiency").value or 0) < 0.2 < (card.heldout.sufficiency.value or 0)
    assert (card.result("faithfulness", "cpr").value or 0) > (card.result("faithfulness", "cpr").null or 0)
