"""Superposition has known answers on toys, and on the shipped models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.rows.sparsity_measures import (
    dimensionality,
    effective_number,
    effective_rank_amplitude,
    effective_rank_energy,
    hoyer,
    interference,
    participation_ratio,
)
from sparse_lens.comparisons.rows.superposition import (
    SuperpositionSums,
    decoder_geometry,
    decoder_similarity,
    measure_superposition,
)
from sparse_lens.dictionaries import IdentityDictionary, SAELensDictionary, random_rotation
from sparse_lens.errors import DataError

HALF = torch.eye(8).repeat_interleave(2, 0) * torch.tensor([1.0, -1.0]).repeat(8)[:, None]
"""Sixteen antipodal directions in eight dimensions."""


def unit_rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def planted(W: Tensor, n_tokens: int = 40_000, seed: int = 0) -> tuple[SAELensDictionary, Tensor]:
    """One direction of `W` a token, of random size, and the TopK dictionary that reads it off without error."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(W), (n_tokens,), generator=generator)
    size = 0.5 + torch.rand(n_tokens, generator=generator)
    zeros = {"b_enc": torch.zeros(len(W)), "b_dec": torch.zeros(W.shape[1])}
    return SAELensDictionary("topk", {"W_enc": W.T.contiguous(), "W_dec": W, **zeros}, "hook", k=1), W[which] * size[:, None]


def results_of(dictionary, activations: Tensor, batch: int = 7_000):
    sums = SuperpositionSums(dictionary)
    for part in activations.split(batch):
        sums.add(part, part)
    return sums.results()


def test_effective_numbers_of_known_lists() -> None:
    one_hot, constant = torch.eye(10)[3], torch.ones(10)
    some = torch.cat([torch.ones(40), torch.zeros(360)])
    for measure in (effective_number, effective_rank_amplitude, effective_rank_energy, participation_ratio):
        assert float(measure(one_hot)) == pytest.approx(1)
        assert float(measure(constant)) == pytest.approx(10)
        assert float(measure(some)) == pytest.approx(40)
        assert torch.equal(measure(torch.stack([one_hot, constant])), torch.stack([measure(one_hot), measure(constant)]))
    assert float(hoyer(one_hot)) == pytest.approx(1) and float(hoyer(constant)) == pytest.approx(0)
    assert float(hoyer(some)) == pytest.approx(0.7198, abs=5e-5)  # the definitions' own table


def test_the_two_effective_ranks_differ_as_defined() -> None:
    """Singular values 3, 1: p is (3/4, 1/4) by amplitude, (9/10, 1/10) by energy."""
    values = torch.tensor([3.0, 1.0])
    entropies = [-sum(p * math.log(p) for p in shares) for shares in ((0.75, 0.25), (0.9, 0.1))]
    assert float(effective_rank_amplitude(values)) == pytest.approx(math.exp(entropies[0]))
    assert float(effective_rank_energy(values)) == pytest.approx(math.exp(entropies[1]))
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200, 400, generator=generator)
    assert float(effective_rank_energy(normal).mean() / 400) == pytest.approx(0.486, abs=0.01)
    assert float(effective_rank_amplitude(normal).mean() / 400) == pytest.approx(0.752, abs=0.01)
    with pytest.raises(DataError, match="not negative, got -1"):
        effective_number(torch.tensor([1.0, -1.0]))


def test_dimensionality_of_toys() -> None:
    assert torch.allclose(dimensionality(torch.eye(16)), torch.ones(16).double())
    assert torch.allclose(dimensionality(HALF), torch.full((16,), 0.5).double())
    assert torch.allclose(interference(HALF), torch.ones(16).double())
    assert torch.allclose(interference(torch.eye(16)), torch.zeros(16).double())
    assert float(dimensionality(unit_rows(64, 16)).sum()) == pytest.approx(13.06, abs=0.5)  # of one drawing there: 13.06


def test_dimensionality_is_capacity_by_its_own_definition() -> None:
    W = unit_rows(20, 6) * torch.linspace(0.1, 3, 20)[:, None]
    squares = (W.double() @ W.double().T).square()
    assert torch.allclose(dimensionality(W), squares.diagonal() / squares.sum(1))
    directions = W.double() / W.double().norm(dim=1, keepdim=True)
    crossing = (directions @ W.double().T).square()
    assert torch.allclose(interference(W), crossing.sum(1) - crossing.diagonal())


def test_planted_superposition_and_its_disentangled_twin() -> None:
    crowded = results_of(*planted(unit_rows(64, 16)))
    assert crowded["effective_features"].value == pytest.approx(63.9, abs=0.1)
    assert crowded["psi"].value == pytest.approx(3.99, abs=0.01)
    sums = SuperpositionSums(planted(unit_rows(64, 16))[0], neurons=32)  # counted for other channels than it writes to
    sums.add(*(planted(unit_rows(64, 16))[1],) * 2)
    assert sums.results()["psi"].value == pytest.approx(crowded["psi"].value / 2)
    apart = results_of(*planted(random_rotation(16)))
    assert apart["psi"].value == pytest.approx(1, abs=0.005)
    assert apart["latent_hoyer"].value == pytest.approx(1)
    # one of 16 is on: the covariance is E s^2 / 16 times the unit matrix, less the mean's part along one direction
    along, rest = 13 / 12 / 16 - 1 / 16, 13 / 12 / 16
    expected = (15 * rest + along) ** 2 / (15 * rest**2 + along**2)
    assert apart["activation_participation_ratio"].value == pytest.approx(expected, rel=0.002)


def test_sums_depend_on_no_batches() -> None:
    dictionary, activations = planted(unit_rows(64, 16), 1000)
    whole, parts = results_of(dictionary, activations, 1000), results_of(dictionary, activations.flip(0), 33)
    assert {name: result.value for name, result in parts.items()} == pytest.approx(
        {name: result.value for name, result in whole.items()}, rel=1e-9
    )


def test_spectrum_is_that_of_the_data() -> None:
    """Second witness: singular values of the centered activations."""
    activations = torch.randn(500, 12, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.linspace(0.1, 2, 12)) + 5
    results = results_of(IdentityDictionary(12, "hook"), activations)
    values = torch.linalg.svdvals(activations.double() - activations.double().mean(0))
    for name, expected in (
        ("participation_ratio", values.square().sum() ** 2 / (values**4).sum()),
        ("effective_rank_amplitude", effective_rank_amplitude(values)),
        ("effective_rank_energy", effective_rank_energy(values)),
    ):
        assert results[f"activation_{name}"].value == pytest.approx(float(expected), rel=1e-4)


def test_what_cannot_be_measured_is_no_zero() -> None:
    silent = results_of(IdentityDictionary(3, "hook"), torch.zeros(5, 3))
    assert not any(result.measurable for result in silent.values())
    assert not results_of(IdentityDictionary(3, "hook"), torch.ones(5, 3))["activation_participation_ratio"].measurable
    assert not any(result.measurable for result in decoder_geometry(torch.zeros(4, 3)).values())
    with pytest.raises(DataError, match="at least one batch"):
        SuperpositionSums(IdentityDictionary(3, "hook")).results()


@dataclass(frozen=True)
class Broken(IdentityDictionary):
    def encode(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.nan, x)


def test_latents_that_are_no_numbers_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"'neurons@hook' gave 2 latents"):
        SuperpositionSums(Broken(3, "hook")).add(torch.tensor([[1.0, 1.0, 0.0]]), torch.zeros(1, 3))
    with pytest.raises(DataError, match="1 entries of the decoder"):
        decoder_geometry(torch.tensor([[1.0, torch.inf]]))


def test_geometry_of_known_decoders() -> None:
    orthogonal = decoder_geometry(torch.cat([random_rotation(8), torch.zeros(3, 8)]))
    assert orthogonal["dimensionality"].value == pytest.approx(1) and orthogonal["dimensionality"].n == 8
    assert orthogonal["capacity_sum"].value == pytest.approx(8)
    assert orthogonal["features_per_dimension"].value == pytest.approx(1)
    one_hot = decoder_geometry(HALF)
    assert one_hot["decoder_participation"].value == pytest.approx(1) and one_hot["decoder_hoyer"].value == pytest.approx(1)
    assert one_hot["features_per_dimension"].value == pytest.approx(2)
    null = decoder_geometry(unit_rows(64, 16, seed=3))
    for name in ("dimensionality", "interference", "decoder_participation", "decoder_hoyer"):
        assert null[name].value == pytest.approx(null[name].null, rel=0.1)


def test_similarity_of_decoders() -> None:
    W = unit_rows(64, 16)
    same = decoder_similarity(W, -W[torch.randperm(64, generator=torch.Generator().manual_seed(0))])
    assert same["mmcs"].value == pytest.approx(1) and same["mcc"].value == pytest.approx(1)
    assert same["mmcs"].null == pytest.approx(0.60, abs=0.03)
    other = decoder_similarity(W, unit_rows(64, 16, seed=9))
    assert other["mmcs"].value == pytest.approx(other["mmcs"].null, abs=0.02)
    assert other["mcc"].value == pytest.approx(other["mcc"].null, abs=0.02)
    with pytest.raises(DataError, match="16 and 8 channels"):
        decoder_similarity(W, W[:, :8])


def test_a_dictionary_of_the_shipped_model() -> None:
    pair = ModelPair.open()
    bridge, (sae, _) = pair.open_model("dense_matched"), pair.dictionaries()
    batches = [pair.windows["reference"][start : start + 32] for start in (0, 32)]
    results = measure_superposition(bridge, sae, batches)
    neurons = measure_superposition(bridge, IdentityDictionary(224, sae.hook_in), batches)
    assert neurons["psi"].value < 1 < results["psi"].value < 1024 / 224
    for metric in ("activation_participation_ratio", "activation_effective_rank_energy"):
        assert results[metric].value == pytest.approx(neurons[metric].value)
    assert neurons["dimensionality"].value == pytest.approx(1) and neurons["capacity_sum"].value == pytest.approx(224)
