"""Absorption and splitting: the formula by hand, and planted on toy dictionaries."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sparse_lens.comparisons.concepts.absorption import absorbed, absorption_scores, measure_absorption, split_units
from sparse_lens.comparisons.concepts.activation_sample import ActivationSample
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens, label_pair
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.dictionaries import IdentityDictionary

N, WIDTH = 12_800, 8
NAMES = ("general", "special", "other")
HIERARCHY = {"general": ("special",)}


def by_hand(latents, total, cosines, main):
    """SAEBench's rules for one token, decoder rows of norm 1."""
    given = [f * c for f, c in zip(latents, cosines, strict=True)]
    from_main = sum(given[u] for u in main)
    others = sorted((g for u, g in enumerate(given) if u not in main and cosines[u] >= 0.1 and g > 0), reverse=True)[:3]
    if from_main >= total or sum(others) / total < 0.4:
        return 0.0
    if from_main <= 0:
        return 1.0
    taken = min(sum(others), total - from_main)
    return taken / (taken + from_main)


def test_fraction_equals_the_rules_token_by_token():
    generator = np.random.default_rng(0)
    decoder = generator.normal(size=(30, 5))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    direction = decoder[0] + 0.3 * decoder[1]
    direction /= np.linalg.norm(direction)
    latents = generator.lognormal(size=(500, 30)) * (generator.random((500, 30)) < 0.2)
    total = (latents @ decoder @ direction) + generator.normal(0, 0.5, 500)
    latents, total = latents[abs(total) > 0.1], total[abs(total) > 0.1]
    assert (total < 0).sum() > 20
    fractions, _ = absorbed(latents, total, decoder, direction, np.array([0, 1]))
    expected = [by_hand(f, t, decoder @ direction, (0, 1)) for f, t in zip(latents, total, strict=True)]
    assert fractions == pytest.approx(expected) and 0 < np.mean(expected) < 1
    assert len({round(value, 6) for value in expected}) > 20


@pytest.mark.parametrize(
    ("latents", "fraction", "full"),
    [
        ([1.0, 0, 0], 0, False),  # the main unit gives all
        ([0.0, 1, 0], 1, True),  # another one does
        ([0.5, 0.5, 0], 0.5, False),
        ([0.7, 0.3, 0], 0, False),  # too little is taken over
        ([0.0, 0, 5], 0, False),  # what fires points elsewhere
    ],
)
def test_clear_cases(latents, fraction, full):
    decoder = np.array([[1.0, 0], [1, 0], [0, 1]])
    found = absorbed(np.array([latents]), np.array([1.0]), decoder, np.array([1.0, 0]), np.array([0]))
    assert found[0][0] == pytest.approx(fraction) and found[1][0] == full


@dataclass(frozen=True)
class Toy(IdentityDictionary):
    """Latent 0 is for the general concept, 1 for the special one; where that one absorbs, it writes both and silences latent 0."""

    absorbs: bool = True

    @property
    def W_dec(self):
        rows = torch.eye(WIDTH)
        rows[1, 0] = float(self.absorbs)
        return rows / rows.norm(dim=1, keepdim=True)

    def decode(self, f):
        return f @ self.W_dec

    def latents(self, labels):
        general, special = torch.as_tensor(labels[:, 0] == 1), torch.as_tensor(labels[:, 1] == 1)
        generator = torch.Generator().manual_seed(0)
        f = 0.2 * torch.rand(len(labels), WIDTH, generator=generator)
        f[:, 0] = 3.0 * (general & ~(special & self.absorbs))
        f[:, 1] = 3.0 * special
        return f


def toy_sample(toy, share):
    generator = np.random.default_rng(0)
    labels = np.zeros((N, 3), dtype=np.int8)
    labels[:, 0] = generator.random(N) < 0.5
    labels[:, 1] = labels[:, 0] * (generator.random(N) < share)
    labels[:, 2] = generator.random(N) < 0.3
    n = N // 32
    tokens = np.zeros((n, 32), dtype=np.int64)
    data = LabelledTokens(tokens, labels.reshape(n, 32, 3), NAMES, np.arange(n) % 10, np.arange(n), tuple("0123456789"), "made up")
    sample, latents = ActivationSample(*data.split()), toy.latents(labels)
    for part in data.split():
        sample.add(latents[part.places], toy.decode(latents)[part.places], toy.decode(latents)[part.places], part)
    return sample


def scores(*, absorbs, share):
    toy = Toy(WIDTH, "hook", absorbs=absorbs)
    return absorption_scores(toy_sample(toy, share), toy, HIERARCHY).per_concept["general"]


def test_a_rare_special_concept_absorbs_and_a_frequent_one_splits():
    found = scores(absorbs=True, share=0.03)
    assert found["split_units"].value == 1 and found["absorption_fraction.special"].value == 1
    assert found["absorption_fraction"].value == pytest.approx(0.03, abs=0.03) == found["full_absorption"].value
    assert scores(absorbs=True, share=0.5)["split_units"].value == 2


def test_nothing_is_absorbed_where_the_general_latent_does_its_work():
    found = scores(absorbs=False, share=0.3)
    assert found["split_units"].value == 1
    assert found["absorption_fraction"].value == found["absorption_fraction.special"].value == found["full_absorption"].value == 0


def test_absorbed_tokens_when_one_unit_stands_for_the_concept():
    toy = Toy(WIDTH, "hook")
    labels = np.zeros((100, 3), dtype=np.int8)
    labels[:, 0], labels[:50, 1] = 1, 1
    latents = toy.latents(labels).numpy().astype(float)
    decoder = toy.W_dec.numpy().astype(float)
    fractions, full = absorbed(latents, (latents @ decoder)[:, 0], decoder, np.eye(WIDTH)[0], np.array([0]))
    assert (fractions[:50] == 1).all() and (fractions[50:] == 0).all() and full[:50].all() and not full[50:].any()


def test_a_concept_no_probe_tells_is_not_measurable():
    toy = Toy(WIDTH, "hook")
    found = absorption_scores(toy_sample(toy, 0.3), toy, {"other": ("special",), "absent": ("special",)})
    assert (
        not found.results["split_units"].measurable
        and "tells other with an accuracy" in found.per_concept["other"]["split_units"].reason
    )
    assert set(found.per_concept) == {"other"}


@dataclass(frozen=True)
class Shifted(Toy):
    """The same with a bias along the general direction, and a skip."""

    def decode(self, f):
        return super().decode(f) + 50

    def skip(self, x):
        return 3 * x


def test_bias_and_skip_are_no_absorption():
    plain, shifted = Toy(WIDTH, "hook"), Shifted(WIDTH, "hook")
    sample = toy_sample(plain, 0.03)
    expected = absorption_scores(sample, plain, HIERARCHY)
    for rows in sample.rows:
        rows.values["written"] = rows.values["written"] + 50 + 3 * rows.values["read"]
    found = absorption_scores(sample, shifted, HIERARCHY)
    assert found.results["full_absorption"] == expected.results["full_absorption"]
    assert found.results["absorption_fraction"].value == pytest.approx(expected.results["absorption_fraction"].value, abs=1e-3)


def test_further_units_join_only_while_they_help():
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 2 == 0
    half = generator.random(600) < 0.5
    inputs = generator.random((600, 6)) * 0.1
    inputs[:, 2], inputs[:, 5] = 2.0 * (labels & half), 1.9 * (labels & ~half)
    found = split_units((inputs[:400], labels[:400]), (inputs[400:], labels[400:]))
    assert sorted(found) == [2, 5]
    inputs[:, 2] = 2.0 * labels
    assert split_units((inputs[:400], labels[:400]), (inputs[400:], labels[400:])).tolist() == [2]


@pytest.mark.slow
def test_shipped_pair():
    pair = ModelPair.open()
    hierarchies = {"in_brackets": ("bracket_depth_2", "innermost_parenthesis")}
    names = [*hierarchies, *hierarchies["in_brackets"]]
    data = label_pair(pair, "dense_matched", names=names, n_tokens=16_000, max_files=8)
    found = measure_absorption(pair.open_model("dense_matched"), pair.dictionaries()[0], *data.split(), hierarchies=hierarchies)
    result = found.per_concept["in_brackets"]["absorption_fraction"]
    assert 0 <= result.value <= 1 and result.n > 50
