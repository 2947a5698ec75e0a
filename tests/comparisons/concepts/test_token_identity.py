"""What is left of a latent where the token does not tell the label: a word's detector loses everything, the label's own nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_lens.comparisons.concepts.activation_sample import ActivationSample
from sparse_lens.comparisons.concepts.coverage import ConceptTraining
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens
from sparse_lens.comparisons.concepts.probes import probe_scores
from sparse_lens.comparisons.concepts.separability import SeparabilitySums
from sparse_lens.comparisons.concepts.token_identity import LabelColumns, with_ambiguous

CLOSED, TELLING, OPEN = 0, 1, 2


@pytest.fixture(scope="module")
def data() -> LabelledTokens:
    """Token 1 always has the label, token 0 never, token 2 every other time; a second label is known by its token everywhere."""
    generator = np.random.default_rng(0)
    tokens = generator.choice(3, size=12_800, p=[0.4, 0.2, 0.4])
    label = np.where(tokens == OPEN, generator.random(12_800) < 0.5, tokens == TELLING)
    labels = np.stack([label, tokens == TELLING], 1).astype(np.int8).reshape(400, 32, 2)
    files = np.arange(400) % 10
    return LabelledTokens(tokens.reshape(400, 32), labels, ("label", "word"), files, np.arange(400), tuple("0123456789"), "made up")


def latents_of(data: LabelledTokens) -> torch.Tensor:
    """A detector of the word, one of the label, and noise."""
    word, label = (data.tokens == TELLING).reshape(-1), data.labels[..., 0].reshape(-1)
    noise = np.random.default_rng(1).lognormal(size=len(word))
    return torch.from_numpy(np.stack([word, label, noise], 1)).float()


def test_labels_are_unknown_where_the_token_tells_them(data: LabelledTokens) -> None:
    train, test = data.split()
    both = with_ambiguous(train, test)
    for before, after in zip((train, test), both, strict=True):
        assert after.names == ("label", "word", "label_ambiguous")  # the word's own label is open nowhere
        assert (after.labels[..., :2] == before.labels).all()
        at = after.tokens == OPEN
        assert (after.labels[..., 2][at] == before.labels[..., 0][at]).all() and (after.labels[..., 2][~at] == -1).all()


@pytest.mark.parametrize(("kept", "lowest", "highest"), [((0, 2), 0.4, 0.6), ((0, 1, 2), 0.98, 1.0)])
def test_probes(data: LabelledTokens, kept: tuple[int, ...], lowest: float, highest: float) -> None:
    """Of the word's detector and noise nothing is left, though it told the label well everywhere; of the label's own all."""
    train, test = with_ambiguous(*data.split())
    sample = ActivationSample(train, test)
    for part in (train, test):
        values = latents_of(part)[:, list(kept)]
        sample.add(values, values, values, part)
    found = probe_scores(sample)
    assert found.results["probe_accuracy_k1"].value > 0.8 and set(found.per_label) == {"label", "word"}
    assert lowest <= found.results["probe_accuracy_k1_ambiguous"].value <= highest
    assert found.results["probe_labels_ambiguous"].value == 1
    monosemantic = found.results["fms_ambiguous"].value or 0.0
    assert monosemantic > 0.9 if 1 in kept else monosemantic < 0.4


def test_separability_and_units(data: LabelledTokens) -> None:
    both, _ = with_ambiguous(data, data)
    sums = SeparabilitySums(2, both.names)
    sums.add(latents_of(both)[:, [0, 2]], both)
    found = sums.separability()
    assert found.names == ("label", "word") and found.results["js_separability_best"].value > 0.5
    assert found.results["js_separability_best_ambiguous"].value < 0.1
    assert "js_separability_kind_ambiguous" not in found.results
    train, test = data.split()
    training = ConceptTraining(3, LabelColumns.of(train, test))
    training.add(latents_of(train), train)
    testing = training.test()
    testing.add(latents_of(test), test)
    scores = testing.scores(train, test)
    assert scores.results["units_with_a_concept"].value == pytest.approx(2 / 3)
    assert scores.results["units_with_a_concept_ambiguous"].value == pytest.approx(1 / 3)
    assert scores.gained.shape == scores.f1.shape and scores.gained[0, 1] == pytest.approx(1)
