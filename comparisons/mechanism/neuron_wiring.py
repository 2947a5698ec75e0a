"""How each neuron of a model is wired, and how many concepts it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from sparse_lens.comparisons.concepts.coverage import CONCEPT_F1, ConceptScores, concepts_and_units, implications, measure_concepts
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens
from sparse_lens.dictionaries import IdentityDictionary
from sparse_lens.hooks import sparsity_report
from sparse_lens.hooks.layout import decoder_layout, layer_matrices

ARMS = {
    "per-matrix top-k": "arm-sparse",
    "fan-in only": "arm-fan-in",
    "fan-out only": "arm-fan-out",
    "activation only": "arm-dense-abstopk",
    "random mask": "arm-random",
    "magnitude-pruned": "arm-magnitude",
    "lottery ticket": "arm-lottery",
    "learned mask": "arm-learned",
    "rewired (RigL)": "arm-rigl",
    "mixture of experts": "arm-moe",
    "penalty on weights": "arm-l1",
}
"""Recipes that part few wires per neuron from few weights: those at 5 % have equally many weights, spread differently."""

OUTCOMES = ("concepts", "effective_concepts", "best_gain")


@dataclass(frozen=True, eq=False)
class NeuronWiring:
    """One model's neurons, layer after layer; those that read or write nothing are left out.

    `fan_in`, `fan_out`: nonzero weights that a neuron reads and writes through; `weights`: nonzeros of all the model's matrices.
    `outcomes`, NaN where a neuron has none: `concepts`, the labels that a neuron stands for, of those that stand for one
    (`concepts_per_unit` of `comparisons.concepts`); `effective_concepts`, the participation ratio of its scores over all labels,
    which rare neurons with a concept of their own do not leave empty; `best_gain`, the best of these scores. A score is the F1 on
    test files, from that of firing everywhere (0) to perfection (1).
    """

    fan_in: Int64[np.ndarray, " neuron"]
    fan_out: Int64[np.ndarray, " neuron"]
    weights: int
    outcomes: Mapping[str, Float[np.ndarray, " neuron"]]


def measure_wiring(
    bridge: Any, train: LabelledTokens, test: LabelledTokens, *, layers: Sequence[int] | None = None
) -> NeuronWiring:
    """Wiring and concepts of the MLP neurons of a bridge, in `layers` or all; train and test are windows of different files.

    Raises what `measure_concepts` and `decoder_layout` raise.
    """
    chosen = range(decoder_layout(bridge).n_layers) if layers is None else layers
    parts = [_layer(bridge, layer, train, test) for layer in chosen]
    weights = sum(matrix.nonzeros for matrix in sparsity_report(bridge).matrices)
    fan_in, fan_out = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    outcomes = {name: np.concatenate([part[2][name] for part in parts]) for name in OUTCOMES}
    alive = (fan_in > 0) & (fan_out > 0)
    return NeuronWiring(fan_in[alive], fan_out[alive], weights, {name: values[alive] for name, values in outcomes.items()})


def _layer(
    bridge: Any, layer: int, train: LabelledTokens, test: LabelledTokens
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    matrices = layer_matrices(bridge, layer)
    reads = matrices.fc_in != 0
    reads = reads if matrices.gate is None else reads | (matrices.gate != 0)
    fan_in, fan_out = (count.cpu().numpy() for count in (reads.sum(1), (matrices.fc_out != 0).sum(0)))
    neurons = IdentityDictionary(len(fan_in), f"blocks.{layer}.mlp.hook_post")
    scores = measure_concepts(bridge, neurons, train, test, magnitude=True)
    return fan_in, fan_out, unit_concepts(scores, train, test)


def unit_concepts(scores: ConceptScores, train: LabelledTokens, test: LabelledTokens) -> dict[str, Float[np.ndarray, " latent"]]:
    """The outcomes of `NeuronWiring` for every latent of concept scores, from the windows that these were measured on."""
    labels = [train.names.index(name) for name in scores.names]
    n_latents = scores.f1.shape[1]
    if not labels:
        return {name: np.full(n_latents, np.nan) for name in OUTCOMES}
    positives, negatives = test.positives[labels], test.negatives[labels]
    everywhere = (2 * positives / (2 * positives + negatives))[:, None]
    gained = (scores.f1 - everywhere) / np.maximum(1 - everywhere, 1e-9)
    implied = implications(train.labels.reshape(-1, len(train.names))[:, labels])
    above = np.maximum(gained, 0.0)
    some = above.any(0)
    spread = np.full(n_latents, np.nan)
    spread[some] = above[:, some].sum(0) ** 2 / (above[:, some] ** 2).sum(0)
    return {
        "concepts": _concepts(gained, implied),
        "effective_concepts": spread,
        "best_gain": gained.max(0).astype(np.float64),
    }


def _concepts(gained: Float[np.ndarray, "label latent"], implied: Bool[np.ndarray, "label label"]) -> np.ndarray:
    """Labels that each latent stands for, by the rule of `concepts_per_unit`; NaN for none."""
    found = np.full(gained.shape[1], np.nan)
    for latent in np.flatnonzero((gained >= CONCEPT_F1).any(0)):
        found[latent] = concepts_and_units(gained[:, [latent]], implied, np.array([True]))["concepts_per_unit"].value
    return found
