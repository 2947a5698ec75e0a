"""Dictionaries and columns of the plans, on the shipped pair; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_lens.comparisons import ModelPair, reading
from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.full import full_jobs
from sparse_lens.comparisons.full.coupled import coupling_jobs
from sparse_lens.comparisons.full.full_columns import column_specs, frontier_specs, given_dictionaries, training_jobs
from sparse_lens.comparisons.full.full_jobs import correspondence_jobs, curve_jobs, row_jobs, stability_jobs
from sparse_lens.comparisons.full.plan import FullPlan, quick_plan
from sparse_lens.errors import ConfigError, SparseLensError

PLAN = FullPlan()


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return ModelPair.open()


@pytest.fixture(scope="module")
def specs(pair: ModelPair) -> list[ColumnSpec]:
    return column_specs(pair, PLAN, trained(pair, PLAN))


@pytest.fixture(autouse=True)
def no_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """No dictionary is trained here whose files could be read."""
    monkeypatch.setattr(full_jobs, "fingerprints", lambda pair, spec: [spec.name])


def trained(pair: ModelPair, plan: FullPlan) -> dict:
    jobs = training_jobs(pair, plan, Path("somewhere"))
    return {wanted: [{"folder": job.arguments["folder"]} for job in of] for wanted, of in jobs.items()}


def test_as_many_latents_for_each_neuron_in_every_model(pair: ModelPair) -> None:
    """224 neurons and 1,024: 896 latents and 4,096; three seeds of every kind; no folder is written twice."""
    jobs = training_jobs(pair, PLAN, Path("somewhere"))
    sizes = {(wanted.model, wanted.d_sae) for wanted in jobs}
    assert sizes == {("dense_matched", 896), ("sparse", 4096), ("dense_matched", 448), ("dense_matched", 1792)}
    seeds = {kind: {w.seed for w in jobs if (w.model, w.kind) == ("dense_matched", kind)} for kind in PLAN.kinds}
    assert all(found == {0, 1, 2} for found in seeds.values())
    folders = [job.arguments["folder"] for of in jobs.values() for job in of]
    assert len(folders) == len(set(folders)) == 2 * len(jobs)


def test_cells_depend_on_the_files_that_they_are_trained_on(
    pair: ModelPair, specs: list[ColumnSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another standard library is another dictionary, another coupling and another row of activations, and nothing else."""

    def fingerprints() -> dict[str, str]:
        trainings = [job for of in training_jobs(pair, PLAN, Path("somewhere")).values() for job in of]
        jobs = [*trainings, *coupling_jobs(pair, 1000, Path("somewhere")), *row_jobs(pair, PLAN, specs[:2])]
        return {job.name: job.fingerprint for job in jobs}

    before, library = fingerprints(), reading._library()
    monkeypatch.setattr(reading, "_library", lambda: library[::2])
    changed = {name for name, fingerprint in fingerprints().items() if before[name] != fingerprint}
    assert changed == {name for name in before if name.startswith(("train ", "activation "))} < set(before)


def test_dictionaries_of_ones_own_are_columns(pair: ModelPair) -> None:
    """The shipped SAEs as a user's: one folder a layer, in any order; what does not fit is said before anything is trained."""
    folders = [str(pair.folder / name) for name in pair.record["dictionaries"]]
    (found,) = given_dictionaries(pair, FullPlan(dictionaries={"mine": folders[::-1]}))
    assert (found.name, found.basis, found.model, found.control) == ("mine", "dictionaries", "dense_matched", False)
    plan = FullPlan(dictionaries={"mine": folders})
    assert found.name in [spec.name for spec in column_specs(pair, plan, trained(pair, plan))]
    with pytest.raises(ConfigError, match=r"has mlp_neuron\.0; give a folder for each of mlp_neuron\.0, mlp_neuron\.1"):
        given_dictionaries(pair, FullPlan(dictionaries={"mine": folders[:1]}))
    with pytest.raises(SparseLensError, match="channels"):
        given_dictionaries(pair.with_models(dense_matched=pair.model_folder("dense")), plan)
    taken = FullPlan(dictionaries={"dense_topk": folders})
    with pytest.raises(ConfigError, match="dense_topk: no arm or dictionary"):
        column_specs(pair, taken, {})  # before anything is trained
    with pytest.raises(ConfigError, match="dense_matched_best_basis"):
        column_specs(pair, FullPlan(dictionaries={"dense_matched_best_basis": folders}), {})


def test_the_frontier_is_a_grid_with_the_columns_own_dictionary_in_it(pair: ModelPair) -> None:
    further = frontier_specs(pair, PLAN, trained(pair, PLAN))
    found = {(wanted.d_sae, wanted.k) for wanted in further.values()} | {(896, PLAN.k)}
    assert found == {(width, k) for width in (448, 896, 1792) for k in (8, 16, 32)} and len(further) == 8


def test_a_column_is_the_same_through_json(specs: list[ColumnSpec]) -> None:
    assert [ColumnSpec.from_plain(json.loads(json.dumps(spec.to_plain()))) for spec in specs] == specs
    assert len({spec.name for spec in specs}) == len(specs)


def test_upper_lines_have_rows_and_no_curve_and_error_modes_a_curve_and_no_row(pair: ModelPair, specs: list[ColumnSpec]) -> None:
    def names(jobs: list) -> set[str]:
        return {job.arguments["column"]["name"] for job in jobs}

    curves, rows = names(curve_jobs(pair, PLAN, specs, ["if_equals"])), names(row_jobs(pair, PLAN, specs))
    assert "sparse_supervised" in rows - curves and "dense_untrained" in rows & curves
    assert {"dense_topk_errors_kept", "dense_topk_errors_ablated"} <= curves - rows
    matched = {job.arguments["second"]["name"] for job in correspondence_jobs(pair, PLAN, specs)}
    assert "dense_topk" in matched and not matched & {"sparse_supervised", "dense_topk_errors_kept", "dense_matched_components"}


def test_what_has_seeds_has_its_stability_measured(pair: ModelPair, specs: list[ColumnSpec]) -> None:
    """Every kind of dictionary, over its seeds, and the neurons of the models with several training seeds; layer by layer."""
    jobs = stability_jobs(pair, PLAN, specs)
    found = {job.arguments["column"]["name"]: len(job.arguments["others"]) for job in jobs}
    assert found == {"sparse_neurons": 2, "dense_matched_neurons": 2, **{f"dense_{kind}": 0 for kind in PLAN.kinds}}
    assert stability_jobs(pair, quick_plan(), column_specs(pair, quick_plan(), trained(pair, quick_plan()))) == []


def test_edges_are_searched_at_targets_that_there_are() -> None:
    with pytest.raises(ConfigError, match="not at"):
        FullPlan(functional_targets=(0.7,))


def test_an_arm_cannot_take_a_columns_name(pair: ModelPair) -> None:
    plan = FullPlan(arms={"dense_neurons": str(pair.model_folder("dense"))})
    with pytest.raises(ConfigError, match="no arm or dictionary can have the name of another column"):
        column_specs(pair, plan, trained(pair, plan))
