"""Capability, reconstruction and activation: known answers, and sums that do not depend on batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.activation import ActivationSums, activation, decoder_geometry
from sparse_lens.comparisons.capability import active_parameters, capability
from sparse_lens.comparisons.reconstruction import ReconstructionSums, reconstruction, spliced_loss
from sparse_lens.dictionaries import IdentityDictionary, SAELensDictionary, TranscoderDictionary
from sparse_lens.errors import DataError
from sparse_lens.hooks import load

HOOK = "blocks.0.mlp.hook_post"
WINDOWS = ModelPair.open().windows["heldout"][:12]


@pytest.fixture(scope="module")
def bridge() -> Any:
    return load("python-dense-matched")


@pytest.fixture(scope="module")
def sae() -> Any:
    return ModelPair.open().dictionaries()[0]


def one_hot_sae(d: int = 4, **weights: torch.Tensor) -> SAELensDictionary:
    """ReLU of the channels themselves, `b_dec` 0."""
    own = {"W_enc": torch.eye(d), "b_enc": torch.zeros(d), "W_dec": torch.eye(d), "b_dec": torch.zeros(d)}
    return SAELensDictionary("standard", own | weights, "x")


def test_the_identity_reconstructs_all(bridge: Any) -> None:
    identity = IdentityDictionary(bridge.cfg.d_mlp, HOOK)
    found = reconstruction(bridge, identity, [WINDOWS[:, :-1]])
    assert found["explained_variance"].value == pytest.approx(1, abs=1e-12) and found["squared_error"].value == 0
    assert found["cosine"].value == pytest.approx(1) and found["norm_ratio"].value == found["reconstruction_bias"].value == 1
    losses = spliced_loss(bridge, [identity], WINDOWS)
    assert losses["loss_recovered_mean"].value == pytest.approx(1, abs=1e-5) and losses["kl_spliced"].value == pytest.approx(
        0, abs=1e-6
    )
    assert losses["loss"].value == pytest.approx(capability(bridge, WINDOWS)["loss"].value, abs=1e-5)


def test_the_mean_explains_nothing_and_a_shift_changes_nothing() -> None:
    x = torch.rand(500, 4) + 1
    constant = one_hot_sae(W_dec=torch.zeros(4, 4), b_dec=x.mean(0))
    sums = ReconstructionSums(constant)
    sums.add(x, x)
    assert sums.results()["explained_variance"].value == pytest.approx(0, abs=1e-6)
    plain = ReconstructionSums(one_hot_sae(W_dec=0.5 * torch.eye(4)))
    plain.add(x, x)
    shifted = ReconstructionSums(TranscoderDictionary({**plain.dictionary.weights, "b_dec": torch.full((4,), 5.0)}, "x", "y"))
    shifted.add(x, x + 5)
    assert shifted.results()["explained_variance"].value == pytest.approx(plain.results()["explained_variance"].value, abs=1e-6)


def test_batches_do_not_matter(bridge: Any, sae: Any) -> None:
    whole, parts = [WINDOWS[:, :-1]], np.array_split(WINDOWS[:, :-1], 5)
    for measure in (reconstruction, activation):
        one, other = (measure(bridge, sae, batches) for batches in (whole, parts))
        for name, result in one.items():
            assert other[name].value == (pytest.approx(result.value, rel=1e-6) if result.measurable else None), name


def test_explained_variance_agrees_with_saelens(bridge: Any, sae: Any) -> None:
    """SAELens' formula of 2026 (means over tokens, not a mean of ratios), written out here on one batch."""
    tokens = torch.from_numpy(WINDOWS[:, :-1])
    _, cache = bridge.run_with_cache(tokens, names_filter=HOOK)
    x = cache[HOOK].flatten(0, 1)
    with torch.no_grad():
        rebuilt = sae.decode(sae.encode(x))
    expected = 1 - (x - rebuilt).pow(2).sum(-1).mean() / (x - x.mean(0)).pow(2).sum(-1).mean()
    assert reconstruction(bridge, sae, [tokens])["explained_variance"].value == pytest.approx(float(expected), abs=1e-5)


def test_a_share_of_next_to_nothing_is_not_measurable(bridge: Any) -> None:
    """Ablating nothing costs nothing: a dictionary of a hook whose activation is its own mean."""
    found = spliced_loss(bridge, [], WINDOWS)
    assert not found["loss_recovered_zero"].measurable and "means nothing" in (found["loss_recovered_zero"].reason or "")
    assert found["loss_added_spliced"].value == pytest.approx(0, abs=1e-7)


def test_sparsity_by_hand() -> None:
    x = torch.tensor([[1.0, 0, 0, 0], [1.0, 2.0, 0, 0], [0, 4.0, 0, 0], [0, 0, -1.0, 0]])
    sums = ActivationSums(one_hot_sae())
    sums.add(x)
    found = sums.results()
    assert found["l0"].value == 1.0 and found["l0_share"].value == 0.25 and not found["dead"].measurable
    assert found["dense_above_10_percent"].value == 0.5
    # Two units fire half the time: one bit each for whether; the second also has two values, a bit for half its tokens.
    assert found["description_bits_per_token"].value == pytest.approx(1 + 1 + 0.5)


def test_a_gaussian_has_kurtosis_three_and_no_zeros() -> None:
    sums = ActivationSums(IdentityDictionary(3, "x"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        sums.add(torch.randn(12_000, 3, generator=generator))
    found = sums.results()
    assert found["kurtosis"].value == pytest.approx(3, abs=0.1) and found["dead"].value == 0 and found["l0"].value == 3


def test_decoder_rows() -> None:
    assert decoder_geometry(one_hot_sae())["nearest_row_cosine"].value == pytest.approx(0)
    repeated = one_hot_sae(W_dec=torch.eye(4)[[0, 0, 1, 1]])
    assert decoder_geometry(repeated)["nearest_row_cosine"].value == pytest.approx(1)


def test_latents_that_are_no_numbers_are_named() -> None:
    damaged = one_hot_sae(b_enc=torch.tensor([0.0, math.nan, 0, 0]))
    for sums in (ActivationSums(damaged), ReconstructionSums(damaged)):
        with pytest.raises(DataError, match="2 latents that are not finite"):
            sums.add(torch.ones(2, 4)) if isinstance(sums, ActivationSums) else sums.add(torch.ones(2, 4), torch.ones(2, 4))
        with pytest.raises(DataError, match="at least one batch"):
            sums.results()


def test_active_parameters_of_a_dense_model_are_all_but_the_tables(bridge: Any) -> None:
    core = bridge.original_model.core
    linear = sum(m.weight.numel() for m in bridge.original_model.modules() if isinstance(m, torch.nn.Linear))
    tables = {id(m): m for m in bridge.original_model.modules() if isinstance(m, torch.nn.Embedding)}.values()
    expected = linear + sum(m.weight.shape[1] for m in tables)
    found = active_parameters(bridge, WINDOWS[:2, :-1])
    assert core is not None and found.value == pytest.approx(expected, rel=0.02)  # GELU is exactly 0 now and then
    sparse = active_parameters(load("python-sparse"), WINDOWS[:2, :-1])
    assert sparse.value is not None and sparse.value < 90_000 < 185_134
