"""Concept scores have known answers, equal a plain form, and do not depend on batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparse_lens.benchmarks.concepts import score_made_up
from sparse_lens.comparisons.concepts.coverage import ConceptTraining, concepts_and_units, implications, measure_concepts
from sparse_lens.comparisons.concepts.label_histogram import LabelHistogram
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens, label_pair
from sparse_lens.comparisons.concepts.scores import SHARES, areas, best_thresholds, f1_score, matthews, scores_at
from sparse_lens.comparisons.concepts.token_identity import LabelColumns, best_lookup, label_ambiguity, label_entropy
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.dictionaries import IdentityDictionary
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.kernels.histograms import grid_value

CONTEXT = 32


def made_up(labels, tokens=None, names=None):
    """Windows of 32 tokens in ten files with these labels `[token label]`."""
    labels = np.asarray(labels, dtype=np.int8)
    n = len(labels) // CONTEXT
    tokens = np.zeros(len(labels), dtype=np.int64) if tokens is None else tokens
    names = names or tuple(f"label_{label}" for label in range(labels.shape[1]))
    return LabelledTokens(
        tokens[: n * CONTEXT].reshape(n, CONTEXT),
        labels[: n * CONTEXT].reshape(n, CONTEXT, -1),
        tuple(names),
        np.arange(n) % 10,
        np.arange(n),
        tuple(map(str, range(10))),
        "made up",
    )


def scored(data, latents, *, batch=7, order=None, magnitude=False, test_share=0.3):
    """Concept scores of `latents [token latent]`, which lie beside the data's tokens."""
    train, test = data.split(test_share=test_share)
    columns = LabelColumns.of(train, test)
    training = ConceptTraining(latents.shape[1], columns, magnitude=magnitude)
    values = torch.as_tensor(latents, dtype=torch.float32)

    def feed(into, part):
        windows = np.arange(len(part.tokens)) if order is None else order.permutation(len(part.tokens))
        for start in range(0, len(windows), batch):
            chosen = part.chosen(windows[start : start + batch])
            into.add(values[chosen.places], chosen)

    feed(training, train)
    testing = training.test()
    feed(testing, test)
    return testing.scores(train, test)


@pytest.fixture(scope="module")
def random_data():
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 20, 12_800)
    labels = (generator.random((12_800, 5)) < [0.5, 0.3, 0.2, 0.4, 0.6]).astype(np.int8)
    labels[:, 1] = tokens < 6  # told by the token
    labels[:, 2] = np.where(tokens < 10, labels[:, 2], 0)  # open for half of the tokens
    labels[generator.random(12_800) < 0.1, 3] = -1
    latents = generator.lognormal(size=(12_800, 12)) * (generator.random((12_800, 12)) < 0.4)
    latents[:, 0] += 3 * (labels[:, 0] == 1)
    return made_up(labels, tokens), latents


def test_planted_concept_is_found_at_f1_one():
    generator = np.random.default_rng(0)
    labels = (generator.random((6400, 3)) < [0.5, 0.2, 0.3]).astype(np.int8)
    latents = generator.random((6400, 9)) * (generator.random((6400, 9)) < 0.1)
    latents[:, 4], latents[:, 6], latents[:, 8] = 2.5 * labels[:, 0], 0.5 * labels[:, 1], 7 * labels[:, 2]
    found = scored(made_up(labels), latents)
    for row in ("coverage_f1", "coverage_mcc", "coverage_auroc", "coverage_f1_balanced", "high_precision_f1"):
        assert found.results[row].value == pytest.approx(1)
    assert found.results["units_per_concept"].value == 1 and found.results["concepts_per_unit"].value == 1
    assert found.f1.argmax(1).tolist() == [4, 6, 8] and found.f1.shape == (3, 9)
    assert found.results["units_with_a_concept"].value == pytest.approx(3 / 9)


def test_independent_latent_has_no_area():
    generator = np.random.default_rng(0)
    histogram = LabelHistogram(3, 1)
    histogram.add(torch.as_tensor(generator.random((40_000, 3))), (generator.random((40_000, 1)) < 0.3).astype(np.int8))
    assert areas(histogram)[:, 0] == pytest.approx(0.5, abs=0.01)


def test_area_is_the_chance_of_being_stronger():
    generator = np.random.default_rng(0)
    values = generator.choice([0.0, 0.5, 1, 2, 4], (400, 2))
    labels = generator.choice([0, 1, -1], (400, 2)).astype(np.int8)
    histogram = LabelHistogram(2, 2)
    histogram.add(torch.as_tensor(values), labels)
    for latent in range(2):
        for label in range(2):
            yes, no = (values[labels[:, label] == wanted, latent] for wanted in (1, 0))
            wins = (yes[:, None] > no).mean() + (yes[:, None] == no).mean() / 2
            assert areas(histogram)[latent, label] == pytest.approx(wins)


def test_thresholds_equal_the_plain_form(random_data):
    """Counts at the ten thresholds by comparison of every value; and they lie where they should."""
    data, latents = random_data
    labels = data.labels.reshape(-1, 5)
    histogram = LabelHistogram(12, 5)
    histogram.add(torch.as_tensor(latents, dtype=torch.float32), labels)
    found = best_thresholds(histogram, precision=0.95, least_fired=10)
    values = latents.astype(np.float32)
    slots = histogram.slots_of_shares(SHARES)
    cuts = np.where(SHARES > 0, grid_value(histogram.top[:, None] - slots), 0)
    assert np.abs(cuts[:, 1:] / (SHARES[1:] * values.max(0)[:, None]) - 1).max() <= 1 / 30
    known, positive = (labels >= 0).sum(0), (labels == 1).sum(0)
    for latent in range(12):
        fires = np.where(SHARES > 0, values[:, latent, None] >= cuts[latent], values[:, latent, None] > 0)  # [token share]
        hits, fired = fires.T @ (labels == 1).astype(int), fires.T @ (labels >= 0).astype(int)
        for name, score in (("f1", f1_score), ("mcc", matthews)):
            assert np.allclose(score(hits, fired, positive, known).max(0), found.scores[name][latent], atol=1e-6)
        exact = values[:, latent, None] > SHARES * values[:, latent].max()
        plain = f1_score(exact.T @ (labels == 1).astype(int), exact.T @ (labels >= 0).astype(int), positive, known).max(0)
        assert np.abs(plain - found.scores["f1"][latent]).max() < 0.02
    again = scores_at(histogram, found.slots)
    assert all(np.allclose(again[name], found.scores[name]) for name in again)


def test_scores_by_hand():
    hits, fired, positives, known = (np.array(value) for value in ([6, 0], [8, 0], [10, 10], [20, 20]))
    assert f1_score(hits, fired, positives, known) == pytest.approx([2 * 6 / 18, 0])
    assert matthews(hits, fired, positives, known) == pytest.approx([(6 * 8 - 2 * 4) / np.sqrt(8 * 12 * 10 * 10), 0])


def test_results_do_not_depend_on_batches(random_data):
    data, latents = random_data
    one, other = scored(data, latents, batch=7), scored(data, latents, batch=64, order=np.random.default_rng(3))
    assert np.array_equal(one.f1, other.f1) and one.results == other.results and one.per_label == other.per_label


def test_token_control_and_open_positions(random_data):
    data, latents = random_data
    found = scored(data, latents)
    assert found.per_label["label_1"]["f1"].null == 1 and "f1_ambiguous" not in found.per_label["label_1"]
    assert found.per_label["label_2"]["f1_ambiguous"].value is not None
    ambiguity = label_ambiguity(data)
    assert ambiguity[1] == 0 and ambiguity[0] > 0.9 and 0.3 < ambiguity[2] < 0.5
    over = found.results["coverage_f1"].value - found.results["coverage_f1"].null
    assert found.results["coverage_f1_over_tokens"].value == pytest.approx(over, abs=1e-6)


def test_open_positions_are_those_whose_token_leaves_the_label_open(random_data):
    data, _ = random_data
    train, test = data.split()
    columns = LabelColumns.of(train, test)
    labels = data.labels.reshape(-1, 5)
    expanded = columns.expand(data.tokens.reshape(-1), labels)
    column = int(np.flatnonzero(columns.restricted & (columns.labels == 2))[0])
    tokens = data.tokens.reshape(-1)
    assert (expanded[tokens >= 10, column] == -1).all() and np.array_equal(expanded[tokens < 10, column], labels[tokens < 10, 2])
    assert np.array_equal(expanded[:, columns.plain], labels[:, columns.labels[columns.plain]])


def test_best_table_of_tokens_is_the_best_of_all_subsets():
    generator = np.random.default_rng(0)
    known = generator.integers(1, 30, (8, 3))
    positives = generator.binomial(known, generator.random((8, 3)))
    found = best_lookup(positives, known)
    for column in range(3):
        subsets = (np.arange(256)[:, None] >> np.arange(8)) & 1
        every = 2 * subsets @ positives[:, column] / (subsets @ known[:, column] + positives[:, column].sum())
        chosen = found[:, column]
        own = 2 * positives[chosen, column].sum() / (known[chosen, column].sum() + positives[:, column].sum())
        assert own == pytest.approx(every.max())


def test_entropy_of_labels_given_tokens():
    bits = label_entropy(np.array([[0], [5], [1], [0]]), np.array([[4], [10], [4], [0]]))
    assert bits[:, 0] == pytest.approx([0, 1, 0.811278, 0], abs=1e-6)


def test_rare_labels_are_not_measurable():
    labels = np.zeros((6400, 2), dtype=np.int8)
    labels[::2, 0], labels[:250, 1] = 1, 1
    found = scored(made_up(labels), np.random.default_rng(0).random((6400, 3)))
    assert not found.per_label["label_1"]["f1"].measurable and found.names == ("label_0",)
    assert found.results["measured_labels"].value == 1
    nothing = scored(made_up(labels[:, 1:]), np.random.default_rng(0).random((6400, 3)))
    assert all(not row.measurable for name, row in nothing.results.items() if name != "measured_labels")


def test_negative_strengths_count_by_magnitude_only():
    generator = np.random.default_rng(0)
    labels = (generator.random((6400, 1)) < 0.3).astype(np.int8)
    latents = np.concatenate([-2.0 * labels, generator.normal(size=(6400, 1))], axis=1)
    assert scored(made_up(labels), latents).f1[0, 0] == 0
    assert scored(made_up(labels), latents, magnitude=True).f1[0, 0] == 1


def test_implied_labels_do_not_count_twice():
    scores = np.array([[0.9, 0.9, 0.2], [0.8, 0.1, 0.2], [0.7, 0.6, 0.6]])
    implied = np.array([[False, True, False], [False, False, False], [False, False, False]])  # having 0 implies having 1
    found = concepts_and_units(scores, implied, np.ones(3, dtype=bool))
    assert found["concepts_per_unit"].value == pytest.approx((2 + 2 + 1) / 3)
    assert found["units_per_concept"].value == pytest.approx((2 + 1 + 3) / 3)
    both = np.array([[False, True, False], [True, False, False], [False, False, False]])
    assert concepts_and_units(scores, both, np.ones(3, dtype=bool))["concepts_per_unit"].value == pytest.approx((2 + 2 + 1) / 3)


def test_implications():
    labels = np.array([[1, 1, 0], [1, 1, -1], [0, 1, 1], [0, 0, 0]], dtype=np.int8)
    assert implications(labels).tolist() == [[False, True, False], [False, False, False], [False, True, False]]


def test_firing_everywhere_is_no_concept():
    labels = np.ones((6400, 1), dtype=np.int8)
    labels[::5] = 0
    found = scored(made_up(labels), np.ones((6400, 2)))
    assert found.f1[0, 0] > 0.8 and found.results["units_per_concept"].value == 0


def test_bad_latents_are_refused(random_data):
    data, latents = random_data
    histogram = LabelHistogram(12, 5)
    with pytest.raises(DataError, match="1 latents are not finite"):
        histogram.add(torch.where(torch.arange(12) == 3, torch.nan, torch.zeros(1, 12)), np.zeros((1, 5), dtype=np.int8))
    with pytest.raises(DataError, match="do not fit"):
        histogram.add(torch.zeros(2, 11), np.zeros((2, 5), dtype=np.int8))
    with pytest.raises(DataError, match="no training tokens"):
        ConceptTraining(12, LabelColumns.of(*data.split())).test()
    del latents


def test_shipped_pair_on_neurons_and_latents():
    """On real models: memory does not grow, neurons and latents go the same way, a rotation of files changes nothing."""
    pair = ModelPair.open()
    names = ["in_string", "in_brackets", "word_self", "role_attribute"]
    data = label_pair(pair, "dense_matched", names=names, n_tokens=16_000, max_files=8)
    train, test = data.split()
    bridge, sae = pair.open_model("dense_matched"), pair.dictionaries()[0]
    latents = measure_concepts(bridge, sae, train, test)
    neurons = measure_concepts(bridge, IdentityDictionary(224, sae.hook_in), train, test, batch_size=16)
    for found in (latents, neurons):
        assert 0.1 < found.results["coverage_f1"].value < 1 and found.results["coverage_auroc"].value > 0.5
    assert latents.f1.shape[1] == sae.n_latents and neurons.f1.shape[1] == 224
    same = measure_concepts(bridge, IdentityDictionary(224, sae.hook_in), replace(train), replace(test), batch_size=5)
    assert np.allclose(same.f1, neurons.f1, atol=1e-6)


@pytest.mark.slow
def test_detectors_of_the_benchmark_are_found():
    """The benchmark scores what it says: each of its labels has a latent of its own among four thousand."""
    found = score_made_up(64_000)
    assert found.f1.shape[1] == 4096 and found.results["coverage_f1"].value > 0.95
    assert found.f1.argmax(1).tolist() == [int(name.removeprefix("label_")) for name in found.names]


@pytest.mark.slow
def test_the_best_of_fewer_neurons() -> None:
    """Of all of them it is the coverage, of one the mean over neurons; more than there are cannot be drawn."""
    pair = ModelPair.open()
    train, test = label_pair(pair, n_tokens=4096, max_files=12).split()
    bridge = pair.open_model("dense_matched")
    neurons = IdentityDictionary(bridge.cfg.d_mlp, "blocks.0.mlp.hook_post")

    def of(n_units: int | None):
        return measure_concepts(bridge, neurons, train, test, magnitude=True, of_units=n_units)

    plain, every, one = of(None), of(bridge.cfg.d_mlp), of(1)
    name = "coverage_f1_over_tokens"
    assert f"equal_{name}" not in plain.results
    for suffix in ("", "_ambiguous"):
        assert every.results[f"equal_{name}{suffix}"].value == pytest.approx(plain.results[f"{name}{suffix}"].value)
    lookup = np.array([plain.per_label[label]["f1"].null for label in plain.names])
    assert one.results[f"equal_{name}"].value == pytest.approx(float((plain.f1.mean(1) - lookup).mean()), abs=1e-6)
    with pytest.raises(ConfigError, match="cannot be drawn"):
        of(bridge.cfg.d_mlp + 1)
