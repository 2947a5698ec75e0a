"""Separability: how far apart a latent's strengths lie on tokens with and without a label, without any threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.comparisons.concepts.label_histogram import SLOTS, LabelHistogram
from sparse_lens.comparisons.concepts.labelled_tokens import LEAST_POSITIVES, LabelledTokens, labelled_latents
from sparse_lens.comparisons.concepts.token_identity import AMBIGUOUS, with_ambiguous
from sparse_lens.dictionaries import Bridge, Dictionary
from sparse_lens.kernels.histograms import grid_value
from sparse_lens.results import Result, bootstrap_mean, not_measurable

EXCLUSIVE: Mapping[str, tuple[str, ...]] = {
    "role": (
        "role_variable",
        "role_parameter",
        "role_attribute",
        "role_keyword_argument",
        "role_function_name",
        "role_import_name",
    ),
    "kind": ("is_keyword", "is_builtin", "is_name", "is_number", "is_operator"),
    "bracket": ("innermost_parenthesis", "innermost_square", "innermost_curly"),
    "scope": ("scope_local", "scope_global", "scope_free", "scope_cell"),
    "type": ("variable_is_set", "variable_is_str", "variable_is_list", "variable_is_dict", "variable_is_int"),
}
"""Labels of which a token has one at most, for separability of more than two classes."""

_OF_CLASSES = tuple(f"js_separability_{group}" for group in EXCLUSIVE)

_BIN = 8
"""Slots that are one bin of an entropy: half an octave. Finer ones would find differences in a few hundred tokens by chance."""


@dataclass(frozen=True, eq=False)
class Separability:
    """The rows in `results`, and on token-ambiguous positions alone (`…_ambiguous`).

    `jensen_shannon`, `information` and `selectivity [label latent]` are of the labels in `names`, at all positions.
    """

    results: Mapping[str, Result]
    names: tuple[str, ...]
    jensen_shannon: Float[np.ndarray, "label latent"]
    information: Float[np.ndarray, "label latent"]
    selectivity: Float[np.ndarray, "label latent"]


def measure_separability(
    bridge: Bridge,
    dictionary: Dictionary,
    data: LabelledTokens,
    *,
    train: LabelledTokens | None = None,
    magnitude: bool = False,
    batch_size: int = 32,
    seed: int = 0,
) -> Separability:
    """Separability of a dictionary's latents on all windows of `data`; what does not fire above zero is one bin of its own.

    Rows are over latents that fire on 200 tokens or more: of a rarer one nothing can be told.

    Which tokens leave a label open is read from `train`, windows of other files, or without them from the data themselves.
    `magnitude` takes absolute values. Raises `DataError` for latents that are not finite.
    """
    _, both = with_ambiguous(train or data, data)
    sums = SeparabilitySums(dictionary.n_latents, both.names, magnitude=magnitude, seed=seed)
    for latents, _, batch in labelled_latents(bridge, dictionary, both, batch_size=batch_size):
        sums.add(latents, batch)
    return sums.separability()


class SeparabilitySums:
    """The running histogram behind `Separability`."""

    def __init__(self, n_latents: int, names: Sequence[str], *, magnitude: bool = False, seed: int = 0) -> None:
        self.names, self.seed = tuple(names), seed
        self.histogram = LabelHistogram(n_latents, len(self.names), magnitude=magnitude, with_sums=True)

    def add(self, latents: Float[Tensor, "token latent"], batch: LabelledTokens) -> None:
        """Take in the latents of a batch of windows, `[window * pos, latent]`."""
        self.histogram.add(latents, batch.labels.reshape(-1, len(batch.names)))

    def results(self) -> dict[str, Result]:
        """The rows alone."""
        return dict(self.separability().results)

    def separability(self) -> Separability:
        """Rows and arrays; the null of each row is that of labels drawn at random, as often as the real ones.

        Labels named `…_ambiguous` (`with_ambiguous`) have rows of their own.
        """
        named = np.array([name.endswith(AMBIGUOUS) for name in self.names], dtype=bool)
        found = self._of(np.flatnonzero(~named))
        if not named.any():
            return found
        ambiguous = self._of(np.flatnonzero(named)).results
        rows = {row + AMBIGUOUS: ambiguous[row] for row in ambiguous if row not in _OF_CLASSES}
        return replace(found, results={**found.results, **rows})

    def _of(self, columns: Int[np.ndarray, " column"]) -> Separability:
        histogram = self.histogram
        enough = (histogram.positives >= LEAST_POSITIVES) & (histogram.known - histogram.positives >= LEAST_POSITIVES)
        chosen = columns[enough[columns]]
        names = tuple(self.names[column] for column in chosen)
        positives, known = _binned(histogram, chosen)
        drawn = np.random.default_rng(self.seed).binomial(known, positives.sum(1, keepdims=True) / known.sum(1, keepdims=True))
        found, null = (_pairwise(counts, known - counts) for counts in (positives, drawn))
        found["selectivity"], null["selectivity"] = _selectivity(histogram, chosen), _drawn_selectivity(histogram, drawn, known)
        fires = histogram.fired >= LEAST_POSITIVES
        results = _rows(found, null, fires)
        for row, members in zip(_OF_CLASSES, EXCLUSIVE.values(), strict=True):
            places = [names.index(name) for name in members if name in names]
            results[row] = _classes(positives, drawn, places, fires)
        arrays = {name: values.T for name, values in found.items()}
        return Separability(results, names, arrays["jensen_shannon"], arrays["information"], arrays["selectivity"])


def _binned(histogram: LabelHistogram, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that have each label, and tokens where it is known, by bin of strength, `[latent bin label]`; the last bin is
    silence."""
    totals = (histogram.positives[columns], histogram.known[columns])
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for part in histogram.parts():
        for counts, total, into in zip((part.positives, part.known), totals, found, strict=True):
            bins = counts[:, :, columns].reshape(len(counts), SLOTS // _BIN, _BIN, len(columns)).sum(2)
            into.append(np.concatenate([bins, (total - bins.sum(1))[:, None]], axis=1))
    return np.concatenate(found[0]), np.concatenate(found[1])


def entropy(counts: Float[np.ndarray, "*row bin label"]) -> Float[np.ndarray, "*row label"]:
    """Entropy in bits over the bins, which lie on the last axis but one."""
    shares = counts / np.maximum(counts.sum(-2, keepdims=True), 1e-300)
    return -(shares * np.log2(np.maximum(shares, 1e-300))).sum(-2)


def jensen_shannon(classes: Sequence[Float[np.ndarray, "*row bin label"]]) -> Float[np.ndarray, "*row label"]:
    """Distance of the classes' histograms, from 0 (equal) to 1 (disjoint): arXiv 2508.15094; classes weigh the same.

    `sqrt((H(mixture) - mean over classes of H(class)) / log2(number of classes))`.
    """
    shares = [counts / np.maximum(counts.sum(-2, keepdims=True), 1e-300) for counts in classes]
    gain = entropy(np.sum(shares, axis=0)) - np.mean([entropy(share) for share in shares], axis=0)
    return np.sqrt(np.maximum(gain, 0) / np.log2(len(shares)))


def _pairwise(positives: np.ndarray, negatives: np.ndarray) -> dict[str, Float[np.ndarray, "latent label"]]:
    """Each label against its absence: distance, and information in shares of the label's entropy."""
    positives, negatives = positives.astype(np.float64), negatives.astype(np.float64)
    n_with, n_without = positives.sum(1), negatives.sum(1)
    share = n_with / (n_with + n_without)
    of_label = entropy(np.stack([n_with, n_without], axis=-2))
    conditional = share * entropy(positives) + (1 - share) * entropy(negatives)
    information = (entropy(positives + negatives) - conditional) / np.maximum(of_label, 1e-300)
    return {"jensen_shannon": jensen_shannon([positives, negatives]), "information": np.maximum(information, 0)}


def _selectivity(histogram: LabelHistogram, columns: np.ndarray) -> Float[np.ndarray, "latent label"]:
    """`(greater mean - smaller mean) / their sum`, of the firing strength with and without the label; 0 if it never fires."""
    n = histogram.n_columns
    n_with, n_known = histogram.positives[columns], histogram.known[columns]
    of_with, of_known = histogram.sums[:, :n][:, columns], histogram.sums[:, n:][:, columns]
    return _contrast(of_with / n_with, (of_known - of_with) / (n_known - n_with))


def _drawn_selectivity(histogram: LabelHistogram, drawn: np.ndarray, known: np.ndarray) -> Float[np.ndarray, "latent label"]:
    """The same for labels drawn at random, with the middle of each bin for the strengths in it."""
    steps = np.maximum(histogram.top[:, None] - _BIN * np.arange(SLOTS // _BIN) - _BIN // 2, 0)
    strengths = np.concatenate([grid_value(steps), np.zeros((len(steps), 1))], axis=1)[:, :, None]
    means = ((strengths * counts).sum(1) / np.maximum(counts.sum(1), 1) for counts in (drawn, known - drawn))
    return _contrast(*means)


def _contrast(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one - other) / np.maximum(one + other, 1e-300)


_ROWS = {"jensen_shannon": "js_separability", "information": "mutual_information", "selectivity": "selectivity"}


def _rows(found: dict[str, np.ndarray], null: dict[str, np.ndarray], fires: np.ndarray) -> dict[str, Result]:
    """For each measure the mean over labels of its mean over latents that fire, and of its best latent."""
    results: dict[str, Result] = {}
    for name, row in _ROWS.items():
        for suffix, over in (("", lambda values: values.mean(0)), ("_best", lambda values: values.max(0))):
            if not fires.any() or not found[name].shape[1]:
                results[row + suffix] = not_measurable(
                    f"no latent fires, or no label has {LEAST_POSITIVES} tokens with and without it"
                )
                continue
            results[row + suffix] = bootstrap_mean(over(found[name][fires]), null=float(over(null[name][fires]).mean()))
    return results


def _classes(positives: np.ndarray, drawn: np.ndarray, columns: list[int], fires: np.ndarray) -> Result:
    """Mean over firing latents of the distance of several classes that exclude each other."""
    if len(columns) < 2 or not fires.any():
        return not_measurable(
            f"fewer than two of the classes have {LEAST_POSITIVES} tokens with and without them, or no latent fires"
        )
    found, null = (
        jensen_shannon([counts[:, :, [column]].astype(float) for column in columns])[:, 0] for counts in (positives, drawn)
    )
    return bootstrap_mean(found[fires], null=float(null[fires].mean()))
