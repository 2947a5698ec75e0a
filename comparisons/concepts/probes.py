"""Sparse probes: how many latents it takes to tell a label, against a probe on the whole activation.

`k` latents are chosen by the difference of their means (arXiv 2305.01610), a logistic probe is fitted on them on training files and
scored on test files, on balanced examples; the gap is what more latents add to one. FMS (arXiv 2506.19382) asks the same of a
decision tree: whether a label sits in one latent, and in that one alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sparse_lens.comparisons.concepts.activation_sample import ActivationSample, sample_activations
from sparse_lens.comparisons.concepts.decision_tree import tree_accuracies
from sparse_lens.comparisons.concepts.labelled_tokens import LEAST_POSITIVES, LabelledTokens
from sparse_lens.comparisons.concepts.linear_probe import fit_probe, top_units
from sparse_lens.comparisons.concepts.token_identity import AMBIGUOUS, with_ambiguous
from sparse_lens.dictionaries import Bridge, Dictionary
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable

SIZES = (1, 2, 5, 16)
"""Numbers of latents of the sparse probes."""

TREE_UNITS = 256
"""Latents that the decision tree may choose from, by difference of means: it uses eleven at most."""

REMOVED, GROWN = 5, 10
"""Latents removed, and splits added, for FMS."""


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """The rows in `results`, means over labels, and on token-ambiguous positions alone (`…_ambiguous`).

    `per_label` has the same numbers for each label that can be measured, at all positions.
    """

    results: Mapping[str, Result]
    per_label: Mapping[str, Mapping[str, float]]


def measure_probes(
    bridge: Bridge, dictionary: Dictionary, train: LabelledTokens, test: LabelledTokens, *, batch_size: int = 32, seed: int = 0
) -> ProbeScores:
    """Probes on a dictionary's latents; train and test are windows of different files.

    Raises `DataError` for latents that are not finite, and what `harvest_activations` raises.
    """
    both = with_ambiguous(train, test)
    return probe_scores(sample_activations(bridge, dictionary, *both, batch_size=batch_size, seed=seed))


def probe_scores(sample: ActivationSample) -> ProbeScores:
    """Probes of all labels on a sample of activations; those named `…_ambiguous` (`with_ambiguous`) have rows of their own.

    Rows: `probe_accuracy_k<k>` and `_all`, `probe_gap_k<k>` (accuracy above that of one latent), `probe_accuracy_dense` (the whole
    activation that the dictionary reads), `fms` and `fms_5`. The null of an accuracy is that of the best table from token ids.
    """
    per_label: dict[str, dict[str, float]] = {}
    for label, name in enumerate(sample.names):
        if (examples := sample.examples(label, "latents")) is not None:
            dense = sample.examples(label, "read")
            assert dense is not None
            per_label[name] = _accuracies(*examples) | {"probe_accuracy_dense": _accuracy(*dense)} | _monosemanticity(*examples)
            per_label[name] |= {"tokens": _token_accuracy(*sample.examples_tokens(label))}
    plain = {name: numbers for name, numbers in per_label.items() if not name.endswith(AMBIGUOUS)}
    results = _results(plain)
    if any(name.endswith(AMBIGUOUS) for name in sample.names):
        ambiguous = {name: numbers for name, numbers in per_label.items() if name.endswith(AMBIGUOUS)}
        results |= {row + AMBIGUOUS: result for row, result in _results(ambiguous).items()}
    return ProbeScores(results, plain)


def _accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    return float((fit_probe(*train).says_yes(test[0]) == test[1]).mean())


def _accuracies(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    order = top_units(*train, train[0].shape[1])
    found = {}
    for size in (*SIZES, None):
        units = order[:size]
        found[f"probe_accuracy_{'all' if size is None else f'k{size}'}"] = _accuracy(
            (train[0][:, units], train[1]), (test[0][:, units], test[1])
        )
    gaps = {f"probe_gap_k{size}": found[f"probe_accuracy_k{size}"] - found["probe_accuracy_k1"] for size in SIZES[1:]}
    return found | gaps


def _monosemanticity(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """FMS: accuracy of the best latent, times how much is lost without it (local) and how little others add to it (global).

    `acc0 (local + global) / 2` with `local@p = 2 (acc0 - acc_p)` after removing the best `p` latents and
    `global = 1 - mean_i (acc_i - acc0)` over trees of `i` more splits.
    """
    units = top_units(*train, TREE_UNITS)
    trees = tree_accuracies((train[0][:, units], train[1]), (test[0][:, units], test[1]), n_removed=REMOVED, n_grown=GROWN)
    spread = 1 - float((trees.grown - trees.first).mean())
    local = [2 * (trees.first - float(trees.without[removed - 1])) for removed in (1, REMOVED)]
    return {name: trees.first * (part + spread) / 2 for name, part in zip(("fms", f"fms_{REMOVED}"), local, strict=True)}


def _token_accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Accuracy of the table that says for each token id what most of its training examples are; of unseen ids it says no."""
    n_ids = int(max(train[0].max(), test[0].max())) + 1
    votes = np.bincount(train[0], weights=np.where(train[1], 1.0, -1.0), minlength=n_ids)
    return float(((votes[test[0]] > 0) == test[1]).mean())


_ACCURACIES = tuple(f"probe_accuracy_{what}" for what in (*(f"k{size}" for size in SIZES), "all", "dense"))
_ROWS = (*_ACCURACIES, *(f"probe_gap_k{size}" for size in SIZES[1:]), "fms", f"fms_{REMOVED}")


def _results(per_label: Mapping[str, Mapping[str, float]]) -> dict[str, Result]:
    if not per_label:
        reason = f"no label has {LEAST_POSITIVES} tokens with and without it among the test examples"
        return {row: not_measurable(reason) for row in _ROWS}
    columns = {row: np.array([numbers[row] for numbers in per_label.values()]) for row in (*_ROWS, "tokens")}
    chance = float(columns["tokens"].mean())
    found = {row: bootstrap_mean(columns[row], null=chance if row in _ACCURACIES else None) for row in _ROWS}
    return found | {"probe_labels": exact(len(per_label))}
