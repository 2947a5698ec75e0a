"""How much of a label the token alone tells: the control of every score of latents against labels.

A latent that fires on one word looks like a detector of whatever that word mostly is. So every score stands beside that of the best
table from token ids to labels, and is given once more on the positions whose token leaves the label open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from sparse_lens.comparisons.concepts.labelled_tokens import LEAST_POSITIVES, LabelledTokens

AMBIGUOUS = "_ambiguous"
"""How names of what was measured on token-ambiguous positions alone end."""

AMBIGUOUS_BITS = 0.3
"""A token leaves a label open if the label's entropy, given the token, is above this many bits."""


def token_counts(data: LabelledTokens, n_ids: int) -> tuple[Int[np.ndarray, "id label"], Int[np.ndarray, "id label"]]:
    """For each token id below `n_ids` its occurrences that have each label, and those for which the label is known."""
    ids, labels = data.tokens.reshape(-1), data.labels.reshape(-1, len(data.names))
    found = [
        np.stack([np.bincount(ids[wanted(column)], minlength=n_ids)[:n_ids] for column in labels.T], axis=1)
        for wanted in (lambda column: column == 1, lambda column: column >= 0)
    ]
    return found[0], found[1]


def label_entropy(positives: Int[np.ndarray, "id label"], known: Int[np.ndarray, "id label"]) -> Float[np.ndarray, "id label"]:
    """Entropy in bits of each label given each token id; 0 for an id that was not seen."""
    share = positives / np.maximum(known, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return np.nan_to_num(bits)


def label_ambiguity(data: LabelledTokens) -> Float[np.ndarray, " label"]:
    """`H(label | token id)` in bits over all tokens of the data; a label above `AMBIGUOUS_BITS` is one that tokens leave open."""
    positives, known = token_counts(data, int(data.tokens.max()) + 1)
    total = np.maximum(known.sum(0), 1)
    return (label_entropy(positives, known) * known).sum(0) / total


@dataclass(frozen=True, eq=False)
class LabelColumns:
    """What latents are scored against: the labels that can be measured, and those again on token-ambiguous positions alone.

    `labels [column]` is the index of the label in the data, `restricted [column]` says whether only ambiguous positions count.
    `lookup [id column]` is the table of tokens with the best F1 on the training files; `ambiguous [id label]` the open tokens
    there.
    """

    names: tuple[str, ...]
    labels: Int[np.ndarray, " column"]
    restricted: Bool[np.ndarray, " column"]
    ambiguous: Bool[np.ndarray, "id label"]
    lookup: Bool[np.ndarray, "id column"]
    missing: tuple[str, ...]

    @classmethod
    def of(cls, train: LabelledTokens, test: LabelledTokens, *, least: int = LEAST_POSITIVES) -> LabelColumns:
        """Columns with at least `least` tokens that have the label, and as many that do not, in training and in test."""
        n_ids = int(max(train.tokens.max(), test.tokens.max())) + 1
        positives, known = token_counts(train, n_ids)
        ambiguous = label_entropy(positives, known) > AMBIGUOUS_BITS
        enough = {False: np.ones(len(train.names), dtype=bool), True: np.ones(len(train.names), dtype=bool)}
        for part_positives, part_known in ((positives, known), token_counts(test, n_ids)):
            for restricted, mask in ((False, np.ones_like(ambiguous)), (True, ambiguous)):
                has, has_not = (part_positives * mask).sum(0), ((part_known - part_positives) * mask).sum(0)
                enough[restricted] &= (has >= least) & (has_not >= least)
        labels = np.concatenate([np.flatnonzero(enough[False]), np.flatnonzero(enough[True])])
        restricted = np.arange(len(labels)) >= int(enough[False].sum())
        mask = np.where(restricted, ambiguous[:, labels], True)
        lookup = best_lookup(positives[:, labels] * mask, known[:, labels] * mask)
        missing = tuple(name for name, measured in zip(train.names, enough[False], strict=True) if not measured)
        return cls(train.names, labels, restricted, ambiguous, lookup, missing)

    @property
    def plain(self) -> Int[np.ndarray, " plain"]:
        """Columns of labels at all positions."""
        return np.flatnonzero(~self.restricted)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Name of each column's label."""
        return tuple(self.names[label] for label in self.labels)

    @cached_property
    def _counts(self) -> Bool[np.ndarray, "id column"]:
        """Whether the tokens of an id count in a column."""
        return ~self.restricted | self.ambiguous[:, self.labels]

    def expand(
        self, tokens: Int[np.ndarray, " token"], labels: Int8[np.ndarray, "token label"]
    ) -> Int8[np.ndarray, "token column"]:
        """The columns of these tokens: 1, 0, or -1 where the label is unknown or, in a restricted column, the token gives it
        away."""
        columns = labels[:, self.labels]
        return np.where(self._counts[tokens], columns, np.int8(-1))

    def lookup_counts(self, data: LabelledTokens) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """True positives and positives of the lookup table on the data, and the labels' positives and known tokens there,
        `[column]` each."""
        positives, known = token_counts(data, len(self.lookup))
        positives, known = positives[:, self.labels] * self._counts, known[:, self.labels] * self._counts
        return (positives * self.lookup).sum(0), (known * self.lookup).sum(0), positives.sum(0), known.sum(0)


def with_ambiguous(train: LabelledTokens, test: LabelledTokens) -> tuple[LabelledTokens, LabelledTokens]:
    """The same windows with further labels `NAME_ambiguous`: those that tokens leave open, unknown wherever the token tells them.

    Which tokens these are is read from the training files; labels that are too rare there or in the test files get none.
    """
    columns = LabelColumns.of(train, test)
    chosen = columns.labels[columns.restricted]
    names = (*train.names, *(train.names[label] + AMBIGUOUS for label in chosen))
    found = []
    for data in (train, test):
        labels = np.where(columns.ambiguous[:, chosen][data.tokens], data.labels[..., chosen], np.int8(-1))
        found.append(replace(data, names=names, labels=np.concatenate([data.labels, labels], axis=-1)))
    return found[0], found[1]


def best_lookup(positives: Int[np.ndarray, "id column"], known: Int[np.ndarray, "id column"]) -> Bool[np.ndarray, "id column"]:
    """The set of token ids whose tokens, all called positive, have the best F1.

    It is a prefix of the ids in falling order of precision: among sets with as many true positives it calls the fewest others.
    """
    found = np.zeros(positives.shape, dtype=bool)
    for column in range(positives.shape[1]):
        has, seen = positives[:, column], known[:, column]
        order = np.argsort(-has / np.maximum(seen, 1), kind="stable")
        f1 = 2 * np.cumsum(has[order]) / np.maximum(np.cumsum(seen[order]) + has.sum(), 1)
        found[order[: int(f1.argmax()) + 1], column] = True
    return found
