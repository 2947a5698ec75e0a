"""Whose loss is the sparse model's? By hand."""

from __future__ import annotations

import pytest

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.full.full_verdict import unmatched
from sparse_lens.comparisons.full.matching import match_to_base
from sparse_lens.results import Result, exact


def loss(value: float, n: int = 64, **further: Result) -> dict[str, dict[str, Result]]:
    return {"model": {"loss": exact(value, n=n), **further}}


ROWS = {
    "sparse_neurons": loss(3.27),
    "near": loss(3.30, loss_spliced=exact(3.57, n=64)),
    "far": loss(2.62),
    "other": loss(3.27, n=51),
}


def test_columns_are_matched_or_named() -> None:
    """Within 0.05 nats; a splice is reported beside; other tokens are no loss to compare."""
    found = match_to_base(ROWS)
    assert {name: match["how"] for name, match in found.items()} == {
        "sparse_neurons": "matched",
        "near": "matched",
        "far": "too far apart",
        "other": "other tokens",
    }
    assert found["near"]["difference"].value == pytest.approx(0.03)
    assert found["near"]["difference_spliced"].value == pytest.approx(0.3)
    assert not found["far"]["difference_spliced"].measurable and not found["other"]["difference"].measurable
    said = unmatched(found, [ColumnSpec(name, name) for name in ROWS])
    assert [sentence.partition(":")[0] for sentence in said] == ["far", "other"]
    assert "-0.65 nats a token off" in said[0] and "other tokens" in said[1]


def test_without_the_base_there_is_nothing_to_match_to() -> None:
    assert match_to_base({"near": loss(1.0)}) == {}
