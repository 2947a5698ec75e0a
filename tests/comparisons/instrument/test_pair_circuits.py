"""Circuits of both models of a pair with their controls: on the shipped pair, the smallest form, and what is told of none."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.circuit_sizes import common_target, nonsense_circuit, prepare_setting, search_column
from sparse_lens.comparisons.column_specs import ColumnSpec, open_column
from sparse_lens.comparisons.instrument.pair_circuits import (
    NONSENSE,
    RANDOM,
    RECOVERED,
    SHUFFLED,
    _Found,
    _nothing,
    measure_circuits,
    measure_latent_circuits,
)
from sparse_lens.comparisons.instrument.sizes import ON_TASK, SMOKE
from sparse_lens.results import exact, not_measurable


def test_what_no_task_and_no_control_gives() -> None:
    nothing = _Found().results(["if_equals", "with_as"])
    assert "on no task of if_equals, with_as" in (nothing["log2_nodes"].reason or "") and not nothing["recovered"].measurable
    told = nothing["nonsense_fitted"].reason or ""  # not 0 tasks on which nothing was fitted: that would pass a control
    assert "on no task" in told and not nothing["random_weights_margin"].measurable
    found = _Found(nodes={"if_equals": 5.0, "with_as": 7.0}, recovered=[exact(0.9), exact(1.0)], errors=[0, 2])
    found.controls[NONSENSE]["with_as"] = 9.0
    found.random = [exact(0.1), not_measurable("the model is no better than nothing")]
    results = found.results(["if_equals", "with_as"])
    assert results["log2_nodes"].value == 6.0 and results["log2_nodes_on_with_as"].value == 7.0
    assert results["nonsense_margin"].value == 2.0 and results["nonsense_fitted"].value == 1 and results["nonsense_fitted"].n == 2
    assert "with shuffled weights the task is done by no circuit" in (results["random_weights_margin"].reason or "")
    assert results["random_weights_fitted"].value == 0 and results["error_nodes"].value == 1
    assert results[RECOVERED].value == pytest.approx(0.95) and "no better than nothing" in (results[RANDOM].reason or "")


@pytest.mark.slow
def test_circuits_of_the_shipped_dense_model() -> None:
    """Second witnesses: the search alone, and nonsense by itself, which is fitted here, by many more nodes."""
    pair = ModelPair.open()
    own, shuffled = (open_column(pair.address, ColumnSpec("dense", "dense_matched", shuffled=of)) for of in (False, True))
    task, config = "single_double_quote", SearchConfig()  # the effort at which nonsense is fitted at all
    found = measure_circuits({"dense": own}, {"dense": shuffled}, [task], config)["dense"]
    setting = prepare_setting(own, task, config, seed=0)
    target = common_target([setting])
    circuit = search_column(setting, target, config, seed=0, on_step=_nothing).circuit
    assert found[f"log2_nodes{ON_TASK}{task}"].value == pytest.approx(np.log2(circuit.n_nodes))
    nonsense = nonsense_circuit(own, target, config, seed=0, on_step=_nothing)
    margin = np.log2(nonsense.n_nodes / circuit.n_nodes)
    assert found["nonsense_fitted"].value == nonsense.reached
    assert nonsense.reached and found["nonsense_margin"].value == pytest.approx(margin) and margin > 0
    assert found["random_weights_fitted"].measurable
    assert (found[RECOVERED].value or 0) > 0.8
    random = found[RANDOM].value
    assert random is not None and abs(random) < 0.3


@pytest.mark.slow
def test_circuits_of_latents_stand_beside_those_of_neurons() -> None:
    found = measure_latent_circuits(ModelPair.open(), SMOKE)
    assert found["sparse"]["log2_nodes"].measurable and found["dense"]["log2_nodes"].measurable
    for role in found:
        assert all(found[role][f"{control}_fitted"].measurable for control in (NONSENSE, SHUFFLED))
    assert found["dense"]["fvu"].measurable and "fvu" not in found["sparse"]
    assert found["sparse"]["error_nodes"].value == 0 and (found["dense"]["error_nodes"].value or 0) <= 2
