"""Circuits of both models of a pair with their controls: on the shipped pair, the smallest form, and what is told of none."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.circuit_sizes import prepare_setting, search_column
from sparse_lens.comparisons.column_specs import ColumnSpec, open_column
from sparse_lens.comparisons.instrument.pair_circuits import NONSENSE, SHUFFLED, _Found, measure_circuits, measure_latent_circuits
from sparse_lens.comparisons.instrument.sizes import SMOKE

TINY = SearchConfig(steps=10, search_pairs=32, evaluation_pairs=16, evaluations=4)


def test_what_no_task_and_no_control_gives() -> None:
    nothing = _Found().results(["if_equals", "with_as"])
    assert "on no task of if_equals, with_as" in (nothing["log2_nodes"].reason or "") and not nothing["recovered"].measurable
    found = _Found(nodes={"if_equals": 5.0, "with_as": 7.0})
    found._margin(NONSENSE, "with_as", 9.0)
    found._margin(NONSENSE, "if_equals", None)
    results = found.results(["if_equals", "with_as"])
    assert results["log2_nodes"].value == 6.0 and results["log2_nodes_on_with_as"].value == 7.0
    assert results["nonsense_margin"].value == 2.0 and results["nonsense_fitted"].value == 1 and results["nonsense_fitted"].n == 2
    assert "with shuffled weights the task is done by no circuit" in (results["random_weights_margin"].reason or "")
    found.missing[SHUFFLED] = "has dictionaries"
    assert found.results(["with_as"])["random_weights_fitted"].reason == "has dictionaries"


@pytest.mark.slow
def test_circuits_of_the_shipped_sparse_model() -> None:
    """A second witness for the nodes: the search alone. Random nodes recover next to nothing of what the circuit does."""
    pair = ModelPair.open()
    column = open_column(pair.address, ColumnSpec("sparse", "sparse"))
    task = "single_double_quote"
    found = measure_circuits({"sparse": column}, [task], TINY)["sparse"]
    setting = prepare_setting(column, task, TINY, seed=0)
    circuit = search_column(setting, 0.15, TINY, seed=0, on_step=lambda *_: None).circuit
    assert found[f"log2_nodes_on_{task}"].value == pytest.approx(np.log2(circuit.n_nodes))
    assert (found["recovered"].value or 0) > 0.8 and abs(found["random_circuits_recovered"].value or 1) < 0.2
    for control in (NONSENSE, SHUFFLED):
        assert found[f"{control}_fitted"].value == 0 or (found[f"{control}_margin"].value or 0) > 1


@pytest.mark.slow
def test_circuits_of_latents_stand_beside_those_of_neurons() -> None:
    found = measure_latent_circuits(ModelPair.open(), SMOKE)
    assert found["sparse"]["log2_nodes"].measurable and found["dense"]["log2_nodes"].measurable
    assert "dictionaries of the model" in (found["dense"]["random_weights_margin"].reason or "")
    assert found["sparse"]["random_weights_fitted"].measurable
