"""Absorption and splitting, for hierarchies of Python concepts ("inside brackets" and "bracket depth 2").

A latent for a general concept is split if a few latents share its work, and absorbed where it stays silent because a latent for a
more special concept has taken over its direction (arXiv 2409.14507; SAEBench 0.6). Both are measured against the direction of a
linear probe for the general concept, on tokens of test files that have it.

Two departures from SAEBench: projections are latents times the *length* of the decoder's row along the probe (the same where rows
have norm 1), and what a dictionary writes without any latent (its bias, a transcoder's skip) is taken off the activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sparse_lens.comparisons.concepts.activation_sample import ActivationSample, sample_activations
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens
from sparse_lens.comparisons.concepts.linear_probe import LinearProbe, fit_probe, top_units
from sparse_lens.data.labels import HIERARCHIES
from sparse_lens.dictionaries import Bridge, Dictionary, skipped
from sparse_lens.results import Result, bootstrap_mean, not_measurable

PROBE_ACCURACY = 0.6
"""A concept that the probe on the activation does not tell so well has no direction that could be absorbed. SAEBench asks it of F1,
which on balanced examples is 0.67 for saying yes to all."""

SPLIT_GAIN = 0.03
"""A further latent belongs to a split concept if the sparse probe's F1 rises by more than this with it."""

MOST_SPLITS = 10
ABSORBERS, ABSORBER_COSINE, ABSORBER_SHARE = 3, 0.1, 0.4
"""Latents that may absorb one token's concept, their least cosine with the probe, their least share of the projection."""

FULL_COSINE, SILENT = 0.025, 1e-8
_LEAST_TOKENS = 20


@dataclass(frozen=True, eq=False)
class Absorption:
    """The rows in `results`, means over the hierarchies that can be measured; `per_concept` has the numbers of each general
    concept, over all its tokens and over those of each special one (`absorption_fraction.<special>`)."""

    results: Mapping[str, Result]
    per_concept: Mapping[str, Mapping[str, Result]]


def measure_absorption(
    bridge: Bridge,
    dictionary: Dictionary,
    train: LabelledTokens,
    test: LabelledTokens,
    *,
    hierarchies: Mapping[str, tuple[str, ...]] = HIERARCHIES,
    batch_size: int = 32,
    seed: int = 0,
) -> Absorption:
    """Absorption and splitting in a dictionary; train and test are windows of different files.

    `hierarchies` names special concepts for general ones, all of them labels of the data. Raises what `sample_activations` raises.
    """
    sample = sample_activations(bridge, dictionary, train, test, batch_size=batch_size, seed=seed)
    return absorption_scores(sample, dictionary, hierarchies)


@torch.no_grad()
def absorption_scores(
    sample: ActivationSample, dictionary: Dictionary, hierarchies: Mapping[str, tuple[str, ...]] = HIERARCHIES
) -> Absorption:
    """The same on a sample of the dictionary's activations that was taken before."""
    reader = _Reader(sample, dictionary.W_dec.detach().double().cpu().numpy(), _by_latents(sample, dictionary))
    per_concept = {}
    for general, special in hierarchies.items():
        if general in sample.names:
            per_concept[general] = reader.of_concept(general, tuple(name for name in special if name in sample.names))
    return Absorption(_means(per_concept), per_concept)


def _by_latents(sample: ActivationSample, dictionary: Dictionary) -> Float[np.ndarray, "token d_out"]:
    """What latents and error make up of the activations at the sampled test tokens: all but bias and skip."""
    device, dtype = dictionary.W_dec.device, dictionary.W_dec.dtype
    values = sample.rows[1].values
    rest = dictionary.decode(torch.zeros(1, dictionary.n_latents, dtype=dtype, device=device))
    rest = rest + skipped(dictionary, torch.as_tensor(values["read"], dtype=dtype, device=device))
    return values["written"] - rest.detach().double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads concepts off a sample, with the decoder's rows and the part of the test activations that is not bias or skip."""

    sample: ActivationSample
    decoder: Float[np.ndarray, "unit d_out"]
    by_latents: Float[np.ndarray, "token d_out"]

    def of_concept(self, general: str, special: tuple[str, ...]) -> dict[str, Result]:
        label = self.sample.names.index(general)
        written, latents = self.sample.examples(label, "written"), self.sample.examples(label, "latents")
        if written is None or latents is None:
            return _all(not_measurable(f"too few tokens have {general}, or have it not"))
        probe = fit_probe(*written[0])
        accuracy = float((probe.says_yes(written[1][0]) == written[1][1]).mean())
        if accuracy < PROBE_ACCURACY:
            why = f"a probe on the activation tells {general} with an accuracy of {accuracy:.2f} only, below {PROBE_ACCURACY}"
            return _all(not_measurable(why))
        main = split_units(*latents)
        rows, fractions, full = self._absorbed_rows(label, probe, main)
        drawn = self.sample.choices[1].drawn
        own = np.isin(rows, drawn[label])
        found = {"split_units": Result(float(len(main)), n=len(main))}
        found |= {"absorption_fraction": _mean(fractions[own]), "full_absorption": _mean(full[own].astype(float))}
        of_special = {name: np.isin(rows, drawn[self.sample.names.index(name)]) for name in special}
        return found | {f"absorption_fraction.{name}": _mean(fractions[its]) for name, its in of_special.items()}

    def _absorbed_rows(
        self, label: int, probe: LinearProbe, main: Int[np.ndarray, " main"]
    ) -> tuple[Int[np.ndarray, " row"], Float[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
        """The sampled test tokens that have the label and the probe's yes, their absorption fractions, and whether it is full."""
        choice, values = self.sample.choices[1], self.sample.rows[1].values
        direction = probe.weight / np.linalg.norm(probe.weight)
        says_yes = probe.says_yes(values["written"].astype(np.float64))
        rows = np.flatnonzero((choice.labels[:, label] == 1) & says_yes)
        total = self.by_latents[rows] @ direction
        return rows, *absorbed(values["latents"][rows].astype(np.float64), total, self.decoder, direction, main)


def _mean(values: Float[np.ndarray, " token"]) -> Result:
    if len(values) < _LEAST_TOKENS:
        return not_measurable(f"{len(values)} tokens, fewer than {_LEAST_TOKENS}", n=len(values))
    return bootstrap_mean(values)


def probe_f1(probe: LinearProbe, inputs: Float[np.ndarray, "row width"], labels: Bool[np.ndarray, " row"]) -> float:
    """F1 of a probe on balanced rows."""
    says = probe.says_yes(inputs)
    return float(2 * (says & labels).sum() / max(1, says.sum() + labels.sum()))


def split_units(
    train: tuple[Float[np.ndarray, "row unit"], Bool[np.ndarray, " row"]],
    test: tuple[Float[np.ndarray, "other unit"], Bool[np.ndarray, " other"]],
) -> Int[np.ndarray, " main"]:
    """The latents that stand for a concept: the best one, and further ones as long as each raises the sparse probe's F1."""
    order = top_units(*train, MOST_SPLITS)
    before = 0.0
    for size in range(1, len(order) + 1):
        units = order[:size]
        f1 = probe_f1(fit_probe(train[0][:, units], train[1]), test[0][:, units], test[1])
        if size > 1 and f1 - before <= SPLIT_GAIN:
            return order[: size - 1]
        before = f1
    return order


def absorbed(
    latents: Float[np.ndarray, "token unit"],
    total: Float[np.ndarray, " token"],
    decoder: Float[np.ndarray, "unit width"],
    direction: Float[np.ndarray, " width"],
    main: Int[np.ndarray, " main"],
) -> tuple[Float[np.ndarray, " token"], Bool[np.ndarray, " token"]]:
    """Absorption fraction of each token, and whether the concept is absorbed in full.

    `total` is the activation's projection on the unit vector `direction`; where it is not above 0 there is nothing to absorb. With
    `M` of it from the main units and `A` the least of what is missing and what up to three aligned others give: `A / (A + M)`; 0
    where the main units give all of it or the others give less than 0.4 of it, 1 where the main units give nothing. In full: no
    main unit fires, and the unit that gives most is aligned and gives 0.4 of it.
    """
    along = decoder @ direction
    cosines = along / np.maximum(np.linalg.norm(decoder, axis=1), 1e-12)
    given = latents * along
    from_main = given[:, main].sum(1)
    others = np.where((cosines >= ABSORBER_COSINE) & (given > 0), given, 0)
    others[:, main] = 0
    from_others = np.sort(others, axis=1)[:, -ABSORBERS:].sum(1)
    enough = (total > 0) & (from_others >= ABSORBER_SHARE * total)
    taken = np.minimum(from_others, total - from_main)
    fraction = np.where(from_main <= 0, 1.0, taken / np.where(from_main <= 0, 1.0, np.maximum(taken + from_main, 1e-30)))
    fraction = np.where((from_main >= total) | ~enough, 0.0, fraction.clip(0, 1))
    top = given.argmax(1)
    most = given[np.arange(len(given)), top]
    silent = (np.abs(latents[:, main]) < SILENT).all(1)
    full = silent & (cosines[top] >= FULL_COSINE) & (total >= 0) & (most >= ABSORBER_SHARE * total)
    return fraction, full


_ROWS = ("split_units", "absorption_fraction", "full_absorption")


def _all(result: Result) -> dict[str, Result]:
    return dict.fromkeys(_ROWS, result)


def _means(per_concept: Mapping[str, Mapping[str, Result]]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for row in _ROWS:
        values = [numbers[row].value for numbers in per_concept.values() if numbers[row].value is not None]
        found[row] = (
            bootstrap_mean(np.array(values)) if values else not_measurable("no general concept is told by a probe, or is frequent")
        )
    return found
