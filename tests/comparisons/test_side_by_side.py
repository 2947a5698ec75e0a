"""Facts of the models beside a measure, and differences of its columns."""

from __future__ import annotations

import pytest

from sparse_lens.comparisons import ModelPair, model_facts
from sparse_lens.comparisons.column_specs import ColumnSpec, mlp_units, open_column
from sparse_lens.comparisons.instrument.sizes import reading_batches
from sparse_lens.comparisons.predictability import predictability_table
from sparse_lens.comparisons.side_by_side import difference, facts_beside, with_differences
from sparse_lens.results import Result, exact, not_measurable


def test_a_difference_is_as_uncertain_as_both_together() -> None:
    found = difference(Result(3.0, 2.5, 4.0, n=7, seeds=3), Result(1.0, 0.5, 1.25, n=5, seeds=2))
    assert found == Result(2.0, 1.25, 3.5, 0.0, 5, 2)
    assert difference(exact(3.0), exact(1.0)) == Result(2.0, null=0.0)
    assert difference(not_measurable("a gate"), not_measurable("a gate")).reason == "a gate"


def test_the_first_column_is_held_against_every_other_one() -> None:
    """What both have, form by form where there are forms."""
    table = {
        "a": {"form": {"x": exact(3.0)}, "model": {"loss": exact(3.4)}, "own": {"x": exact(1.0)}},
        "b": {"form": {"x": exact(1.0)}, "model": {"loss": exact(3.5)}},
        "c": {"form": {"x": not_measurable("silent")}, "model": {"loss": exact(3.0)}},
    }
    found = with_differences(table)
    assert list(found) == ["a", "b", "c", "a - b", "a - c"] and found["a"] == table["a"]
    assert found["a - b"].keys() == {"form", "model"} and found["a - b"]["form"]["x"].value == 2
    assert found["a - b"]["model"]["loss"].value == pytest.approx(-0.1) and found["a - c"]["form"]["x"].reason == "silent"
    assert with_differences({"a": table["a"]}) == {"a": table["a"]} and with_differences({}) == {}


def test_a_measure_says_at_which_losses_it_compares() -> None:
    """On the shipped pair: loss, parameters and nonzeros in every column; without windows the loss is missing, not silent."""
    pair = ModelPair.open()
    columns = {own: open_column(pair.address, ColumnSpec(own, own)) for own in ("sparse", "dense_matched")}
    units = {own: (column.bridge, mlp_units(column)[0]) for own, column in columns.items()}
    heldout = pair.windows["heldout"][:8]
    table = predictability_table(units, reading_batches(pair, 4_000), heldout=heldout)
    facts = {own: model_facts(column.bridge, heldout) for own, column in columns.items()}
    assert all(table[own].items() >= facts[own].items() for own in columns)
    gap = table["sparse - dense_matched"]
    assert gap["loss"].value == pytest.approx((facts["sparse"]["loss"].value or 0) - (facts["dense_matched"]["loss"].value or 0))
    assert (gap["matrix_nonzeros"].value or 0) < 0 and gap["heldout_r2_mean"].null == 0
    alone = facts_beside(columns["sparse"].bridge, None)
    assert not alone["loss"].measurable and alone["nonzeros"] == facts["sparse"]["nonzeros"]
