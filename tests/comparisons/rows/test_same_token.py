"""The token held fixed: known answers on planted latents, a plain second count, and the shipped model's neurons."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.column_specs import mlp_neurons
from sparse_lens.comparisons.rows.same_token import SameTokenSums, frequent_groups, measure_same_token
from sparse_lens.comparisons.rows.superposition import measure_superposition
from sparse_lens.dictionaries import IdentityDictionary, harvest_activations


def results_of(latents: torch.Tensor, ids: np.ndarray, *, least: int = 1, batch: int = 97):
    sums = SameTokenSums.of(frequent_groups(ids, least), IdentityDictionary(latents.shape[1], "hook"))
    for part in latents.split(batch):
        sums.add(part)
    return sums.results()


def test_a_table_of_words_has_one_feature_a_token() -> None:
    """One latent for each of eight tokens: eight features in all, one where the token is known."""
    ids = np.arange(8).repeat(200)
    found = results_of(torch.eye(8)[ids], ids)
    assert found["same_token_features"].value == pytest.approx(1.0) and found["same_token_features"].n == 1600
    assert found["same_token_features"].null == pytest.approx(8.0, rel=0.05)  # dealt out at random, every group has all latents
    assert found["same_token_share"].value == pytest.approx(1 / found["same_token_features"].null)


def test_features_that_no_token_tells_are_all_left() -> None:
    """Every latent alike at every token: the token tells nothing, and the groups of random positions are the same."""
    ids = np.arange(8).repeat(200)
    found = results_of(torch.eye(16)[np.tile(np.arange(16), 100)], ids)
    assert found["same_token_features"].value == pytest.approx(16.0, rel=0.01)
    assert found["same_token_share"].value == pytest.approx(1.0, rel=0.1)


def test_rare_latents_are_missed_by_groups_of_any_kind() -> None:
    """500 latents that no token tells, eight positions a token: few are seen in a group, and the share says that this is chance."""
    rng, ids = np.random.default_rng(0), np.arange(100).repeat(8)
    found = results_of(torch.eye(500)[rng.integers(500, size=800)], ids)
    assert found["same_token_features"].value < 9
    assert found["same_token_share"].value == pytest.approx(1.0, abs=0.02) and found["same_token_share"].null == 1.0


def test_tokens_weigh_by_their_magnitude() -> None:
    """Two features at the one token, three times the size, and one at the other: log2 of the count is 3/4 bit."""
    ids = np.array([5] * 4 + [9] * 4)
    latents = torch.tensor([[3.0, 0, 0], [0, 3.0, 0]] * 2 + [[0, 0, 1.0]] * 4)
    assert results_of(latents, ids)["same_token_features"].value == pytest.approx(2**0.75)
    assert results_of(-latents, ids)["same_token_features"].value == pytest.approx(2**0.75)  # magnitudes


def test_rare_tokens_are_not_read() -> None:
    ids = np.array([3, 7, 3, 1, 7, 3, 7, 7])
    assert frequent_groups(ids, 3).tolist() == [0, 1, 0, -1, 1, 0, 1, 1]
    assert frequent_groups(ids, 4).tolist() == [-1, 0, -1, -1, 0, -1, 0, 0]
    latents = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    found = results_of(latents, ids, least=3, batch=3)
    entropies = []
    for token in (3, 7):
        p = latents[ids == token].sum(0)
        entropies.append((float(p.sum()), -float((p / p.sum() * (p / p.sum()).log()).sum())))
    mean = sum(weight * bits for weight, bits in entropies) / sum(weight for weight, _ in entropies)
    assert found["same_token_features"].value == pytest.approx(math.exp(mean)) and found["same_token_share"].n == 7


def test_on_the_shipped_models_neurons() -> None:
    """Second witness: the same number from all latents in memory, in a loop over token ids."""
    pair = ModelPair.open()
    bridge, windows = pair.open_model("sparse"), pair.windows_of("sparse")["heldout"][:24, :-1]
    neurons = mlp_neurons(bridge)[0]
    batches = np.array_split(windows, 3)
    found = measure_same_token(bridge, neurons, batches, least=64)
    (harvested,) = harvest_activations(bridge, [neurons.hook_in], [windows])
    latents, ids = harvested[neurons.hook_in].abs().double().numpy(), windows.reshape(-1)
    entropy = total = 0.0
    for token in np.unique(ids):
        if (ids == token).sum() >= 64:
            sums = latents[ids == token].sum(0)
            p = sums[sums > 0] / sums.sum()
            entropy, total = entropy - sums.sum() * float((p * np.log(p)).sum()), total + sums.sum()
    assert found["same_token_features"].value == pytest.approx(math.exp(entropy / total), rel=1e-5)
    padded = np.concatenate([windows[:, :100], np.full((len(windows), 27), -1)], axis=1)
    short = measure_same_token(bridge, neurons, np.array_split(windows[:, :100], 3), least=64)
    for name, result in measure_same_token(bridge, neurons, np.array_split(padded, 3), least=64).items():
        assert result.value == pytest.approx(short[name].value, rel=1e-6) and result.n == short[name].n
    whole = measure_superposition(bridge, neurons, batches)["effective_features"].value
    assert found["same_token_features"].value < found["same_token_features"].null < 1.05 * whole


def test_what_cannot_be_measured() -> None:
    pair = ModelPair.open()
    bridge = pair.open_model("sparse")
    neurons, windows = mlp_neurons(bridge)[0], pair.windows_of("sparse")["heldout"][:1, :-1]
    few = measure_same_token(bridge, neurons, [windows], least=1000)
    assert not any(result.measurable for result in few.values()) and "occurs 1000 times" in (few["same_token_share"].reason or "")
    assert not measure_same_token(bridge, neurons, [])["same_token_share"].measurable
    silent = results_of(torch.zeros(4, 3), np.zeros(4, np.int64))
    assert "no latent was active" in (silent["same_token_features"].reason or "")
