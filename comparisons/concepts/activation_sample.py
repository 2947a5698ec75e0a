"""A sample of tokens with their latents and activations, small enough to fit probes on: balanced for every label, split by file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_lens.comparisons.concepts.labelled_tokens import LEAST_POSITIVES, LabelledTokens, labelled_latents
from sparse_lens.dictionaries import Bridge, Dictionary
from sparse_lens.errors import DataError

TRAIN_TOKENS, TEST_TOKENS = 500, 200
"""Tokens that have a label, to fit and to test its probes; as many are drawn that do not have it."""

BACKGROUND = 5
"""Times as many tokens are drawn from everywhere, for what the labels are told from."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Tokens of one split that the sample keeps: their `places`, rising, their ids, and `labels [token label]`.

    `drawn` has for each label the rows that were drawn for it, `against` those that it is told from. A label's own rows are all
    that its probes see of it: among all that have it, those drawn for a rarer label would be too many.
    """

    places: Int[np.ndarray, " token"]
    tokens: Int[np.ndarray, " token"]
    labels: Int[np.ndarray, "token label"]
    drawn: tuple[Int[np.ndarray, " _"], ...]
    against: tuple[Int[np.ndarray, " _"], ...]

    @classmethod
    def of(cls, data: LabelledTokens, per_label: int, seed: int) -> Choice:
        """For every label `per_label` random tokens that have it, and `BACKGROUND` times as many of any kind to tell it from.

        A label that is unknown of most tokens, so that too few of those lack it, has tokens of its own that do.
        """
        generator = np.random.default_rng(seed)
        labels = data.labels.reshape(-1, len(data.names))
        background = generator.permutation(len(labels))[: BACKGROUND * per_label]
        with_label = [generator.permutation(np.flatnonzero(column == 1))[:per_label] for column in labels.T]
        without = [background[column[background] == 0] for column in labels.T]
        for label in np.flatnonzero([len(rows) < per_label for rows in without]):
            without[label] = generator.permutation(np.flatnonzero(labels[:, label] == 0))[:per_label]
        rows = np.unique(np.concatenate([background, *with_label, *without]))
        rows = rows[np.argsort(data.places[rows], kind="stable")]
        row_of = np.zeros(len(labels), dtype=np.int64)
        row_of[rows] = np.arange(len(rows))
        drawn, against = (tuple(row_of[own] for own in parts) for parts in (with_label, without))
        return cls(data.places[rows], data.tokens.reshape(-1)[rows], labels[rows], drawn, against)

    def balanced(self, label: int) -> tuple[Int[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
        """The rows drawn for a label and as many without it, and which is which."""
        has, has_not = self.drawn[label], self.against[label]
        n = min(len(has), len(has_not))
        return np.concatenate([has[:n], has_not[:n]]), np.arange(2 * n) < n


@dataclass(eq=False)
class Rows:
    """Vectors of the chosen tokens, filled in as they come by, whatever the order of the batches."""

    places: Int[np.ndarray, " token"]
    seen: Bool[np.ndarray, " token"]
    values: dict[str, Float[np.ndarray, "token width"]] = field(default_factory=dict)

    def add(self, found: Mapping[str, Tensor], places: Int[np.ndarray, " any"]) -> None:
        at = np.searchsorted(self.places, places).clip(max=max(0, len(self.places) - 1))
        wanted = np.flatnonzero(self.places[at] == places) if len(self.places) else np.zeros(0, dtype=np.int64)
        for name, vectors in found.items():
            if name not in self.values:
                self.values[name] = np.zeros((len(self.places), vectors.shape[1]), dtype=np.float32)
            self.values[name][at[wanted]] = vectors.detach()[wanted].float().cpu().numpy()
        self.seen[at[wanted]] = True


class ActivationSample:
    """Accumulates latents, and the activations a dictionary reads and writes, at tokens that were chosen beforehand.

    The tokens depend on the labels and the seed alone, so memory does not grow with the data and batches do not matter. Vectors
    are kept as they are, in `values[split]["latents" | "read" | "written"] [token width]`, float32.
    """

    def __init__(
        self,
        train: LabelledTokens,
        test: LabelledTokens,
        *,
        per_label: tuple[int, int] = (TRAIN_TOKENS, TEST_TOKENS),
        seed: int = 0,
    ) -> None:
        self.names, self.per_label = train.names, per_label
        self.choices = (Choice.of(train, per_label[0], seed), Choice.of(test, per_label[1], seed + 1))
        self.rows = tuple(Rows(choice.places, np.zeros(len(choice.places), dtype=bool)) for choice in self.choices)

    def add(
        self,
        latents: Float[Tensor, "token latent"],
        read: Float[Tensor, "token d_in"],
        written: Float[Tensor, "token d_out"],
        batch: LabelledTokens,
    ) -> None:
        """Take in what there is of the chosen tokens in a batch of windows, be it of training or of test files."""
        for rows in self.rows:
            rows.add({"latents": latents, "read": read, "written": written}, batch.places)

    def examples(self, label: int, what: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
        """Balanced training and test examples of a label, `(vectors, has it)` each; None if the label is too rare.

        Raises `DataError` if some chosen tokens have not come by.
        """
        found = []
        for choice, rows, n in zip(self.choices, self.rows, self.per_label, strict=True):
            if not rows.seen.all():
                raise DataError(f"{int((~rows.seen).sum())} tokens of the sample are missing; add all batches of both splits")
            index, has = choice.balanced(label)
            if has.sum() < min(n, LEAST_POSITIVES):
                return None
            found.append((rows.values[what][index].astype(np.float64), has))
        return found[0], found[1]

    def examples_tokens(self, label: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Token ids of the examples that `examples` gives, and whether they have the label."""
        picked = [choice.balanced(label) for choice in self.choices]
        tokens = [(choice.tokens[rows], has) for choice, (rows, has) in zip(self.choices, picked, strict=True)]
        return tokens[0], tokens[1]


def sample_activations(
    bridge: Bridge,
    dictionary: Dictionary,
    train: LabelledTokens,
    test: LabelledTokens,
    *,
    per_label: tuple[int, int] = (TRAIN_TOKENS, TEST_TOKENS),
    batch_size: int = 32,
    seed: int = 0,
) -> ActivationSample:
    """The sample of a dictionary's latents on windows of training and test files; raises what `labelled_latents` raises."""
    sample = ActivationSample(train, test, per_label=per_label, seed=seed)
    for data in (train, test):
        for latents, activations, batch in labelled_latents(bridge, dictionary, data, batch_size=batch_size):
            sample.add(latents, activations[dictionary.hook_in], activations[dictionary.hook_out], batch)
    return sample
