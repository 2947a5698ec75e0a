"""From records to metrics: overlaps of circuits, the frontier with the column's own dictionary, and what is kept apart."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.comparison import Comparison
from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve, CurvePoint
from sparse_lens.comparisons.curves.edge_levels import TOO_LARGE
from sparse_lens.comparisons.full.assembly import assemble
from sparse_lens.comparisons.full.full_columns import Wanted
from sparse_lens.comparisons.full.plan import FullPlan
from sparse_lens.comparisons.jobs import Job
from sparse_lens.errors import DataError
from sparse_lens.results import exact, not_measurable

NEURONS, LATENTS = ColumnSpec("sparse_neurons", "sparse"), ColumnSpec("dense_topk", "dense_matched", "dictionaries")


_KL = ("kl_heldout", "kl_rephrased", "kl_natural")


def curve(spec: ColumnSpec, seed: int, kept: list[int], dictionaries: tuple[str, ...] = ()) -> tuple[Job, dict[str, Any]]:
    points = (
        CurvePoint(
            0.5,
            True,
            dict.fromkeys((*_KL, "total_bits", "nodes", "structural_edges"), exact(0.5)),
            {},
            {},
            {"a": kept, "b": [0]},
        ),
    )
    facts = {"sites": {"a": 6, "b": 2}, "dictionaries": list(dictionaries)}
    found = CircuitCurve(spec.name, "task", seed, exact(1.0), points, facts=facts)
    return Job(f"{spec.name} {seed}", "a.b:c", {"task": "task", "column": spec.to_plain(), "seed": seed}), found.to_plain()


def row(spec: ColumnSpec, name: str, seed: int, value: float, **apart: Any) -> tuple[Job, dict[str, Any]]:
    arguments = {"column": spec.to_plain(), "row": name, "layer": 0, "seed": seed}
    return Job(f"{name} {spec.name} {seed}", "a.b:d", arguments), {"l0": vars(exact(value)), **apart}


def test_circuits_of_the_same_nodes_overlap() -> None:
    """Three nodes and two with two in common, of four; dictionaries of other seeds are other nodes; indices are not kept."""
    cells = [curve(NEURONS, 0, [1, 2]), curve(NEURONS, 1, [1, 2, 3])]
    cells += [curve(LATENTS, seed, [1], (f"hash {seed}",)) for seed in (0, 1)]
    full = assemble(FullPlan(), [NEURONS, LATENTS], [], curves=cells, rows=[])
    overlap = full["rows"]["overlap"]
    assert list(overlap) == ["sparse_neurons"] and overlap["sparse_neurons"]["task"]["jaccard_at_0.5"].value == pytest.approx(3 / 4)
    assert all("kept" not in point for c in full["curves"]["task"]["sparse_neurons"] for point in c["points"])


def test_the_frontier_has_the_columns_own_dictionary_with_its_first_seed() -> None:
    own = ColumnSpec("dense_topk", "dense_matched", "dictionaries", (("x",), ("y",)))
    further = ColumnSpec("topk 448 k8", "dense_matched", "dictionaries", (("z",),))
    trained = [
        {"folder": folder, "hash": f"hash of {folder}", "kind": "topk", "d_sae": d_sae, "k": k}
        for folder, d_sae, k in (("x", 896, 16), ("y", 896, 16), ("z", 448, 8))
    ]
    full = assemble(
        FullPlan(),
        [NEURONS, own],
        trained,
        curves=[],
        rows=[row(own, "activation", seed, 16.0 + seed) for seed in (0, 1)],
        frontier=({further: Wanted("dense_matched", "topk", 0, 448, 8)}, [row(further, "activation", 0, 8.0)]),
    )
    found = full["frontier"]
    assert {name: (content["d_sae"], content["k"]) for name, content in found.items()} == {
        "topk 448 k8": (448, 8),
        "topk 896 k16": (896, 16),
    }
    assert [result["l0"].value for result in found["topk 896 k16"]["rows"]["activation"].values()] == [16.0]


def test_labels_are_apart_from_the_numbers() -> None:
    """A column that is better on every label by another amount is told apart from its control, one that is not is named."""
    columns = [ColumnSpec("dense_topk", "dense_matched"), ColumnSpec("dense_frozen", "dense_matched")]
    labels = [f"label {index}" for index in range(8)]

    def concepts(spec: ColumnSpec, numbers: list[float]) -> tuple[Job, dict[str, Any]]:
        return row(spec, "concepts", 0, 1.0, per_label={"coverage_f1": dict(zip(labels, numbers, strict=True))})

    control = [0.1 * index for index in range(8)]
    for gain, told in ((0.05, []), (0.0, ["not told apart"]), (-0.05, ["the control comes further"])):
        better = [number + gain * (1 + index % 3) for index, number in enumerate(control)]
        cells = [concepts(columns[0], better), concepts(columns[1], control)]
        full = assemble(FullPlan(), columns, [], curves=[], rows=cells)
        assert len(full["undistinguished"]) == len(told)
        assert all(words in sentence for words, sentence in zip(told, full["undistinguished"], strict=True))
        assert "per_label" not in full["rows"]["concepts"]["dense_topk"]["layer 0"]


def test_every_number_is_in_one_table() -> None:
    cells = [curve(NEURONS, seed, [1]) for seed in (0, 1)]
    own = ColumnSpec("topk 448 k8", "dense_matched", "dictionaries", (("z",),))
    width = ({own: Wanted("dense_matched", "topk", 0, 448, 8)}, [row(own, "activation", 0, 8.0)])
    rows = [row(LATENTS, "activation", 0, 16.0)]
    further = {"1": [curve(NEURONS, 0, [1])]}
    trained = [
        {"folder": folder, "hash": f"hash of {folder}", "kind": "topk", "d_sae": d_sae, "k": k}
        for folder, d_sae, k in (("x", 896, 16), ("y", 896, 16), ("z", 448, 8))
    ]
    full = assemble(FullPlan(), [NEURONS, LATENTS], trained, curves=cells, rows=rows, further=further, frontier=width)
    effects = {"blocks.0.hook_in": {"channels": [3], "results": {"effect": vars(exact(0.25))}}}
    full["couplings"] = {"losses": {"loss_dense": vars(exact(3.0))}, "steering": {"task": effects}}
    frame = Comparison({"tasks": {}, "full": full}).full_frame()
    assert set(frame["section"]) == {"curves", "rows", "frontier", "couplings"}

    def value(**where: str) -> float:
        (found,) = frame.loc[(frame[list(where)] == list(where.values())).all(axis=1), "value"]
        return found

    assert value(section="rows", name="activation", column="dense_topk", place="layer 0", metric="l0") == 16.0
    assert value(section="frontier", name="activation", column="topk 448 k8", place="layer 0", metric="l0") == 8.0
    assert value(section="couplings", name="task", column="", place="blocks.0.hook_in", metric="effect") == 0.25
    assert value(section="couplings", name="", metric="loss_dense") == 3.0
    places = set(frame[frame["section"] == "curves"]["place"])
    searches = {"seed 0", "seed 1", "training seed 1, seed 0"}
    assert places == searches | {f"{search}, target 0.5" for search in searches}
    with pytest.raises(DataError, match="compare_fully"):
        Comparison({"tasks": {}}).full_frame()


def test_what_was_left_out_is_named() -> None:
    """A gate that a further training seed fails, a search that missed its target, a column that was matched with nothing."""
    (job, record), (again, other) = curve(NEURONS, 0, [1]), curve(NEURONS, 0, [1])
    record["points"][0]["reached"] = False
    record["points"][0]["results"]["functional_edges"] = vars(not_measurable(f"300 MLP nodes are kept; {TOO_LARGE}"))
    failed = other | {"points": [], "reason": "accuracy 0.5 is below the gate of 0.9"}
    cells = [row(LATENTS, "activation", 0, 16.0)]
    full = assemble(FullPlan(), [NEURONS, LATENTS], [], curves=[(job, record)], rows=cells, further={"1": [(again, failed)]})
    assert full["left_out"] == [
        "sparse_neurons: 1 of 1 searches did not reach their target; their points are best attempts.",
        "sparse_neurons, task: 300 MLP nodes are kept; functional edges are found between up to 256.",
        "sparse_neurons, task (training seed 1): accuracy 0.5 is below the gate of 0.9.",
        "dense_topk: not matched with the sparse neurons, whose tokens or layers its model does not share.",
    ]
