"""Concepts: how well single latents tell properties of Python source, beyond what the token itself gives away.

For every label the latent and threshold that are best on training files are scored on test files (arXiv 2408.00113, section 3:
coverage is the mean over labels). Beside each score stands that of the best table from token ids to the label, and the same on the
positions whose token leaves the label open: word form alone makes latents look meaningful (arXiv 2604.00443).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from sparse_lens.comparisons.concepts.equal_units import best_of_fewer
from sparse_lens.comparisons.concepts.label_histogram import LabelHistogram
from sparse_lens.comparisons.concepts.labelled_tokens import LEAST_POSITIVES, LabelledTokens, labelled_latents
from sparse_lens.comparisons.concepts.scores import SCORES, Thresholds, areas, best_thresholds, f1_score, scores_at, steps_of_slots
from sparse_lens.comparisons.concepts.token_identity import AMBIGUOUS, LabelColumns
from sparse_lens.dictionaries import Bridge, Dictionary
from sparse_lens.errors import DataError
from sparse_lens.kernels.histograms import any_fires
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable

HIGH_PRECISION = 0.95
LEAST_FIRED = 10
"""A latent that fires less often on the training files is not trusted to be precise."""

CONCEPT_F1 = 0.5
"""A latent stands for a label if its F1 lies at least so far on the way from that of firing everywhere to 1; of a rare label this
is F1 itself, and one that most tokens have is not everyone's concept."""

_TOKENS_AT_ONCE = 1 << 16

IMPLIED = 0.99
"""A label is implied by another if so large a share of the other's tokens has it."""


@dataclass(frozen=True, eq=False)
class ConceptScores:
    """The rows in `results`, and behind them the scores per label and the map of labels and latents.

    `f1 [label latent]` are F1 scores on the test files at thresholds from the training files, of the labels in `names`; `gained`
    says how far each lies from that of firing everywhere (0) to 1; `per_label` has for each label of the data its own numbers, not
    measurable where it is too rare.
    """

    results: Mapping[str, Result]
    names: tuple[str, ...]
    f1: Float[np.ndarray, "label latent"]
    gained: Float[np.ndarray, "label latent"]
    per_label: Mapping[str, Mapping[str, Result]]


def measure_concepts(
    bridge: Bridge,
    dictionary: Dictionary,
    train: LabelledTokens,
    test: LabelledTokens,
    *,
    magnitude: bool = False,
    batch_size: int = 32,
    of_units: int | None = None,
) -> ConceptScores:
    """Concept scores of a dictionary's latents; train and test are windows of different files (`LabelledTokens.split`).

    A latent counts as firing above zero, as for SAEs; `magnitude` scores absolute values, for neurons that mean something below
    zero too. With `of_units` the results `equal_coverage_f1_over_tokens…` are beside the others: of the best of so many latents
    drawn at random, the mean over all draws, to compare with a dictionary that has no more. Raises `DataError` for latents that are
    not finite, `ConfigError` for more `of_units` than there are latents, and what `harvest_activations` raises.

    Example: `measure_concepts(bridge, sae, *label_pair(pair, "dense_matched").split()).results["coverage_f1"]`.
    """
    columns = LabelColumns.of(train, test)
    training = ConceptTraining(dictionary.n_latents, columns, magnitude=magnitude)
    for latents, _, batch in labelled_latents(bridge, dictionary, train, batch_size=batch_size):
        training.add(latents, batch)
    testing = training.test()
    for latents, _, batch in labelled_latents(bridge, dictionary, test, batch_size=batch_size):
        testing.add(latents, batch)
    return testing.scores(train, test, of_units=of_units)


class ConceptTraining:
    """First pass, over the training files: counts from which thresholds are chosen."""

    def __init__(self, n_latents: int, columns: LabelColumns, *, magnitude: bool = False) -> None:
        self.columns = columns
        self.histogram = LabelHistogram(n_latents, len(columns.labels), magnitude=magnitude)

    def add(self, latents: Float[Tensor, "token latent"], batch: LabelledTokens) -> None:
        """Take in the latents of a batch of windows, `[window * pos, latent]`."""
        self.histogram.add(latents, _columns(self.columns, batch))

    def test(self) -> ConceptTest:
        """The second pass, with the thresholds that are best so far. Raises `DataError` if nothing was taken in."""
        if self.histogram.n_tokens == 0:
            raise DataError("no training tokens to choose thresholds on; add a batch first")
        thresholds = best_thresholds(self.histogram, precision=HIGH_PRECISION, least_fired=LEAST_FIRED)
        return ConceptTest(self.columns, self.histogram, thresholds)


class ConceptTest:
    """Second pass, over the test files: the scores at the chosen thresholds, and the labels as the precise latents predict them."""

    def __init__(self, columns: LabelColumns, training: LabelHistogram, thresholds: Thresholds) -> None:
        self.columns, self.thresholds, self.fires = columns, thresholds, training.fired > 0
        n_latents, n_columns = thresholds.auroc.shape
        self.histogram = LabelHistogram(n_latents, n_columns, magnitude=training.magnitude, top=training.top)
        self.needed = steps_of_slots(thresholds.precise, training.top)
        self.predicted = np.zeros((2, n_columns), dtype=np.int64)

    def add(self, latents: Float[Tensor, "token latent"], batch: LabelledTokens) -> None:
        """Take in the latents of a batch of windows, `[window * pos, latent]`."""
        columns = _columns(self.columns, batch)
        self.histogram.add(latents, columns)
        values = np.ascontiguousarray(latents.detach().float().cpu().numpy())
        found = np.zeros(columns.shape, dtype=np.uint8)
        any_fires(np.abs(values) if self.histogram.magnitude else values, self.needed, found)
        self.predicted += np.stack([((columns == 1) & (found == 1)).sum(0), ((columns >= 0) & (found == 1)).sum(0)])

    def scores(self, train: LabelledTokens, test: LabelledTokens, *, of_units: int | None = None) -> ConceptScores:
        """All scores; `train` and `test` are what the batches were of, `of_units` is that of `measure_concepts`."""
        return _Assembly(self, train, test, of_units).scores()


def _columns(columns: LabelColumns, batch: LabelledTokens) -> Int8[np.ndarray, "token column"]:
    return columns.expand(batch.tokens.reshape(-1), batch.labels.reshape(-1, len(batch.names)))


class _Assembly:
    """From arrays `[latent column]` to rows."""

    def __init__(self, of: ConceptTest, train: LabelledTokens, test: LabelledTokens, of_units: int | None) -> None:
        self.columns, self.train = of.columns, train
        self.at_test = scores_at(of.histogram, of.thresholds.slots)
        every = np.arange(len(of.columns.labels))
        self.best = {name: self.at_test[name][of.thresholds.scores[name].argmax(0), every] for name in SCORES}
        fewer = None if of_units is None else best_of_fewer(of.thresholds.scores["f1"], self.at_test["f1"], of_units)
        at_auroc = areas(of.histogram)
        self.best["auroc"] = at_auroc[of.thresholds.auroc.argmax(0), every]
        counts = of.columns.lookup_counts(test)
        self.lookup = {name: score(*counts) for name, score in SCORES.items()} | {"auroc": np.full(len(every), 0.5)}
        self.best["high_precision_f1"] = f1_score(of.predicted[0], of.predicted[1], of.histogram.positives, of.histogram.known)
        self.lookup["high_precision_f1"] = self.lookup["f1"]
        self.over_tokens = {"coverage_f1_over_tokens": self.best["f1"] - self.lookup["f1"]}
        if fewer is not None:
            self.over_tokens["equal_coverage_f1_over_tokens"] = fewer - self.lookup["f1"]
        self.f1 = self.at_test["f1"].T
        histogram = of.histogram
        everywhere = f1_score(histogram.positives, histogram.known, histogram.positives, histogram.known)[:, None]
        self.gained = (self.f1 - everywhere) / np.maximum(1 - everywhere, 1e-9)
        self.fires = of.fires

    def scores(self) -> ConceptScores:
        plain = self.columns.plain
        names = tuple(self.columns.column_names[column] for column in plain)
        return ConceptScores(self._results(), names, self.f1[plain], self.gained[plain], self._per_label())

    def _results(self) -> dict[str, Result]:
        found: dict[str, Result] = {}
        for suffix, chosen in (("", self.columns.plain), (AMBIGUOUS, np.flatnonzero(self.columns.restricted))):
            for name, values in self.best.items():
                row = name if name.startswith("high") else f"coverage_{name}"
                found[row + suffix] = self._mean(values[chosen], self.lookup[name][chosen])
            for name, over in self.over_tokens.items():
                found[name + suffix] = self._mean(over[chosen], np.zeros(len(chosen)))
            found |= {name + suffix: result for name, result in self._units(chosen).items()}
        return found | {"measured_labels": exact(len(self.columns.plain))}

    def _mean(self, values: np.ndarray, null: np.ndarray) -> Result:
        if not len(values):
            return not_measurable(f"no label has {LEAST_POSITIVES} tokens with and without it in training and in test files")
        return bootstrap_mean(values, null=float(null.mean()))

    def _units(self, columns: Int[np.ndarray, " column"]) -> dict[str, Result]:
        labels = self.train.labels.reshape(-1, len(self.train.names))[:, self.columns.labels[columns]]
        return concepts_and_units(self.gained[columns], implications(labels), self.fires)

    def _per_label(self) -> dict[str, dict[str, Result]]:
        found: dict[str, dict[str, Result]] = {}
        for column, name in enumerate(self.columns.column_names):
            suffix = AMBIGUOUS if self.columns.restricted[column] else ""
            numbers = {row + suffix: Result(float(v[column]), null=float(self.lookup[row][column])) for row, v in self.best.items()}
            found.setdefault(name, {}).update(numbers)
        rare = not_measurable(f"fewer than {LEAST_POSITIVES} tokens with or without the label in training or in test files")
        return found | {name: dict.fromkeys(self.best, rare) for name in self.columns.missing}


def implications(labels: Int8[np.ndarray, "token label"]) -> Bool[np.ndarray, "label label"]:
    """Whether having the first label implies the second: the second has at least 0.99 of its tokens where both are known."""
    both = of = np.zeros((labels.shape[1], labels.shape[1]))
    for start in range(0, len(labels), _TOKENS_AT_ONCE):
        part = labels[start : start + _TOKENS_AT_ONCE]
        has, known = (part == 1).astype(np.float32), (part >= 0).astype(np.float32)
        both, of = both + has.T @ has, of + has.T @ known
    return (both >= IMPLIED * np.maximum(of, 1)) & ~np.eye(labels.shape[1], dtype=bool)


def concepts_and_units(
    scores: Float[np.ndarray, "label latent"], implied: Bool[np.ndarray, "label label"], fires: Bool[np.ndarray, " latent"]
) -> dict[str, Result]:
    """Labels that one latent stands for, without those that others of its labels imply, and latents that stand for one label.

    `scores` are F1 scores between firing everywhere (0) and perfection (1).
    """
    if not len(scores):
        reason = "no label can be measured"
        return {name: not_measurable(reason) for name in ("concepts_per_unit", "units_per_concept", "units_with_a_concept")}
    stands = np.asarray(scores >= CONCEPT_F1)
    kept, has_one = stands.copy(), stands.any(axis=0).reshape(-1)
    for latent in np.flatnonzero(has_one):
        own = np.flatnonzero(stands[:, latent])
        for label in own[np.argsort(scores[own, latent], kind="stable")]:  # of two that imply each other the better one stays
            others = kept[:, latent].copy()
            others[label] = False
            kept[label, latent] = not (implied[:, label] & others).any()
    counts = kept.sum(0)[has_one]
    none = not_measurable(f"no latent stands for any label (F1 from {CONCEPT_F1} on)", n=scores.shape[1])
    return {
        "concepts_per_unit": bootstrap_mean(counts) if len(counts) else none,
        "units_per_concept": bootstrap_mean(stands.sum(1)),
        "units_with_a_concept": bootstrap_mean(has_one[fires]) if fires.any() else not_measurable("no latent fires"),
    }
