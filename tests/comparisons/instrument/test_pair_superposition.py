"""Superposition of the shipped pair: the reading under shift with a second witness, and the smallest form of all of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.column_specs import mlp_neurons
from sparse_lens.comparisons.instrument.pair_superposition import RISE, _log_ratio, measure_pair_superposition, under_shift
from sparse_lens.comparisons.instrument.sizes import SMOKE
from sparse_lens.comparisons.shift.ladder import ShiftLadder
from sparse_lens.dictionaries import harvest_activations
from sparse_lens.results import exact, not_measurable


def test_a_rise_needs_both_ends() -> None:
    assert _log_ratio(exact(0.5, n=9), exact(0.75, n=7)) == exact(math.log(1.5), n=7)
    assert _log_ratio(not_measurable("no latent was active"), exact(1.0)).reason == "no latent was active"
    assert _log_ratio(exact(1.0), not_measurable("no latent was active")).reason == "no latent was active"


def test_the_ends_of_a_ladder_are_read_from_its_first_position_on() -> None:
    """Second witness: effective features by hand, of the first level and of the last, without the positions before the start."""
    pair = ModelPair.open()
    bridge, windows = pair.open_model("sparse"), pair.windows_of("sparse")["heldout"]
    neurons = mlp_neurons(bridge)[1]
    levels = {"as": windows[:20], "middle": windows[20:24], "far": windows[24:60, :65]}
    ladder = ShiftLadder.of(levels, files={name: np.arange(len(each)) for name, each in levels.items()})
    found = under_shift(bridge, neurons, ladder)
    for level, of in (("as_is", levels["as"]), ("renamed", levels["far"])):
        (harvested,) = harvest_activations(bridge, [neurons.hook_in], [of[:, :-1]])
        read = harvested[neurons.hook_in].unflatten(0, (len(of), -1))[:, ladder.read_from[0] :].flatten(0, 1).abs().double()
        p = (read.sum(0) / read.sum()).numpy()
        psi = math.exp(-(p[p > 0] * np.log(p[p > 0])).sum()) / neurons.n_latents
        assert found[f"psi_{level}"].value == pytest.approx(psi, rel=1e-6) and found[f"psi_{level}"].n == len(read)
        assert found[f"fvu_{level}"].value == pytest.approx(0, abs=1e-9)  # neurons leave nothing unexplained
    ends = found["psi_renamed"].value, found["psi_as_is"].value
    assert found[RISE].value == pytest.approx(math.log(ends[0] / ends[1])) and found[RISE].value != 0


def test_a_pair_without_a_ladder_says_why() -> None:
    pair = ModelPair.open()
    bridge = pair.open_model("sparse")
    found = under_shift(bridge, mlp_neurons(bridge)[0], "no file is held out")
    assert {result.reason for result in found.values()} == {"no file is held out"} and set(found) >= {
        RISE,
        "psi_as_is",
        "fvu_renamed",
    }


@pytest.mark.slow
def test_on_the_shipped_pair() -> None:
    found = measure_pair_superposition(ModelPair.open(), SMOKE)
    for role, neurons in (("sparse", 1024), ("dense", 224)):
        of = {name: result.value for name, result in found[role].items()}
        assert of["effective_features"] == pytest.approx(neurons * of["psi"])
        assert 0 < of["same_token_share"] < 1 and of["same_token_psi"] < of["psi"]
        assert {f"random_weights_{name}" for name in ("psi", "same_token_psi", RISE)} <= set(of)
        assert of["psi_renamed"] != of["psi_as_is"]
