"""Spread over seeds, units that come back, circuits that overlap."""

from __future__ import annotations

import pytest
import torch

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.rows.stability import circuit_overlap, matched_units, spread, stability
from sparse_lens.dictionaries import IdentityDictionary, random_rotation
from sparse_lens.dictionaries.rotation import RotationDictionary
from sparse_lens.errors import DataError
from sparse_lens.results import Result, not_measurable


def test_mean_and_spread_of_known_runs() -> None:
    results = spread([{"psi": Result(value, null=1.0, n=50)} for value in (1.0, 2.0, 6.0)])
    assert results["psi"] == Result(3.0, 1.0, 6.0, 1.0, 50, 3)
    assert results["psi_sd"].value == pytest.approx(7**0.5) and results["psi_sd"].seeds == 3


def test_too_few_runs_have_a_mean_but_no_spread() -> None:
    results = spread([{"psi": Result(1.0)}, {"psi": Result(2.0, null=0.5)}])
    assert results["psi"].value == 1.5 and results["psi"].null is None
    assert not results["psi_sd"].measurable and "needs 3" in results["psi_sd"].reason


def test_a_run_without_a_number_leaves_none_for_the_whole() -> None:
    results = spread([{"psi": Result(1.0)}, {"psi": not_measurable("all dead")}, {"psi": Result(2.0)}])
    assert results["psi"].value is None and "1 of 3 runs: all dead" in results["psi"].reason


def test_runs_of_different_measures_are_refused() -> None:
    with pytest.raises(DataError, match="same metrics \\(F\\)"):
        spread([{"psi": Result(1.0)}, {"psi": Result(1.0), "F": Result(2.0)}])
    with pytest.raises(DataError, match="no runs"):
        spread([])


def test_levels_by_name() -> None:
    runs = [{"psi": Result(float(value))} for value in range(3)]
    found = stability(dictionary_seeds=runs, resamples=runs[:2])
    assert list(found) == ["dictionary_seeds", "resamples"] and found["dictionary_seeds"]["psi"].value == 1


def test_overlap_of_known_circuits() -> None:
    masks = [torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 0]).bool(), torch.tensor([0, 1, 1, 1, 0, 0, 0, 0, 0, 0]).bool()]
    assert circuit_overlap(masks).value == pytest.approx(2 / 4)
    assert circuit_overlap(masks).null == pytest.approx(0.9 / 5.1)
    assert circuit_overlap([masks[0]] * 3) == Result(1.0, 1.0, 1.0, circuit_overlap(masks).null, 3, 3)
    assert circuit_overlap([masks[0], ~masks[0]]).value == 0
    assert not circuit_overlap(masks[:1]).measurable and not circuit_overlap([masks[0] & False] * 2).measurable
    with pytest.raises(DataError, match=r"\[10, 11\] nodes"):
        circuit_overlap([masks[0], torch.ones(11).bool()])


def test_the_overlap_of_random_circuits_is_the_null() -> None:
    generator = torch.Generator().manual_seed(0)
    overlap = circuit_overlap([torch.rand(20_000, generator=generator) < share for share in (0.1, 0.2, 0.3, 0.2)])
    assert overlap.value == pytest.approx(overlap.null, rel=0.05)


def test_units_of_a_column_come_back_or_do_not() -> None:
    """The same neurons three times; and three rotations of them, each with a basis of its own.

    Rotations have nothing to come back, yet they correlate far above the turned tokens: few directions carry most of the variance.
    """
    pair = ModelPair.open()
    bridge, hook = pair.open_model("dense_matched"), "blocks.1.mlp.hook_post"
    batches = [pair.windows["reference"][:8]]
    same = matched_units([(bridge, IdentityDictionary(224, hook))] * 3, batches)
    assert same["matched_correlation"].value == pytest.approx(1) and same["matched_correlation"].seeds == 3
    rotations = [(bridge, RotationDictionary(random_rotation(224, seed), hook)) for seed in range(3)]
    turned = matched_units(rotations, batches)
    assert turned["matched_correlation"].null < 0.2 < 0.5 < turned["matched_correlation"].value < 0.9
    with pytest.raises(DataError, match="at least two"):
        matched_units(rotations[:1], batches)
