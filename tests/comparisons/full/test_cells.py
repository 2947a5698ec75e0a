"""Cells run on the shipped pair as any process would run them: plain arguments in, plain records out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.concepts.pair_labels import label_role
from sparse_lens.comparisons.full import cells
from sparse_lens.errors import UnknownNameError
from sparse_lens.results import to_plain

SPARSE, MATCHED = (ColumnSpec(f"{model}_neurons", model).to_plain() for model in ("sparse", "dense_matched"))


@pytest.mark.parametrize("row", ["reconstruction", "activation", "superposition", "jacobian", "weights", "concepts"])
def test_rows_of_the_sparse_neurons(row: str) -> None:
    """Every record is JSON, and its numbers are measurable where neurons stand for themselves."""
    record = cells.row_cell(ModelPair.open().address, SPARSE, row, 0, tokens=6_400)
    plain = json.loads(json.dumps(to_plain(record), allow_nan=False))
    assert any(value["measurable"] for name, value in plain.items() if name not in ("map", "per_label", "per_window"))
    if row == "concepts":
        drawn = plain["map"]
        assert len(drawn["values"]) == len(drawn["rows"]) > 3 and len(drawn["values"][0]) == len(drawn["columns"])
        best = [max(line) for line in drawn["values"]]
        assert best == sorted(best, reverse=True)


def test_correspondence_of_two_models() -> None:
    record = cells.correspondence_cell(ModelPair.open().address, SPARSE, MATCHED, 0, tokens=6_400)
    drawn = record["map"]
    diagonal = [abs(line[place]) for place, line in enumerate(drawn["values"])]
    assert diagonal == sorted(diagonal, reverse=True) and diagonal[0] > 0.3
    json.dumps(to_plain(record), allow_nan=False)


def test_an_unknown_row() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'concepts'"):
        cells.row_cell(ModelPair.open().address, SPARSE, "concept", 0)


@pytest.mark.slow
def test_the_labels_own_directions_are_an_upper_line_of_the_neurons() -> None:
    """A latent for each label of the training files tells the labels of the test files better than the best neuron does."""
    address = ModelPair.open().address
    supervised = ColumnSpec("upper", "dense_matched", "supervised", tokens=6_400, control=True).to_plain()
    found = {name: cells.row_cell(address, spec, "probes", 0, tokens=6_400) for name, spec in (("n", MATCHED), ("s", supervised))}
    best = {name: record["probe_accuracy_k1"].value for name, record in found.items()}
    assert best["s"] > best["n"]


def test_neurons_of_other_training_seeds_are_matched() -> None:
    pair = ModelPair.open()
    others = [again.address for again in pair.training_seeds()[1:2]]
    found = cells.stability_cell(pair.address, MATCHED, 0, others, tokens=6_400)
    matched = found["matched_correlation"]
    assert matched.seeds == 2 and matched.null < matched.value < 0.9
    itself = cells.stability_cell(pair.address, MATCHED, 0, [pair.address], tokens=6_400)
    assert itself["matched_correlation"].value == pytest.approx(1.0, abs=1e-6)


def test_an_untrained_dictionary_is_a_column() -> None:
    untrained = ColumnSpec("u", "dense_matched", "untrained", size=(56, 4), control=True).to_plain()
    found = cells.capability_cell(ModelPair.open().address, untrained, tokens=6_400)
    assert found["loss_spliced"].value > found["loss"].value + 0.1
    assert found["dictionary_numbers"].value == pytest.approx(2 * (2 * 56 * 224 + 224), abs=2)
    for name, losses in found["per_window"].items():
        assert len(losses) == found[name].n and np.mean(losses) == pytest.approx(found[name].value, abs=1e-6)


def test_labels_are_read_once_for_models_of_one_tokenizer(tmp_path: Path) -> None:
    """All roles and arms of the shipped pair read the same; a model with its own tokenizer reads its own, whichever role it has."""
    pair = ModelPair.open()
    arm = ColumnSpec("arm", str(pair.arms()["magnitude_pruned"]))
    roles = [ColumnSpec(role, role) for role in ("sparse", "dense", "dense_matched")]
    assert {label_role(pair, spec.model) for spec in (*roles, arm)} == {"sparse"}
    other = tmp_path / "other"
    shutil.copytree(pair.model_folder("dense"), other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {word + "x": number for word, number in tokenizer["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    replaced = pair.with_models(dense_matched=other)
    assert [label_role(replaced, spec.model) for spec in (*roles, arm)] == ["sparse", "sparse", "dense_matched", "sparse"]
    replaced = pair.with_models(sparse=other)
    assert [label_role(replaced, spec.model) for spec in (*roles, arm)] == ["sparse", "dense", "dense", "dense"]
