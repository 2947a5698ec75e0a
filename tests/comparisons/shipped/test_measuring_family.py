"""Families are measured two models by two, with as many neurons where numbers depend on them, and on all tasks or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.comparisons.column_specs import mlp_neurons
from sparse_lens.comparisons.fracture import fracture_table
from sparse_lens.comparisons.instrument.neuron_controls import with_controls
from sparse_lens.comparisons.instrument.sizes import SMOKE, layers_read
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.family_fracture import family_fracture, fracture_cell
from sparse_lens.comparisons.shipped.measuring_family import MEASURES, density_of, family_jobs, recipe_of
from sparse_lens.dictionaries import Dictionary
from sparse_lens.hooks import load
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.results import Result, exact

PAIR = ModelPair.open()
FOLDERS = {f"m{number}": PAIR.model_folder(role) for number, role in enumerate(("sparse", "dense_matched", "sparse"))}


def test_models_are_measured_two_by_two() -> None:
    """Of three models each has every measure once, the last beside itself, and a curve for each task."""
    jobs = family_jobs(PAIR, FOLDERS, ["if_equals", "with_as"])
    assert all(len(of) == len(MEASURES) - 1 + 2 for of in jobs.values())  # fracture is of all models together
    two_by_two = [measure for measure in MEASURES if measure not in ("predictability", "fracture")]
    both = {job.fingerprint for of in jobs.values() for job in of if job.arguments.get("measure") in two_by_two}
    assert len(both) == 2 * len(two_by_two)
    assert density_of(FOLDERS["m0"]) == pytest.approx(0.05) and density_of(FOLDERS["m1"]) == 1.0
    assert recipe_of(PAIR.training_seeds()[1].model_folder("sparse")) == {"recipe": "python-sparse", "seed": 1}


def test_predictability_is_read_from_as_many_neurons() -> None:
    jobs = family_jobs(PAIR, FOLDERS, [], measures=["predictability"])
    beside = [json.loads(of[0].arguments["pair"])["replaced"]["dense_matched"] for of in jobs.values()]
    assert beside == ["python-dense-matched"] * 3


def test_deep_models_are_read_in_four_layers() -> None:
    assert [layers_read(n) for n in (1, 4, 5, 16)] == [[0], [0, 1, 2, 3], [0, 1, 3, 4], [0, 5, 10, 15]]
    last = fracture_cell("python-sparse", ["while_return_true"], True, [1])
    assert last["live_units"] != fracture_cell("python-sparse", ["while_return_true"], True, [0])["live_units"]


def layer_of(bridge: Any, units: Dictionary) -> dict[str, Result]:
    """The simplest measure of neurons: the number of their layer."""
    return {"layer": exact(int(units.hook_in.split(".")[1]))}


def test_deep_models_have_dictionaries_in_the_same_four_layers(tmp_path: Path) -> None:
    """A job names the layers where there are more; what it gives is the mean over these."""
    deep, shallow = tmp_path / "deep", FOLDERS["m0"]
    shutil.copytree(shallow, deep, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((deep / "config.json").read_text(encoding="utf-8"))
    CircuitGPTForCausalLM(CircuitGPTConfig(**(config | {"n_layer": 5}))).save_pretrained(deep)
    jobs = family_jobs(PAIR, {"deep": deep, "shallow": shallow}, [], measures=["superposition", "shift"])
    assert [job.arguments.get("layers") for job in jobs["deep"]] == [[0, 1, 3, 4], None]
    assert [job.arguments.get("layers") for job in jobs["shallow"]] == [None, None]
    means = [with_controls(PAIR, layer_of, [], rotated=False, layers=of)["dense"]["layer"].value for of in ([1], [0, 0, 1], None)]
    assert means == pytest.approx([1, 1 / 3, 1 / 2])


@pytest.mark.slow
def test_fracture_is_of_the_tasks_that_all_models_do(tmp_path: Path) -> None:
    """Both shipped models do two of three tasks; numbers are those of `fracture_table` on these, model by model."""
    folders = {"a": PAIR.model_folder("sparse"), "b": PAIR.model_folder("dense_matched")}
    how = {"cache": tmp_path, "workers": 1, "progress": False}
    done, found = family_fracture(folders, ["single_double_quote", "class_init", "while_return_true"], smoke=True, **how)
    assert done == ["single_double_quote", "while_return_true"]
    bridge = load(folders["b"])
    layers = [fracture_table({"": (bridge, of)}, done, SMOKE.fracture)[""]["entanglement"].value for of in mlp_neurons(bridge)]
    assert found["b"]["entanglement"].value == pytest.approx(sum(layers) / len(layers))
    assert all(of["mirror_fracture"].measurable and of["random_weights_entanglement"].measurable for of in found.values())


@pytest.mark.slow
def test_a_share_of_tasks_needs_two_of_them(tmp_path: Path) -> None:
    folders = {"a": PAIR.model_folder("sparse")}
    how = {"cache": tmp_path, "workers": 1, "progress": False}
    done, found = family_fracture(folders, ["class_init", "while_return_true"], smoke=True, **how)
    assert done == ["while_return_true"] and found["a"]["mirror_fracture"].measurable
    assert "1 of 2 tasks" in str(found["a"]["entanglement"].reason) and not found["a"]["rotated_entanglement"].measurable
    _, nothing = family_fracture(folders, ["class_init"], smoke=True, **how)
    assert not nothing["a"]["mirror_fracture"].measurable
