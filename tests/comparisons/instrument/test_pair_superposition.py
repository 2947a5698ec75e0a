"""Superposition of the shipped pair, the smallest form: the numbers hang together, and what they cannot say is said."""

from __future__ import annotations

import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.instrument.pair_superposition import RENAMED, _rise, measure_pair_superposition
from sparse_lens.comparisons.instrument.sizes import SMOKE
from sparse_lens.results import exact, not_measurable


def test_a_rise_needs_both_ends() -> None:
    assert _rise(exact(0.5, n=9), exact(0.75, n=7)) == exact(0.25, n=7)
    assert _rise(not_measurable("no latent was active"), exact(1.0)).reason == "no latent was active"
    assert _rise(exact(1.0), not_measurable("no latent was active")).reason == "no latent was active"


@pytest.mark.slow
def test_on_the_shipped_pair() -> None:
    pair = ModelPair.open()
    found = measure_pair_superposition(pair, SMOKE)
    for role, neurons in (("sparse", 1024), ("dense", 224)):
        of = {name: result.value for name, result in found[role].items()}
        assert of["effective_features"] == pytest.approx(neurons * of["psi"])
        assert of["same_token_features"] == pytest.approx(neurons * of["same_token_psi"])
        assert of["same_token_psi"] < (found[role]["same_token_psi"].null or 0) and of["token_factor"] > 1
        assert of[RENAMED] == pytest.approx(of["psi_renamed"] - of["psi_as_is"], abs=1e-9)
        assert {f"random_weights_{name}" for name in ("psi", "same_token_psi", RENAMED)} <= set(of)
