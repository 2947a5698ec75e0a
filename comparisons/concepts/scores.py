"""Scores of a binary prediction against a label from its counts, and their best thresholds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sparse_lens.comparisons.concepts.label_histogram import SLOTS, CountsPart, LabelHistogram

SHARES = np.arange(10) / 10
"""Thresholds as shares of a latent's maximum (arXiv 2408.00113, section 3)."""

Score = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Of true positives, fired, positives and known tokens."""


def f1_score(hits: np.ndarray, fired: np.ndarray, positives: np.ndarray, known: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """`2 TP / (2 TP + FP + FN)`; 0 where nothing fires."""
    return 2 * hits / np.maximum(fired + positives, 1)


def balanced_f1_score(hits: np.ndarray, fired: np.ndarray, positives: np.ndarray, known: np.ndarray) -> np.ndarray:
    """F1 as it would be if half of the tokens had the label."""
    true_rate = hits / np.maximum(positives, 1)
    false_rate = (fired - hits) / np.maximum(known - positives, 1)
    return 2 * true_rate / (true_rate + false_rate + 1)


def matthews(hits: np.ndarray, fired: np.ndarray, positives: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Matthews' correlation coefficient; 0 where the prediction or the label is constant."""
    hits, fired, positives, known = (np.asarray(value, dtype=np.float64) for value in (hits, fired, positives, known))
    spread = np.sqrt(fired * (known - fired)) * np.sqrt(positives * (known - positives))
    return (hits * known - fired * positives) / np.maximum(spread, 1e-300) * (spread > 0)


SCORES: Mapping[str, Score] = {"f1": f1_score, "f1_balanced": balanced_f1_score, "mcc": matthews}


@dataclass(frozen=True, eq=False)
class Thresholds:
    """For each score the slot of the best threshold, and the score there, `[latent column]` each; and `auroc [latent column]`.

    `precise [latent column]` is the slot of the lowest threshold with the precision asked for, -1 where there is none.
    """

    slots: Mapping[str, Int[np.ndarray, "latent column"]]
    scores: Mapping[str, Float[np.ndarray, "latent column"]]
    auroc: Float[np.ndarray, "latent column"]
    precise: Int[np.ndarray, "latent column"]


def best_thresholds(histogram: LabelHistogram, *, precision: float, least_fired: int) -> Thresholds:
    """The best of the ten thresholds for every latent, column and score; one with `precision` must fire `least_fired` times."""
    shape = (len(histogram.top), histogram.n_columns)
    slots = {name: np.zeros(shape, dtype=np.int16) for name in SCORES}
    scores = {name: np.zeros(shape, dtype=np.float32) for name in SCORES}
    auroc, precise = np.zeros(shape, dtype=np.float32), np.full(shape, -1, dtype=np.int16)
    cuts = histogram.slots_of_shares(SHARES)
    for part in histogram.parts():
        own = cuts[part.rows]
        hits, fired = (_at(np.cumsum(counts, axis=1), own) for counts in (part.positives, part.known))
        for name, score in SCORES.items():
            values = score(hits, fired, histogram.positives, histogram.known)
            best = values.argmax(1)
            slots[name][part.rows] = np.take_along_axis(own, best, axis=1)
            scores[name][part.rows] = np.take_along_axis(values, best[:, None], axis=1)[:, 0]
        auroc[part.rows] = area_under_curve(part, histogram)
        good = (hits >= precision * fired) & (fired >= least_fired)
        precise[part.rows] = np.where(good, own[:, :, None], -1).max(1)
    return Thresholds(slots, scores, auroc, precise)


def _at(cumulated: Int[np.ndarray, "latent slot column"], slots: Int[np.ndarray, "latent threshold"]) -> np.ndarray:
    return np.take_along_axis(cumulated, slots[:, :, None], axis=1)


def scores_at(histogram: LabelHistogram, slots: Mapping[str, Int[np.ndarray, "latent column"]]) -> dict[str, np.ndarray]:
    """Every score at given thresholds, `[latent column]`."""
    found = {name: np.zeros((len(histogram.top), histogram.n_columns), dtype=np.float32) for name in slots}
    for part in histogram.parts():
        hits, fired = np.cumsum(part.positives, axis=1), np.cumsum(part.known, axis=1)
        for name, wanted in slots.items():
            own = wanted[part.rows][:, None].astype(np.int64)
            hits_at, fired_at = (np.take_along_axis(counts, own, axis=1)[:, 0] for counts in (hits, fired))
            found[name][part.rows] = SCORES[name](hits_at, fired_at, histogram.positives, histogram.known)
    return found


def area_under_curve(part: CountsPart, histogram: LabelHistogram) -> Float[np.ndarray, "latent column"]:
    """Chance that a latent is stronger on a token with the label than on one without it, ties counting half; 0.5 if undefined.

    Whatever does not fire is tied, negative values too, and so is whatever falls into one slot.
    """
    n_with, n_without = histogram.positives, histogram.known - histogram.positives
    without = part.known - part.positives
    weaker = n_without - np.cumsum(without, axis=1)
    wins = (part.positives * (weaker + without / 2)).sum(1)
    silent_with = n_with - part.positives.sum(1)
    silent_without = n_without - without.sum(1)
    wins = wins + silent_with * silent_without / 2
    pairs = n_with * n_without
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5)


def areas(histogram: LabelHistogram) -> Float[np.ndarray, "latent column"]:
    """`area_under_curve` of all latents."""
    return np.concatenate([area_under_curve(part, histogram) for part in histogram.parts()])


def steps_of_slots(slots: Int[np.ndarray, "latent column"], top: Int[np.ndarray, " latent"]) -> Int[np.ndarray, "latent column"]:
    """Grid steps at which a latent is inside these slots (the last one: whenever it fires); the largest int32 for a slot of -1."""
    steps = np.where(slots == SLOTS - 1, 0, top[:, None] - slots)
    return np.where(slots < 0, np.iinfo(np.int32).max, steps).astype(np.int32)
