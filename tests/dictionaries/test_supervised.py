"""Supervised directions find planted concepts, the untrained SAE knows nothing, and every dictionary refuses another width."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_lens.dictionaries import (
    Dictionary,
    IdentityDictionary,
    RotationDictionary,
    TranscoderDictionary,
    random_rotation,
    supervise,
    untrained_sae,
)
from sparse_lens.errors import ConfigError, DataError

HOOK, NAMES = "blocks.0.mlp.hook_post", ("one", "two", "three")


def planted(n: int = 6000, noise: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
    """Activations that are sums of three orthogonal directions, labels that say which, and the directions."""
    generator = torch.Generator().manual_seed(0)
    directions = random_rotation(10, 1)[:3]
    labels = (torch.rand(n, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.05])).long()
    return labels.float() @ directions + 2 + noise * torch.randn(n, 10, generator=generator), labels, directions


@pytest.mark.parametrize("kind", ["diff_mean", "probe"])
def test_planted_concepts_are_found(kind: Any) -> None:
    x, labels, directions = planted()
    found = supervise(x[:4000], labels[:4000], HOOK, NAMES, kind=kind)
    assert isinstance(found, Dictionary) and found.n_latents == 3 and found.labels == NAMES and not found.exact
    latents = found.encode(x[4000:])
    assert torch.equal(latents > 0, labels[4000:] == 1)
    rebuilt = found.decode(latents)
    rest = (x[4000:] - rebuilt).pow(2).sum() / (x[4000:] - x[4000:].mean(0)).pow(2).sum()
    assert rest < 0.2
    if kind == "diff_mean":
        assert torch.allclose(found.weights["W_enc"].T, directions, atol=0.02)


def test_the_probe_sees_through_correlated_noise_where_means_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, 1, generator=generator) < 0.3).long()
    noise = 5 * torch.randn(4000, 1, generator=generator)
    x = torch.cat([labels + noise, noise], 1) + 0.1 * torch.randn(4000, 2, generator=generator)
    right = {
        kind: float(((supervise(x, labels, HOOK, ["one"], kind=kind, ridge=1e-9).encode(x) > 0) == (labels == 1)).double().mean())
        for kind in ("diff_mean", "probe")
    }
    assert right["probe"] > 0.99 and right["diff_mean"] < 0.7


def test_the_probe_is_the_least_squares_direction() -> None:
    x, labels, _ = planted(noise=0.5)
    found = supervise(x, labels, HOOK, NAMES, ridge=0.0)
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    expected = torch.linalg.lstsq(design, labels.double()).solution[:-1]
    assert torch.cosine_similarity(found.weights["W_enc"].double(), expected, dim=0).min() > 1 - 1e-5


def test_the_decoder_is_the_least_squares_map() -> None:
    x, labels, _ = planted(noise=0.5)
    found = supervise(x, labels, HOOK, NAMES)
    design = torch.cat([found.encode(x), torch.ones(len(x), 1)], 1).double()
    expected = torch.linalg.lstsq(design, x.double()).solution
    assert torch.allclose(torch.cat([found.W_dec, found.weights["b_dec"][None]]).double(), expected, atol=1e-4)


def test_unknown_labels_do_not_count_and_like_labels_do_no_harm() -> None:
    x, labels, _ = planted()
    labels[:, 2] = labels[:, 1]
    hidden = labels.clone()
    hidden[3000:] = -1
    known, half = (
        supervise(x, hidden, HOOK, NAMES, kind="diff_mean"),
        supervise(x[:3000], labels[:3000], HOOK, NAMES, kind="diff_mean"),
    )
    assert torch.equal(known.weights["W_enc"], half.weights["W_enc"]) and known.W_dec.isfinite().all()
    assert known.hash != half.hash != supervise(x[:3000], labels[:3000], HOOK, ["a", "b", "c"], kind="diff_mean").hash


def test_bad_labels_are_refused() -> None:
    x, labels, _ = planted(50)
    with pytest.raises(DataError, match=r"\[token label\]"):
        supervise(x, labels[:, :2], HOOK, NAMES)
    with pytest.raises(DataError, match="that no token has, or that none lacks: three"):
        supervise(x, labels * torch.tensor([1, 1, 0]), HOOK, NAMES)
    with pytest.raises(DataError, match="there are others"):
        supervise(x, labels * 2, HOOK, NAMES)
    with pytest.raises(DataError, match="500 of the activations"):
        supervise(x * math.nan, labels, HOOK, NAMES)
    with pytest.raises(ConfigError, match="ridge=-1"):
        supervise(x, labels, HOOK, NAMES, ridge=-1.0)


def test_an_untrained_sae_is_random_and_seeded() -> None:
    before = torch.get_rng_state()
    first, same, other = (untrained_sae(12, 48, 5, HOOK, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert first.hash == same.hash != other.hash and first.name == f"untrained48k5s0@{HOOK}"
    x = torch.randn(100, 12)
    assert isinstance(first, Dictionary) and int((first.encode(x) != 0).sum(1).max()) == 5
    assert torch.allclose(first.W_dec.norm(dim=1), torch.ones(48)) and torch.equal(first.weights["W_enc"], first.W_dec.T)
    centered = untrained_sae(12, 48, 5, HOOK, mean=torch.ones(12))
    assert torch.equal(centered.decode(torch.zeros(48)), torch.ones(12)) and centered.hash != first.hash
    with pytest.raises(ConfigError, match="no more than d_sae"):
        untrained_sae(12, 4, 5, HOOK)
    with pytest.raises(ConfigError, match=r"shape \(3,\)"):
        untrained_sae(12, 48, 5, HOOK, mean=torch.ones(3))


def test_every_dictionary_refuses_another_width() -> None:
    x, labels, _ = planted(50)
    weights = {"W_enc": torch.eye(10), "b_enc": torch.zeros(10), "W_dec": torch.eye(10), "b_dec": torch.zeros(10)}
    dictionaries = [
        IdentityDictionary(10, HOOK),
        RotationDictionary(random_rotation(10), HOOK, "components"),
        untrained_sae(10, 20, 3, HOOK),
        TranscoderDictionary(weights, HOOK, "blocks.0.hook_mlp_out"),
        supervise(x, labels, HOOK, NAMES),
    ]
    assert len({dictionary.name for dictionary in dictionaries}) == len({d.hash for d in dictionaries}) == 5
    for dictionary in dictionaries:
        with pytest.raises(DataError, match=r"reads 10 channels, .* has 11; is it of another model or hook"):
            dictionary.encode(torch.ones(2, 11))
