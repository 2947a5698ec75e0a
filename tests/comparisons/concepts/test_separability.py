"""Separability of known distributions, and independence of batches."""

import numpy as np
import pytest
import torch

from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens
from sparse_lens.comparisons.concepts.separability import EXCLUSIVE, SeparabilitySums, entropy, jensen_shannon
from sparse_lens.data.labels import CATALOGUE


def windows(labels, names):
    labels = np.asarray(labels, dtype=np.int8)
    n = len(labels) // 32
    zeros = np.zeros((n, 32), dtype=np.int64)
    return LabelledTokens(zeros, labels.reshape(n, 32, -1), tuple(names), zeros[:, 0], np.arange(n), ("file",), "made up")


def measured(latents, labels, names=("label",), batch=9):
    sums = SeparabilitySums(latents.shape[1], names)
    data, values = windows(labels, names), torch.as_tensor(latents, dtype=torch.float32)
    for part in data.batches(batch):
        sums.add(values[part.places], part)
    return sums.separability()


def test_perfect_and_constant_latents_on_a_balanced_label():
    labels = np.tile([[0], [1]], (3200, 1))
    found = measured(np.concatenate([3.0 * labels, np.full((6400, 1), 2.0), labels + 1.0], axis=1), labels)
    assert found.jensen_shannon[0] == pytest.approx([1, 0, 1]) and found.information[0] == pytest.approx([1, 0, 1])
    assert found.selectivity[0] == pytest.approx([1, 0, 1 / 3])
    assert found.results["js_separability_best"].value == pytest.approx(1)
    assert found.results["js_separability"].value == pytest.approx(2 / 3)


def test_independent_latents_are_at_their_null():
    generator = np.random.default_rng(0)
    labels = (generator.random((32_000, 2)) < [0.05, 0.4]).astype(np.int8)
    latents = generator.lognormal(size=(32_000, 60)) * (generator.random((32_000, 60)) < 0.2)
    found = measured(latents, labels, ("a", "b")).results
    for row in ("js_separability", "mutual_information", "selectivity"):
        assert found[row].value == pytest.approx(found[row].null, rel=0.15) and found[row].null > 0


def test_distance_of_three_classes_equals_the_definition():
    generator = np.random.default_rng(0)
    classes = [generator.integers(0, 50, (5, 1)).astype(float) for _ in range(3)]
    shares = [counts[:, 0] / counts.sum() for counts in classes]

    def bits(p):
        return -sum(x * np.log2(x) for x in p if x > 0)

    expected = np.sqrt((bits(sum(shares) / 3) - np.mean([bits(p) for p in shares])) / np.log2(3))
    assert jensen_shannon(classes)[0] == pytest.approx(expected)
    assert entropy(np.array([[1.0], [1], [2], [0]]))[0] == pytest.approx(1.5)


def test_classes_that_exclude_each_other():
    names = EXCLUSIVE["bracket"]
    generator = np.random.default_rng(0)
    kind = generator.integers(0, 4, 6400)
    labels = (kind[:, None] == np.arange(3)).astype(np.int8)
    perfect, blind = np.array([1.0, 8, 64, 0])[kind], generator.random(6400)
    found = measured(np.stack([perfect, blind], axis=1), labels, names).results["js_separability_bracket"]
    assert found.value == pytest.approx((1 + 2 * found.null) / 2, abs=0.08) and found.n == 2
    assert not measured(perfect[:, None], labels[:, :1], names[:1]).results["js_separability_bracket"].measurable
    assert all(name in CATALOGUE for members in EXCLUSIVE.values() for name in members)


def test_batches_do_not_matter_and_unknown_labels_count_nowhere():
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, -1], (6400, 1))
    latents = generator.lognormal(size=(6400, 4)) * (generator.random((6400, 4)) < 0.5)
    one, other = measured(latents, labels, batch=3), measured(latents, labels, batch=100)
    assert one.results.keys() == other.results.keys()
    assert all(
        one.results[name].value == pytest.approx(other.results[name].value) for name in one.results if one.results[name].measurable
    )
    scrambled = np.where(labels < 0, 1000.0, latents)
    changed = measured(np.minimum(scrambled, latents.max()), labels)
    assert changed.jensen_shannon == pytest.approx(one.jensen_shannon, abs=0.02)


def test_rare_labels_and_silent_latents_are_not_measurable():
    labels = np.zeros((6400, 1))
    labels[:100] = 1
    assert not measured(np.ones((6400, 2)), labels).results["js_separability"].measurable
    labels[:3000] = 1
    assert not measured(np.zeros((6400, 2)), labels).results["selectivity"].measurable
