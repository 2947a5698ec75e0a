"""Whose loss is the sparse model's? By hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_lens.comparisons.full.full_verdict import absent, unmatched
from sparse_lens.comparisons.full.matching import ModelLosses, bracketing_widths, interpolated_match, match_to_base
from sparse_lens.comparisons.full.plan import FullPlan
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.results import Result, bootstrap_mean, exact


def loss(value: float, n: int = 64, **further: Result) -> ModelLosses:
    return ModelLosses({"loss": exact(value, n=n), **further})


ROWS = {
    "sparse_neurons": loss(3.27),
    "near": loss(3.30, loss_spliced=exact(3.57, n=64)),
    "far": loss(2.62),
    "other": loss(3.27),
}


def test_columns_are_matched_or_named() -> None:
    """Within 0.05 nats; a splice is reported beside; other tokens are no loss to compare."""
    found = match_to_base(ROWS, other_tokens=["other"])
    assert {name: match["how"] for name, match in found.items()} == {
        "sparse_neurons": "matched",
        "near": "matched",
        "far": "too far apart",
        "other": "other tokens",
    }
    assert found["near"]["difference"].value == pytest.approx(0.03)
    assert found["near"]["difference_spliced"].value == pytest.approx(0.3)
    assert not found["far"]["difference_spliced"].measurable and not found["other"]["difference"].measurable
    said = unmatched(found)
    assert [sentence.partition(":")[0] for sentence in said] == ["near", "far", "other"]
    assert "errors left out its model is +0.3 nats" in said[0]
    assert "-0.65 nats a token off" in said[1] and "other tokens" in said[2]


def test_circuits_without_error_nodes_are_of_the_model_without_errors() -> None:
    """Window by window: 0.3 nats off with dictionaries in place is not at matched loss, though the model itself is."""
    windows = {"loss": [3.2, 3.4], "loss_spliced": [3.5, 3.6]}
    own = ModelLosses({"loss": exact(3.3, n=2), "loss_spliced": exact(3.55, n=2)}, windows)
    base = ModelLosses({"loss": exact(3.27, n=2)}, {"loss": [3.2, 3.34]})
    found = match_to_base({"sparse_neurons": base, "whole": own, "ablated": own.without_errors()})
    assert (found["whole"]["how"], found["ablated"]["how"]) == ("matched", "too far apart")
    assert found["ablated"]["difference"].value == pytest.approx(0.28)


def test_two_widths_on_either_side_of_the_loss_are_interpolated() -> None:
    """A quarter of the way from the one 0.1 better to the one 0.3 worse; none where one is matched, or both are worse."""
    apart = {"sparse_neurons": loss(3.0), "wide": loss(2.9), "narrow": loss(3.3)}
    widths = bracketing_widths(apart, ["narrow", "wide", "of another pair"])
    assert widths == {"wide": pytest.approx(0.75), "narrow": pytest.approx(0.25)}
    assert unmatched({"between": interpolated_match(widths)}) == [
        "between: no model of this loss, but sizes between those of two (0.75 of wide and 0.25 of narrow), of logarithms."
    ]
    near = apart | {"near": loss(3.04)}
    assert not bracketing_widths(near, ["near", "wide"]) and not bracketing_widths(apart, ["narrow"])
    assert not bracketing_widths({"wide": loss(2.9)}, ["wide"]) and not bracketing_widths(apart, [])


def test_without_the_base_there_is_nothing_to_match_to() -> None:
    assert match_to_base({"near": loss(1.0)}) == {}


def test_every_training_seed_is_to_be_matched() -> None:
    """To the sparse model of its own seed: 0.03 off with the first, 0.06 with the second."""
    again = {"1": {"sparse_neurons": loss(3.40), "near": loss(3.46)}}
    found = match_to_base(ROWS, further=again)["near"]
    assert found["how"] == "too far apart" and "training seed 1" in found["reason"]
    assert found["difference_training_seed_1"].value == pytest.approx(0.06)
    again["1"]["near"] = loss(3.42)
    assert match_to_base(ROWS, further=again)["near"]["how"] == "matched"


def test_columns_of_one_model_have_its_match() -> None:
    found = match_to_base(ROWS, {"errors_kept": "near", "unknown": "nowhere"})
    assert found["errors_kept"] == found["near"] and "unknown" not in found


def test_differences_are_paired_over_windows() -> None:
    """Windows differ a great deal, models hardly: the difference of each window is known far better than either mean."""
    generator = np.random.default_rng(0)
    windows = generator.normal(3.0, 1.0, 64)
    near = windows + generator.normal(0.03, 0.01, 64)
    base = ModelLosses({"loss": bootstrap_mean(windows)}, {"loss": windows.tolist()})
    own = ModelLosses({"loss": bootstrap_mean(near), "loss_spliced": exact(9.0, n=64)}, {"loss": near.tolist()})
    found = match_to_base({"sparse_neurons": base, "near": own})["near"]
    difference = found["difference"]
    assert difference.value == pytest.approx(near.mean() - windows.mean()) and difference.n == 64
    assert difference.lo > 0.02 and difference.hi < 0.04
    assert found["difference_spliced"].lo is None, "its windows are not known"


def test_what_other_models_do_not_have_is_named() -> None:
    """The shipped pair has all; another model in its place takes arms, training seeds and, here, the common depth with it."""
    pair = ModelPair.open()
    assert absent(pair, FullPlan(), is_coupled=True) == []
    other = pair.with_models(dense=pair.model_folder("dense_matched"))
    arms, seeds, couplings = absent(other, FullPlan(), is_coupled=False)
    assert "--arm" in arms and "one training seed" in seeds and "couplings" in couplings
    assert len(absent(other, FullPlan(arms={"mine": "folder"}), is_coupled=True)) == 1
