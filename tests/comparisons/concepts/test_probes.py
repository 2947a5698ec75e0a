"""Sparse probes, the tree behind FMS, and the sample they are fitted on."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm

from sparse_lens.comparisons.concepts.activation_sample import ActivationSample
from sparse_lens.comparisons.concepts.decision_tree import Cuts, levels_of, tree_accuracies
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens, label_pair
from sparse_lens.comparisons.concepts.linear_probe import fit_probe, top_units
from sparse_lens.comparisons.concepts.probes import measure_probes, probe_scores
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.errors import DataError

N = 12_800


def made_up(labels, tokens=None):
    labels = np.asarray(labels, dtype=np.int8)
    n = len(labels) // 32
    tokens = np.zeros(len(labels), dtype=np.int64) if tokens is None else tokens
    names = tuple(f"label_{label}" for label in range(labels.shape[1]))
    return LabelledTokens(
        tokens.reshape(n, 32), labels.reshape(n, 32, -1), names, np.arange(n) % 10, np.arange(n), tuple("0123456789"), "made up"
    )


def sampled(data, latents, read=None, *, order=None, batch=11):
    train, test = data.split()
    sample = ActivationSample(train, test)
    values = torch.as_tensor(latents, dtype=torch.float32)
    read = values if read is None else torch.as_tensor(read, dtype=torch.float32)
    for part in (train, test):
        windows = np.arange(len(part.tokens)) if order is None else order.permutation(len(part.tokens))
        for start in range(0, len(windows), batch):
            chosen = part.chosen(windows[start : start + batch])
            sample.add(values[chosen.places], read[chosen.places], read[chosen.places], chosen)
    return sample


@pytest.fixture(scope="module")
def labels():
    return (np.random.default_rng(0).random((N, 2)) < [0.5, 0.2]).astype(np.int8)


def noise(width, seed=1):
    generator = np.random.default_rng(seed)
    return generator.lognormal(size=(N, width)) * (generator.random((N, width)) < 0.3)


def test_probe_is_at_the_minimum_of_its_loss():
    generator = np.random.default_rng(0)
    inputs = generator.normal(3, [1, 10, 0.1, 0], (400, 4))
    labels = generator.random(400) < expit(inputs[:, 0] - 3 + 8 * (inputs[:, 2] - 3))
    probe = fit_probe(inputs, labels)
    scaled = (inputs - inputs.mean(0)) / np.where(inputs.std(0) > 1e-9, inputs.std(0), 1)
    weight, bias = probe.weight * inputs.std(0), probe.bias + probe.weight @ inputs.mean(0)
    error = expit(scaled @ weight + bias) - labels
    assert np.abs(scaled.T @ error + weight).max() < 1e-2 and abs(error.sum()) < 1e-2 and probe.weight[3] == 0
    assert (probe.says_yes(inputs) == labels).mean() > 0.65


def test_probe_on_mostly_silent_latents_is_that_on_the_same_numbers_moved():
    generator = np.random.default_rng(0)
    inputs = generator.lognormal(size=(400, 30)) * (generator.random((400, 30)) < 0.1)
    labels = inputs[:, :5].sum(1) + 0.5 * generator.random(400) > 0.6
    probe, moved = fit_probe(inputs, labels), fit_probe(inputs + 1, labels)
    np.testing.assert_allclose(probe.weight, moved.weight, atol=1e-6)
    assert probe.bias == pytest.approx(moved.bias + moved.weight.sum(), abs=1e-5)


def test_units_are_chosen_by_difference_of_means():
    inputs = np.array([[1.0, 5, 0], [1, 6, 4], [0, 1, 1], [0, 1, 2]])
    assert top_units(inputs, np.array([True, True, False, False]), 2).tolist() == [1, 0]


def test_one_latent_for_a_label(labels):
    latents = noise(30)
    latents[:, 7] = 2.0 * labels[:, 0]
    latents[:, 3] = 0.5 * labels[:, 1]
    found = probe_scores(sampled(made_up(labels), latents)).results
    assert found["probe_accuracy_k1"].value == 1 and found["probe_accuracy_all"].value == pytest.approx(1, abs=0.02)
    assert found["probe_accuracy_dense"].value == found["probe_accuracy_all"].value
    assert found["probe_gap_k16"].value == pytest.approx(0, abs=0.02)
    assert found["fms"].value == pytest.approx(1, abs=0.06) and found["fms_5"].value == pytest.approx(1, abs=0.06)
    assert found["probe_accuracy_k1"].null == pytest.approx(0.5, abs=0.01)  # all tokens are the same one


def test_a_label_spread_over_latents(labels):
    """Twenty latents of which each tells a little: k of them tell it as well as a normal variable with means sqrt(k) 0.7 apart."""
    latents = np.random.default_rng(2).normal(size=(N, 20)) + 0.7 * labels[:, :1]
    found = probe_scores(sampled(made_up(labels[:, :1]), latents)).results
    for k in (1, 2, 5, 16):
        assert found[f"probe_accuracy_k{k}"].value == pytest.approx(norm.cdf(0.35 * k**0.5), abs=0.06)
    assert found["probe_gap_k16"].value == found["probe_accuracy_k16"].value - found["probe_accuracy_k1"].value > 0.2
    assert found["fms"].value < 0.5 < found["probe_accuracy_dense"].value


def test_null_is_the_table_of_tokens(labels):
    found = probe_scores(sampled(made_up(labels[:, :1], labels[:, 0].astype(np.int64)), noise(4))).results
    assert found["probe_accuracy_k1"].null == 1 and found["probe_accuracy_k1"].value < 0.7


def test_batches_do_not_matter(labels):
    latents = noise(5) + labels[:, :1]
    one = probe_scores(sampled(made_up(labels), latents))
    other = probe_scores(sampled(made_up(labels), latents, order=np.random.default_rng(3), batch=64))
    assert one.results == other.results and one.per_label == other.per_label


def test_sample_is_balanced_bounded_and_whole(labels):
    data = made_up(labels)
    sample = sampled(data, np.arange(N)[:, None] * np.ones((1, 2)))
    (train, has), (test, test_has) = sample.examples(1, "latents")
    assert has.sum() == 500 and len(has) == 1000 and test_has.sum() == 200 and len(test_has) == 400
    for vectors, own in ((train, has), (test, test_has)):
        assert np.array_equal(labels[vectors[:, 0].astype(int), 1] == 1, own)
    files = (np.arange(N) // 32) % 10
    assert not set(files[train[:, 0].astype(int)]) & set(files[test[:, 0].astype(int)])
    incomplete = ActivationSample(*data.split())
    with pytest.raises(DataError, match="tokens of the sample are missing"):
        incomplete.examples(0, "latents")


def test_rare_labels_are_left_out():
    labels = np.zeros((N, 1), dtype=np.int8)
    labels[:300] = 1
    found = probe_scores(sampled(made_up(labels), noise(3)))
    assert not found.per_label and not found.results["fms"].measurable


@pytest.mark.parametrize("rows", [np.arange(60), np.arange(7, 31), np.arange(0)])
def test_cuts_equal_brute_force(rows):
    """Of all rows and of some, with levels in no order and repeated."""
    generator = np.random.default_rng(0)
    inputs, labels = generator.integers(0, 4, (60, 3)).astype(float), generator.random(60) < 0.4
    levels = np.array([[0.0, 2, 1], [3, 2, -1], [1, 0, 5], [2, 1, 1]])

    def gini(with_label):
        return 2 * with_label.sum() * (1 - with_label.mean()) if len(with_label) else 0

    cuts = Cuts.of(inputs, levels)
    gains = cuts.gains(rows, labels)
    some, of_them = inputs[rows], labels[rows]
    for index, unit in itertools.product(range(4), range(3)):
        above = some[:, unit] > levels[index, unit]
        assert gains[index, unit] == pytest.approx(gini(of_them) - gini(of_them[above]) - gini(of_them[~above]))
    split = cuts.best(gains)
    assert split.gain == gains.max() and split.level in levels[:, split.unit]


def test_levels_lie_among_what_fires():
    inputs = np.array([[0.0, 0, -1], [0, 0, 1], [4, 0, 2], [8, 0, 3]])
    levels = levels_of(inputs)
    assert levels.shape == (16, 3) and (levels[0] == 0).all() and (levels[1:, 0] >= 4).all() and (levels[:, 1] == 0).all()
    assert levels[1, 2] < 0


def test_tree_grows_where_one_cut_is_not_enough():
    generator = np.random.default_rng(0)
    inputs = generator.random((2000, 3))
    labels = (inputs[:, 0] > 0.5) & (inputs[:, 1] > 0.5)
    found = tree_accuracies((inputs[:1000], labels[:1000]), (inputs[1000:], labels[1000:]), n_removed=2, n_grown=3)
    assert found.first == pytest.approx(0.75, abs=0.04) and found.grown[0] > 0.95
    assert found.without[0] == pytest.approx(0.75, abs=0.04) and found.without[1] == pytest.approx(0.75, abs=0.04)
    assert len(found.grown) == 3


@pytest.mark.slow
def test_shipped_pair():
    pair = ModelPair.open()
    data = label_pair(pair, "dense_matched", names=["in_string", "in_brackets"], n_tokens=16_000, max_files=8)
    found = measure_probes(pair.open_model("dense_matched"), pair.dictionaries()[0], *data.split()).results
    assert 0.5 < found["probe_accuracy_k1"].value <= found["probe_accuracy_dense"].value
