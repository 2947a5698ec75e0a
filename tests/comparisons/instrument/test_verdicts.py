"""The rule on synthetic results: each verdict, and each reason for none."""

from __future__ import annotations

import pytest

from sparse_lens.comparisons.instrument.verdicts import difference_over_seeds, judge
from sparse_lens.errors import DataError

MATCHED = [0.01, -0.02, 0.04]


def test_a_clear_difference_supports_or_contradicts() -> None:
    sparse, dense = [1.0, 1.1, 0.9], [2.0, 2.2, 2.1]
    claim = judge(sparse, dense, loss_gaps=MATCHED, larger="dense")
    assert claim.verdict == "supports" and claim.difference.value == pytest.approx(-1.1)
    assert judge(sparse, dense, loss_gaps=MATCHED, larger="sparse").verdict == "contradicts"
    assert judge(dense, sparse, loss_gaps=MATCHED, larger="sparse").verdict == "supports"


def test_the_interval_is_students() -> None:
    """By hand: differences 1, 2, 3 have mean 2, standard error 1/sqrt(3), and t = 4.3027 at two degrees of freedom."""
    found = judge([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], loss_gaps=MATCHED, larger="sparse")
    assert found.difference.lo == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert found.verdict == "indistinguishable"  # 0 lies inside: three seeds that agree in sign are not enough


def test_identical_models_are_indistinguishable() -> None:
    assert judge([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], loss_gaps=[0.0] * 3, larger="sparse").verdict == "indistinguishable"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"loss_gaps": [0.01, 0.06, 0.0]}, "apart, by +0.060"),
        ({"loss_gaps": [float("nan"), 0.0, 0.0]}, "not matched"),
        ({"controls": {"rotated": [0.1, None, 0.1]}}, "rotated has no number"),
    ],
)
def test_what_fails_is_not_measurable_and_says_why(changed: dict[str, object], reason: str) -> None:
    options: dict[str, object] = {"loss_gaps": MATCHED, "larger": "sparse"} | changed
    found = judge([2.0, 2.1, 2.2], [1.0, 1.0, 1.0], **options)  # pyright: ignore[reportArgumentType]
    assert found.verdict == "not measurable" and reason in " ".join(found.reasons)
    assert found.difference.value == pytest.approx(1.1)  # reported, but no verdict rests on it


def test_a_control_that_shows_as_much() -> None:
    """Differences of about 1.1: a control with 0.1 leaves the claim, one with as much takes it; where 0 is inside none is asked."""
    sparse, dense = [2.0, 2.1, 2.2], [1.0, 1.0, 1.0]
    how = {"loss_gaps": MATCHED, "larger": "sparse"}
    small, same = {"random weights": [0.1, 0.1, 0.2]}, {"rotated": [1.0, 1.1, 1.2]}
    assert judge(sparse, dense, controls=small, **how).verdict == "supports"  # pyright: ignore[reportArgumentType]
    taken = judge(sparse, dense, controls=small | same, **how)  # pyright: ignore[reportArgumentType]
    assert taken.verdict == "indistinguishable" and "control rotated" in taken.reasons[0] and len(taken.reasons) == 1
    unasked = judge(dense, dense, controls={"rotated": [None] * 3}, **how)  # pyright: ignore[reportArgumentType]
    assert unasked.verdict == "indistinguishable" and unasked.reasons == ()


def test_two_seeds_are_too_few() -> None:
    found = judge([2.0, 2.1], [1.0, 1.0], loss_gaps=MATCHED[:2], larger="sparse")
    assert found.verdict == "not measurable" and "2 training seed(s)" in found.reasons[0]
    assert judge([None], [1.0], loss_gaps=[0.0], larger="sparse").verdict == "not measurable"


def test_a_seed_without_a_number_is_not_left_out() -> None:
    """Neither one that fails its gate nor one whose losses are apart: what is left would be chosen by the outcome."""
    values, others = [2.0, 2.1, 2.2, None], [1.0] * 4
    found = judge(values, others, loss_gaps=[0.0] * 4, larger="sparse")
    assert found.verdict == "not measurable" and found.reasons == ("1 of 4 training seeds have no number on both sides",)
    apart = judge(values, others, loss_gaps=[0.0, 0.0, 0.0, 0.9], larger="sparse")
    assert "1 of 4 pairs are apart, by +0.900" in apart.reasons[0]


def test_rounding_decides_nothing() -> None:
    """0.1 + 0.2 is not 0.3, and differences that cancel do not sum to 0."""
    assert 0.1 + 0.2 != 0.3 and sum([0.1, -0.3, 0.2]) != 0
    assert judge([0.1 + 0.2] * 3, [0.3] * 3, loss_gaps=[0.0] * 3, larger="sparse").verdict == "indistinguishable"
    assert difference_over_seeds([0.1, -0.3, 0.2]).value == 0
    assert difference_over_seeds([1e-9, 1e-9, 2e-9]).value != 0
    assert judge([(0.9 - 0.8) - 0.1] * 3, [0.0] * 3, loss_gaps=[0.0] * 3, larger="sparse").verdict == "indistinguishable"


def test_unlike_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="each training seed"):
        judge([1.0], [1.0, 2.0], loss_gaps=[0.0], larger="sparse")
