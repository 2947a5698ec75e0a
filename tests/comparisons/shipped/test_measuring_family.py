"""Families are measured two models by two, with as many neurons where numbers depend on them, and on all tasks or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.measuring_family import (
    ENTANGLEMENT,
    MEASURED,
    MEASURES,
    density_of,
    family_jobs,
    measure_family,
    recipe_of,
)
from sparse_lens.files import new_file
from sparse_lens.results import exact, to_plain

PAIR = ModelPair.open()
FOLDERS = {f"m{number}": PAIR.model_folder(role) for number, role in enumerate(("sparse", "dense_matched", "sparse"))}


def test_models_are_measured_two_by_two() -> None:
    """Of three models each has every measure once, the last beside itself, and a curve for each task."""
    jobs = family_jobs(PAIR, FOLDERS, ["if_equals", "with_as"])
    assert all(len(of) == len(MEASURES) + 2 for of in jobs.values())
    two_by_two = [measure for measure in MEASURES if measure != "predictability"]
    both = {job.fingerprint for of in jobs.values() for job in of if job.arguments.get("measure") in two_by_two}
    assert len(both) == 2 * len(two_by_two)
    assert density_of(FOLDERS["m0"]) == pytest.approx(0.05) and density_of(FOLDERS["m1"]) == 1.0
    assert recipe_of(PAIR.training_seeds()[1].model_folder("sparse")) == {"recipe": "python-sparse", "seed": 1}


def test_predictability_is_read_from_as_many_neurons() -> None:
    jobs = family_jobs(PAIR, FOLDERS, [], measures=["predictability"])
    beside = [json.loads(of[0].arguments["pair"])["replaced"]["dense_matched"] for of in jobs.values()]
    assert beside == ["python-dense-matched"] * 3


def test_numbers_on_fewer_tasks_are_not_taken(tmp_path: Path) -> None:
    """Entanglement counts tasks: it is comparable only where all of them were counted."""
    folders = {"a": PAIR.model_folder("sparse"), "b": PAIR.model_folder("dense_matched")}
    (job,) = family_jobs(PAIR, folders, [], measures=["fracture"])["a"]
    metrics = {metric: exact(0.5) for measure, metric in MEASURED.values() if measure == "fracture"}
    for tasks, kept in ((5, True), (4, False)):
        sides = {"sparse": metrics | {"tasks": exact(tasks)}, "dense": metrics | {"tasks": exact(tasks)}}
        with new_file(tmp_path / f"{job.fingerprint}.json") as path:
            path.write_text(json.dumps({"record": to_plain(sides)}))
        found = measure_family(PAIR, folders, tasks=[], measures=["fracture"], cache=tmp_path, workers=1, progress=False)
        assert found["a"]["values"][ENTANGLEMENT].measurable == found["b"]["values"][ENTANGLEMENT].measurable == kept
    assert "4 of 5 tasks" in str(found["a"]["values"][ENTANGLEMENT].reason)
