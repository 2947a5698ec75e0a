"""Predictability: planted dependencies, the null of independent features, controls, streams, and the shipped pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.predictability.feature_sums import PARTS, part_of_windows
from sparse_lens.comparisons.predictability.measuring import PredictabilitySums, predictability, predictability_table
from sparse_lens.comparisons.predictability.predicted_features import RIDGES, feature_predictability
from sparse_lens.dictionaries import IdentityDictionary, RotationDictionary, random_rotation
from sparse_lens.errors import ConfigError, DataError


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(n: int, seed: int) -> Tensor:
    """60 features; the first is the sum of the next two, the fourth the opposite of the fifth, but for a tenth of noise."""
    X, noise = drawn(n, 60, seed), drawn(n, 2, seed + 100)
    X[:, 0] = X[:, 1] + X[:, 2] + 0.1 * noise[:, 0]
    X[:, 3] = -X[:, 4] + 0.1 * noise[:, 1]
    return X


def windows(n: int, length: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5000, (n, length))


@dataclass(frozen=True)
class Rectified(IdentityDictionary):
    """Latents that are the positive parts, the `keep` largest of each token."""

    keep: int = 8

    def encode(self, x: Tensor) -> Tensor:
        cut = x.topk(self.keep, dim=-1).values[..., -1:]
        return torch.where(x >= cut, x.relu(), 0)


def filled(dictionary: Any, tokens: np.ndarray, latents: Tensor, sizes: Sequence[int] = (64,)) -> PredictabilitySums:
    """Sums of the windows, some at a time in turns of `sizes`."""
    sums, start = PredictabilitySums(dictionary), 0
    for step in range(len(tokens)):
        stop = start + sizes[step % len(sizes)]
        if start >= len(tokens):
            break
        sums.add(tokens[start:stop], latents[start:stop].flatten(0, 1))
        start = stop
    return sums


def test_planted_dependencies() -> None:
    """The reference's known answers at n = 4000, d = 60, lam = 50: .995, .989, .990 and a weight of -.982."""
    found = feature_predictability(planted(4000, 0), planted(4000, 1), lam=50.0)
    assert found.r2[0] == pytest.approx(0.995, abs=0.001)
    assert found.r2[1:3].tolist() == pytest.approx([0.989, 0.989], abs=0.002)
    assert found.r2[3:5].tolist() == pytest.approx([0.990, 0.990], abs=0.002)
    assert found.weights[4, 3] == pytest.approx(-0.982, abs=0.003)
    assert found.top_partners(3, 1) == [(4, float(found.weights[4, 3]))]
    assert {latent for latent, _ in found.top_partners(0, 2)} == {1, 2}
    assert found.anti_affinity[3] > 0.8 and found.anti_affinity[0] < 0.2
    assert found.partners[3] < 3
    assert float(found.r2[5:].abs().max()) < 0.03


@pytest.mark.parametrize("n", [200, 1000, 4000])
def test_the_null_of_independent_features(n: int) -> None:
    """In sample (d - 1) / (n - 1) (.2965, .0591, .0148), held out nothing."""
    found = feature_predictability(drawn(n, 60), drawn(4000, 60, 1), lam=1e-6)
    result = found.results["train_r2_mean"]
    assert result.null == pytest.approx(59 / (n - 1))
    assert result.value == pytest.approx(59 / (n - 1), rel=0.06)
    held_out = found.results["heldout_r2_mean"]
    assert held_out.value is not None and held_out.value <= 0


def test_the_weights_equal_a_regression_of_one_feature() -> None:
    """A plain witness: numpy's least squares with the ridge as more rows, scored on other data with the fitted means and scales."""
    train, test, lam = planted(500, 0).numpy(), planted(300, 1).numpy(), 7.0
    found = feature_predictability(torch.from_numpy(train), torch.from_numpy(test), lam=lam)
    mean, scale = train.mean(0), train.std(0)
    X, Y = (train - mean) / scale, (test - mean) / scale
    for j in (0, 3, 10):
        others = [i for i in range(60) if i != j]
        rows = np.vstack([X[:, others], np.sqrt(lam) * np.eye(59)])
        weights = np.linalg.lstsq(rows, np.append(X[:, j], np.zeros(59)), rcond=None)[0]
        error = ((Y[:, j] - Y[:, others] @ weights) ** 2).sum()
        assert float(found.r2[j]) == pytest.approx(1 - error / (Y[:, j] ** 2).sum(), abs=1e-10)


def test_always_on_features_inflate_what_is_not_centered() -> None:
    """Without centering two features with a large mean predict each other, with it they do not."""
    train, test = (drawn(2000, 5, seed) + 20 for seed in (0, 1))
    centered = feature_predictability(train, test, lam=1.0)
    raw = feature_predictability(train, test, lam=1.0, center=False, standardize=False)
    assert float(centered.r2.abs().max()) < 0.02 and float(raw.r2.min()) > 0.98


def test_the_ridge_is_one_of_the_grid() -> None:
    """Noise wants the largest, an exact dependence the least."""
    assert feature_predictability(drawn(100, 50), drawn(1000, 50, 1)).ridge == pytest.approx(RIDGES[-1])
    few = drawn(2000, 4)
    mixed = few @ drawn(4, 12, 5) + 1e-3 * drawn(2000, 12, 6)
    assert feature_predictability(mixed[:1000], mixed[1000:]).ridge == pytest.approx(RIDGES[0])


def test_a_constant_feature_in_memory_is_refused() -> None:
    """It has no scale."""
    data = drawn(50, 3)
    data[:, 1] = 2 / 3  # its mean is not exactly that
    with pytest.raises(DataError, match="1 features do not vary"):
        feature_predictability(data, data, lam=1.0)
    with pytest.raises(DataError, match="choose the ridge"):
        feature_predictability(drawn(50, 3), drawn(1, 3))
    for wrong in (drawn(50, 4), drawn(50, 2)):
        with pytest.raises(DataError, match="the same features"):
            feature_predictability(drawn(50, 3), wrong)
    broken = drawn(50, 3)
    broken[7, 0] = torch.nan
    for parts in ((broken, drawn(50, 3)), (drawn(50, 3), broken)):
        with pytest.raises(DataError, match="1 tokens of"):
            feature_predictability(*parts)


def test_windows_are_shared_out_by_what_is_in_them() -> None:
    """About 6 : 1 : 1, the same whatever the order or the type."""
    tokens = windows(800)
    parts = part_of_windows(tokens)
    assert np.bincount(parts, minlength=len(PARTS)) / 800 == pytest.approx([0.75, 0.125, 0.125], abs=0.04)
    assert part_of_windows(tokens[::-1]).tolist() == parts[::-1].tolist()
    assert part_of_windows(tokens.astype(np.int32)).tolist() == parts.tolist()


def test_the_stream_is_the_computation_in_memory_whatever_the_batches() -> None:
    """Sizes and order of batches change nothing; the parts are those of the windows' hashes."""
    tokens, latents = windows(120), planted(120 * 16, 0).float().view(120, 16, 60)
    dictionary = IdentityDictionary(60, "here")
    results = [
        filled(dictionary, tokens, latents).results(),
        filled(dictionary, tokens[::-1], latents.flip(0), (1, 7, 30)).results(),
    ]
    assert results[0].keys() == results[1].keys()
    for name, result in results[0].items():
        assert result.value == pytest.approx(results[1][name].value, abs=1e-6), name
    parts = [latents[torch.from_numpy(part_of_windows(tokens) == part)].flatten(0, 1).double() for part in range(3)]
    measured = filled(dictionary, tokens, latents).measure()
    lam = measured.ridge * len(parts[0])
    torch.testing.assert_close(measured.r2, feature_predictability(parts[0], parts[2], lam=lam).r2, rtol=1e-8, atol=1e-8)


def test_controls() -> None:
    """Shuffled features predict nothing and are the nulls; rotated, the few planted partners become many."""
    tokens, latents = windows(800), planted(800 * 16, 0).float().view(800, 16, 60)
    found = filled(IdentityDictionary(60, "here"), tokens, latents).results()
    assert found["shuffled_heldout_r2_mean"].value == pytest.approx(0, abs=0.02)
    assert found["heldout_r2_mean"].value == pytest.approx(5 * 0.99 / 60, abs=0.01)
    assert found["heldout_r2_mean"].null == found["shuffled_heldout_r2_mean"].value
    assert found["features"].value == found["alive_features"].value == found["latents"].value == 60
    rotated, first = found["rotated_partners"].value, found["partners"].value
    assert rotated is not None and first is not None and rotated > first


def test_a_topk_of_independent_features_is_told_by_its_own_null() -> None:
    """One latent that fires leaves less room for the others; the shuffled control puts that back, so both agree."""
    tokens, source = windows(1200), drawn(1200 * 16, 24).float().view(1200, 16, 24)
    found = filled(Rectified(24, "here", keep=4), tokens, source).results()
    value, null = found["anti_affinity_share"].value, found["anti_affinity_share"].null
    assert value is not None and null is not None and value > 0.9 and null > 0.9
    plain = filled(IdentityDictionary(24, "here"), tokens, source).results()["anti_affinity_share"].null
    assert plain is not None and plain < 0.7


def test_dead_and_rare_latents_are_left_out_and_counted() -> None:
    """A latent that is always zero, one that is constant, and one that fires once are not predicted, and not predictors."""
    tokens, latents = windows(100), drawn(1600, 10).float().view(100, 16, 10)
    latents[..., 3], latents[..., 4], latents[..., 5] = 0, 2, 0
    latents[0, 0, 5] = 1
    sums = filled(IdentityDictionary(10, "here"), tokens, latents)
    assert sums.alive().tolist() == [0, 1, 2, 6, 7, 8, 9]
    found = sums.results()
    assert found["features"].value == 7 and found["alive_features"].n == 10
    assert sums.measure(4).features.shape == (4,)
    with pytest.raises(DataError, match="7 of 10 features"):
        sums.measure(8)
    few = sums.results(8)
    assert not few["heldout_r2_mean"].measurable and few["heldout_r2_mean"].value is None
    assert "7 of 10 features are alive, 8 are needed" in str(few["partners"].reason)


def test_a_sample_too_small_for_rare_features_is_no_control() -> None:
    """One window of sixteen tokens is kept; nothing fires ten times in it, so the shuffled control and the nulls are missing."""
    tokens, latents = windows(400), (drawn(6400, 6) > 1.6).float().view(400, 16, 6)
    sums = PredictabilitySums(IdentityDictionary(6, "here"))
    sums.sample.most = 8
    sums.add(tokens, latents.flatten(0, 1))
    found = sums.results()
    assert len(sums.sample.windows) == 1 and found["heldout_r2_mean"].measurable and found["heldout_r2_mean"].null is None
    assert "in the sample to be shuffled" in str(found["shuffled_partners"].reason)


def test_a_wide_dictionary_is_measured_on_a_draw_of_its_latents() -> None:
    """The same draw for the same seed."""
    sums = PredictabilitySums(IdentityDictionary(50, "here"), most=20, seed=3)
    assert sums.chosen.shape == (20,) and sums.parts["fit"].products.shape == (20, 20)
    assert torch.equal(sums.chosen, PredictabilitySums(IdentityDictionary(50, "here"), most=20, seed=3).chosen)
    with pytest.raises(ConfigError):
        PredictabilitySums(IdentityDictionary(50, "here"), most=1)


def test_latents_that_are_not_finite_are_named() -> None:
    """The dictionary and how many."""
    sums = PredictabilitySums(IdentityDictionary(3, "there"))
    with pytest.raises(DataError, match="'neurons@there' gave 2 latents"):
        sums.add(windows(1, 2), torch.tensor([[1.0, torch.nan, 0], [torch.inf, 0, 0]]))


def test_no_tokens_are_not_measurable() -> None:
    """Nothing was seen, so nothing is alive."""
    found = PredictabilitySums(IdentityDictionary(3, "there")).results()
    assert not found["heldout_r2_mean"].measurable


def test_the_shipped_pair() -> None:
    """Columns get as many features as the narrowest has, and controls; a rotated basis is another code."""
    pair = ModelPair.open()
    bridge, hook = pair.open_model("dense_matched"), "blocks.0.mlp.hook_post"
    before = {name: value.clone() for name, value in bridge.state_dict().items()}
    batches = [pair.windows["reference"][start : start + 32] for start in range(0, 96, 32)]
    rotation = RotationDictionary(random_rotation(224), hook)
    columns: dict[str, Any] = {
        "neurons": (bridge, IdentityDictionary(224, hook)),
        "sae": (bridge, pair.dictionaries()[0]),
        "rotated": (bridge, rotation),
    }
    table = predictability_table(columns, batches)
    assert {table[name]["features"].value for name in columns} == {224.0}
    for column in (table[name] for name in columns):
        assert column["heldout_r2_mean"].null == pytest.approx(0, abs=0.05)
        assert column["random_weights_heldout_r2_mean"].measurable
    values = {name: table[name]["heldout_r2_mean"].value or 0 for name in columns}
    assert values["rotated"] > values["neurons"] > values["sae"] > 0
    everything, sae = columns["sae"][1], table["sae"]
    assert (sae["from_all_heldout_r2_mean"].value or 0) > (sae["heldout_r2_mean"].value or 0)
    assert sae["from_all_heldout_r2_mean"].value == predictability(bridge, everything, batches)["heldout_r2_mean"].value
    assert table["neurons"]["from_all_heldout_r2_mean"].value == values["neurons"]
    alone = predictability(bridge, columns["neurons"][1], batches)
    assert alone["heldout_r2_mean"].value == pytest.approx(values["neurons"], abs=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in bridge.state_dict().items())
