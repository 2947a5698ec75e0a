"""The headline's ratios on curves by hand: over tasks, search seeds and training seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve, CurvePoint, edge_starts
from sparse_lens.comparisons.full.assembly import assemble
from sparse_lens.comparisons.full.full_jobs import curve_jobs, further_jobs
from sparse_lens.comparisons.full.full_verdict import _by_size
from sparse_lens.comparisons.full.headline import BEST_BASIS, FIRST_TRAINING, INTERPOLATED, against_controls, headline
from sparse_lens.comparisons.full.plan import FullPlan, quick_plan
from sparse_lens.comparisons.jobs import Job
from sparse_lens.errors import ConfigError
from sparse_lens.results import exact

SPECS = [ColumnSpec("sparse_neurons", "sparse"), ColumnSpec("dense_matched_neurons", "dense_matched")]


def curve(column: str, task: str, size: float, seed: int = 0) -> dict[str, Any]:
    """A curve on which size goes as one over the divergence; that is 1.5 times as much on shifted prompts, thrice on real files."""
    numbers = {kl: {name: exact(size / kl) for name in ("total_bits", "nodes", "structural_edges")} for kl in (0.2, 2.0)}
    at = {"kl_heldout": 1.0, "kl_rephrased": 1.5, "kl_natural": 3.0}
    points = tuple(
        CurvePoint(kl, True, {**{name: exact(times * kl) for name, times in at.items()}, **found}, {}, {})
        for kl, found in numbers.items()
    )
    return CircuitCurve(column, task, seed, exact(1.0), points).to_plain()


def curves(ratio: float) -> dict[str, dict[str, list[dict[str, Any]]]]:
    return {
        task: {"sparse_neurons": [curve("s", task, 100.0)], "dense_matched_neurons": [curve("d", task, 100.0 * ratio * factor)]}
        for task, factor in (("a", 2.0), ("b", 0.5), ("c", 1.0))
    }


def test_one_training_seed() -> None:
    found = headline(curves(3.0), SPECS)["dense_matched_neurons"]["bits_ratio_at_0.5"]
    assert found.value == pytest.approx(3.0) and (found.n, found.seeds) == (3, 1)


def test_elsewhere_is_at_divergences_of_its_own() -> None:
    found = headline(curves(3.0), SPECS)["dense_matched_neurons"]
    assert found["bits_ratio_at_0.5_rephrased"].value == pytest.approx(3.0) == found["nodes_ratio_at_3_natural"].value
    assert "bits_ratio_at_0.3_natural" not in found


def test_bits_by_other_counts_stand_beside() -> None:
    """A column whose dictionaries are all of its size but a third; no ratio where bits are not counted so."""
    with_both = curves(3.0)
    for columns in with_both.values():
        for name, share in (("sparse_neurons", 1.0), ("dense_matched_neurons", 1 / 3)):
            for point in columns[name][0]["points"]:
                total = point["results"]["total_bits"]["value"]
                point["results"]["total_without_dictionary_bits"] = exact(share * total).to_json()
    found = headline(with_both, SPECS)["dense_matched_neurons"]
    assert found["bits_ratio_at_0.5"].value == pytest.approx(3.0)
    assert found["bits_without_dictionaries_ratio_at_0.5"].value == pytest.approx(1.0)
    assert not found["bits_once_ratio_at_0.5"].measurable


def test_a_column_is_held_against_its_control() -> None:
    """Paired task by task: as large in every task is 1 without a width, whatever tasks differ by; without a curve no ratio."""
    pairs = [("dense_matched_neurons", "sparse_neurons"), ("dense_matched_neurons", "dense_matched_rotated")]
    against = against_controls(curves(3.0), pairs)
    assert list(against) == pairs[:1] and against[pairs[0]]["nodes_ratio_at_0.5"].value == pytest.approx(3.0)
    same = {task: {name: columns["dense_matched_neurons"] for name in ("a", "b")} for task, columns in curves(3.0).items()}
    ratio = against_controls(same, [("a", "b")])["a", "b"]
    words = "latents and others"
    assert _by_size(ratio, words) == [
        f"{size} of circuits at 0.5 nats: {words} are not told apart (ratio 1 [1, 1], 3 tasks)." for size in ("bits", "nodes")
    ]
    smaller, larger = (against_controls(flat, [("d", "s")])["d", "s"] for flat in (_of_ratio(0.5), _of_ratio(2.0)))
    assert not _by_size(smaller, words) and "the control's are smaller" in _by_size(larger, words)[0]


def _of_ratio(ratio: float) -> dict[str, dict[str, list[dict[str, Any]]]]:
    return {task: {"s": [curve("s", task, 100.0)], "d": [curve("d", task, 100.0 * ratio)]} for task in "abc"}


def test_two_tasks_are_too_few() -> None:
    two = {task: columns for task, columns in curves(3.0).items() if task != "c"}
    found = headline(two, SPECS)["dense_matched_neurons"]["bits_ratio_at_0.5"]
    assert not found.measurable and found.n == 2 and "needs 3" in str(found.reason)


def test_the_best_basis_is_chosen_task_by_task_and_in_nodes_alone() -> None:
    """Neurons take 2, 1/2 and 1 times the nodes, components 1 throughout: the best take 1, 1/2 and 1."""
    columns = curves(1.0)
    for task in columns:
        columns[task]["dense_matched_components"] = [curve("c", task, 100.0)]
    found = headline(columns, [*SPECS, ColumnSpec("dense_matched_components", "dense_matched", "components")])[BEST_BASIS]
    assert found["nodes_ratio_at_0.5"].value == pytest.approx(0.5 ** (1 / 3))
    assert all(name.startswith("nodes") for name in found) and BEST_BASIS not in headline(curves(1.0), SPECS)


def test_the_best_basis_is_of_the_seeds_that_all_bases_have() -> None:
    """Components were searched with one seed, neurons with two, in two trainings: neurons alone are not the best of both."""
    columns = curves(8.0)
    for task in columns:
        columns[task]["dense_matched_neurons"] *= 2
        columns[task]["sparse_neurons"] *= 2
        columns[task]["dense_matched_components"] = [curve("c", task, 100.0)]
    specs = [*SPECS, ColumnSpec("dense_matched_components", "dense_matched", "components")]
    found = headline(columns, specs, {"1": curves(8.0)})
    assert found[BEST_BASIS]["nodes_ratio_at_0.5"].value == pytest.approx(1.0)
    assert (found[FIRST_TRAINING]["bits_ratio_at_0.5"].seeds, found["dense_matched_neurons"]["bits_ratio_at_0.5"].seeds) == (1, 2)


def test_a_size_between_two_widths() -> None:
    """Of logarithms: a quarter of the way from 8 times the size to 2 times is 4 sqrt 2 times; no ratio where one has none."""
    columns = curves(2.0)
    for task, of in columns.items():
        size = {"a": 2.0, "b": 0.5, "c": 1.0}[task]
        of["dense_neurons"] = [curve("t", task, 800.0 * size)]
    specs, shares = [*SPECS, ColumnSpec("dense_neurons", "dense")], {"dense_neurons": 0.75, "dense_matched_neurons": 0.25}
    found = headline(columns, specs, {"1": curves(1.0)}, shares)[INTERPOLATED]
    assert found["nodes_ratio_at_0.5"].value == pytest.approx(4 * 2**0.5) and found["nodes_ratio_at_0.5"].seeds == 1
    columns["a"]["dense_neurons"][0]["points"] = []
    assert not headline(columns, specs, widths=shares)[INTERPOLATED]["nodes_ratio_at_0.5"].measurable
    assert INTERPOLATED not in headline(columns, specs) and INTERPOLATED not in headline(curves(1.0), SPECS, widths=shares)


def test_further_training_seeds_weigh_the_same() -> None:
    """Geometric mean of 1.5, 6 and 24; the interval now holds what another training gives."""
    found = headline(curves(1.5), SPECS, {"1": curves(6.0), "2": curves(24.0)})["dense_matched_neurons"]["nodes_ratio_at_1"]
    assert found.value == pytest.approx(6.0) and found.seeds == 3
    alone = headline(curves(6.0), SPECS)["dense_matched_neurons"]["nodes_ratio_at_1"]
    assert found.lo is not None and alone.lo is not None and found.lo < alone.lo


def test_they_are_in_the_assembled_part() -> None:
    def jobs(ratio: float) -> list[tuple[Job, dict[str, Any]]]:
        return [
            (Job(f"{task} {column}", "a.b:c", {"task": task, "column": {"name": column}}), record)
            for task, columns in curves(ratio).items()
            for column, (record,) in columns.items()
        ]

    full = assemble(FullPlan(), SPECS, [], curves=jobs(3.0), rows=[], further={"1": jobs(12.0)})
    assert full["headline"]["dense_matched_neurons"]["bits_ratio_at_1"].value == pytest.approx(6.0)
    assert set(full["further_training_seeds"]["1"]) == {"a", "b", "c"}


def test_models_on_either_side_of_the_loss_are_a_column_between_them() -> None:
    """0.1 better and 0.3 worse: three quarters of the twin; nothing of it where the matched model is within the tolerance."""
    columns = curves(2.0)
    for task, of in columns.items():
        of["dense_neurons"] = [curve("t", task, 800.0 * {"a": 2.0, "b": 0.5, "c": 1.0}[task])]
    places = [(task, column, record) for task, of in columns.items() for column, (record,) in of.items()]
    cells = [(Job(f"{t} {c}", "a.b:c", {"task": t, "column": {"name": c}}), record) for t, c, record in places]
    specs, sides = [*SPECS, ColumnSpec("dense_neurons", "dense")], {"sparse_neurons": 3.0, "dense_neurons": 2.9}
    for matched, there in ((3.3, True), (3.04, False)):
        losses = (sides | {"dense_matched_neurons": matched}).items()
        rows = [
            (Job(c, "a.b:d", {"column": {"name": c, "dictionaries": []}}), {"loss": exact(value).to_json()}) for c, value in losses
        ]
        full = assemble(FullPlan(), specs, [], curves=cells, rows=rows)
        assert (INTERPOLATED in full["headline"], INTERPOLATED in full["matching"]) == (there, there)
        said = [line for line in full["unmatched"] if line.startswith(INTERPOLATED)]
        assert len(said) == int(there) and all("0.75 of dense_neurons and 0.25 of dense_matched_neurons" in line for line in said)
        if there:
            assert full["headline"][INTERPOLATED]["nodes_ratio_at_0.5"].value == pytest.approx(4 * 2**0.5)
            assert full["matching"][INTERPOLATED]["how"] == "interpolated"


def test_the_shipped_pair_has_two_further_seeds() -> None:
    """Four curves a task: two columns of two models; the plan says how many."""
    pair = ModelPair.open()
    found = further_jobs(pair, FullPlan(), SPECS, ["if_equals", "with_as"])
    assert {seed: len(jobs) for seed, jobs in found.items()} == {"1": 4, "2": 4}
    assert all("python-sparse-seed1" in job.arguments["pair"] for job in found["1"])
    assert further_jobs(pair, FullPlan(training_seeds=1), SPECS, ["if_equals"]) == {}
    with pytest.raises(ConfigError, match="once at least"):
        FullPlan(training_seeds=0)


def test_every_column_is_searched_with_the_same_effort() -> None:
    """Nodes at the same targets, those that the main columns' edges start from among them; other numbers are in the fingerprint."""
    pair, specs = ModelPair.open(), [ColumnSpec("sparse_neurons", "sparse"), ColumnSpec("sparse_rotated", "sparse", "rotated")]
    jobs = curve_jobs(pair, quick_plan(), specs, ["if_equals"])
    searched = [
        {*job.arguments["targets"], *job.arguments["also_traced"], *edge_starts(job.arguments["edge_targets"])} for job in jobs
    ]
    assert searched == [{2.0, 0.5, 0.25}] * 2
    fewer = curve_jobs(pair, replace(quick_plan(), curve_pairs=64), specs, ["if_equals"])
    assert {job.fingerprint for job in jobs}.isdisjoint(job.fingerprint for job in fewer)
