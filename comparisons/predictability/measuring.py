"""How much of a feature the other features give away: held-out R² of EASE over neurons or latents (arXiv:1905.03375).

A code without redundancy has R² near 0. Everything is computed from streamed sums of products, so memory grows with features, not
with tokens. Windows of tokens are shared out by a hash of their ids: three quarters to fit, an eighth to choose the ridge, an
eighth to score. More features predict better: columns are comparable at equal numbers of features and tokens only
(`predictability_table`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.comparisons.predictability.feature_sums import PARTS, FeatureSums, Products, ShuffledSample, part_of_windows
from sparse_lens.comparisons.predictability.predicted_features import Predictability, best_ridge, deviations, predict_features
from sparse_lens.comparisons.side_by_side import Heldout, side_by_side
from sparse_lens.dictionaries import Bridge, Dictionary, harvest_activations, random_rotation
from sparse_lens.dictionaries.harvest import refuse_padding
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.results import Result, exact, not_measurable

MOST_FEATURES = 4096
"""A dictionary with more latents is measured on as many of them, drawn at random: three matrices of that size are kept."""

FROM_ALL = "from_all_heldout_r2_mean"

_FEWEST = 2


@dataclass
class PredictabilitySums:
    """Takes in activations window by window, so that one harvest can feed it beside other measures.

    `most` bounds the features; `seed` draws them, the subset of `results`, and the controls.
    """

    dictionary: Dictionary
    most: int = MOST_FEATURES
    seed: int = 0
    chosen: Tensor = field(init=False, repr=False)
    parts: dict[str, FeatureSums] = field(init=False, repr=False)
    sample: ShuffledSample = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.most < _FEWEST:
            raise ConfigError(f"predictability needs two features or more, got most={self.most}")
        self.chosen = torch.randperm(self.dictionary.n_latents, generator=self._generator())[: self.most].sort().values
        self.parts = {part: FeatureSums.empty(len(self.chosen)) for part in PARTS}
        self.sample = ShuffledSample()

    @torch.no_grad()
    def add(self, tokens: Any, source: Float[Tensor, "token d_in"]) -> None:
        """Take in whole windows of token ids `[batch, pos]` and their activations at `hook_in`, flattened over positions.

        Raises `DataError` for latents that are not finite.
        """
        ids = np.asarray(tokens)
        latents = self.dictionary.encode(source.to(self.dictionary.W_dec.dtype))
        if wrong := int((~latents.isfinite()).sum()):
            raise DataError(f"dictionary {self.dictionary.name!r} gave {wrong} latents that are NaN or infinite; check its weights")
        latents = latents[:, self.chosen].cpu()
        of_token = torch.from_numpy(np.repeat(part_of_windows(ids), ids.shape[1]))
        for number, part in enumerate(PARTS):
            self.parts[part].add(latents[of_token == number])
        self.sample.add(ids, latents)

    def alive(self) -> Int[Tensor, " alive"]:
        """Which of the `chosen` features vary, and are nonzero on ten tokens or more, in every part."""
        return torch.stack([part.varies() for part in self.parts.values()]).all(0).nonzero().flatten()

    def measure(self, n_features: int | None = None, *, shuffled: bool = False, rotated: bool = False) -> Predictability:
        """Predict each of `n_features` features that are alive, drawn at random (default: all), from the others.

        `shuffled` puts each feature's values in an order of its own, on a sample of the tokens, and keeps as many per token as were
        nonzero there; `rotated` mixes the features by a random rotation, which takes nothing from what can be read off them
        linearly. Raises `DataError` for fewer features that are alive than asked for.
        """
        alive = self.alive()
        wanted = max(_FEWEST, len(alive) if n_features is None else n_features)
        if wanted > len(alive):
            name, seen = self.dictionary.name, len(self.chosen)
            raise DataError(f"{len(alive)} of {seen} features of {name!r} are alive, {wanted} are needed; give more windows")
        subset = alive[torch.randperm(len(alive), generator=self._generator())[:wanted]].sort().values
        parts = self.parts
        if shuffled:
            parts = self.sample.shuffled(self._generator())
            subset = subset[parts["fit"].varies()[subset]]
            if len(subset) < _FEWEST:
                raise DataError(
                    f"{len(subset)} features of {self.dictionary.name!r} fire often enough in the sample to be shuffled"
                )
        return self._predicted(parts, subset, rotated)

    def _predicted(self, parts: Mapping[str, FeatureSums], subset: Int[Tensor, " feature"], rotated: bool) -> Predictability:
        """Part after part, for at 4,096 features each is 134 MB."""
        mean = parts["fit"].mean
        rotation = random_rotation(len(subset), self.seed, dtype=torch.float64) if rotated else None

        def products(part: str) -> Products:
            about = parts[part].about(mean, subset)
            return about if rotation is None else about.rotated(rotation)

        fit = products("fit")
        scale = deviations(fit)
        fit.rescale(scale)
        choose = products("choose")
        choose.rescale(scale)
        lam = best_ridge(fit, choose)
        del choose
        score = products("score")
        score.rescale(scale)
        return predict_features(fit, score, lam, self.chosen[subset])

    def results(self, n_features: int | None = None) -> dict[str, Result]:
        """`Predictability.results`, its controls `shuffled_…` (also the nulls) and `rotated_…`, and how many features are alive.

        `from_all_heldout_r2_mean` beside it is of every live feature (of `most` at the most) from all the others: equal numbers of
        features are unequal shares of two models, and a drawn part of a wide one leaves out what predicts the rest best. Not
        measurable, each with the reason, where fewer features are alive than asked for.
        """
        alive, needed = len(self.alive()), max(_FEWEST, n_features or 0)
        counted = {"alive_features": exact(alive, n=len(self.chosen)), "latents": exact(self.dictionary.n_latents)}
        if alive < needed:
            few = not_measurable(f"{alive} of {len(self.chosen)} features are alive, {needed} are needed")
            return dict.fromkeys((*Predictability.NUMBERS, FROM_ALL), few) | counted
        found = self.measure(n_features).results
        found[FROM_ALL] = self.from_all(found, n_features)
        for control in ("shuffled", "rotated"):
            for name, result in self._control(n_features, control).items():
                found[f"{control}_{name}"] = result
        for name in Predictability.COMPARED:
            found[name] = replace(found[name], null=found[f"shuffled_{name}"].value)
        return found | counted

    def from_all(self, found: Mapping[str, Result], n_features: int | None) -> Result:
        """The mean R² of every live feature from all others; that which was `found` of so many, where these are all."""
        every = n_features is None or n_features == len(self.alive())
        return found["heldout_r2_mean"] if every else self.measure().results["heldout_r2_mean"]

    def _control(self, n_features: int | None, control: str) -> dict[str, Result]:
        try:
            results = self.measure(n_features, shuffled=control == "shuffled", rotated=control == "rotated").results
        except DataError as too_few:
            return dict.fromkeys(Predictability.COMPARED, not_measurable(str(too_few)))
        return {name: results[name] for name in Predictability.COMPARED}

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def collect_sums(bridge: Bridge, dictionary: Dictionary, token_batches: Iterable[Any], *, seed: int = 0) -> PredictabilitySums:
    """Run the bridge on batches of token ids `[batch, pos]` and take in what the dictionary makes of them."""
    sums = PredictabilitySums(dictionary, seed=seed)
    for batch in token_batches:
        refuse_padding(batch)
        (activations,) = harvest_activations(bridge, [dictionary.hook_in], [batch])
        sums.add(batch, activations[dictionary.hook_in])
    return sums


def predictability(
    bridge: Bridge, dictionary: Dictionary, token_batches: Sequence[Any], *, n_features: int | None = None, seed: int = 0
) -> dict[str, Result]:
    """Held-out predictability of a dictionary's latents (arXiv:1905.03375), over batches of token ids `[batch, pos]`.

    Lower R² is a less redundant code. With the controls of `PredictabilitySums.results`, and `random_weights_…`: the same on the
    model with every tensor's nonzero weights shuffled, which shows what its shape and its tokens alone give.
    Raises what `harvest_activations` raises, and `DataError` for latents that are not finite.
    """
    found = collect_sums(bridge, dictionary, token_batches, seed=seed).results(n_features)
    return found | _random_weights(bridge, dictionary, token_batches, n_features, seed)


def predictability_columns(
    columns: Mapping[str, tuple[Bridge, Dictionary]], token_batches: Sequence[Any], *, seed: int = 0
) -> dict[str, dict[str, Result]]:
    """`predictability` of several columns on the same tokens, each on as many features as the one with the fewest alive has.

    A random mask of equal size is no control here: nothing is masked.
    """
    sums = {name: collect_sums(*column, token_batches, seed=seed) for name, column in columns.items()}
    common = max(_FEWEST, min(len(column.alive()) for column in sums.values()))
    return {
        name: sums[name].results(common) | _random_weights(bridge, dictionary, token_batches, common, seed)
        for name, (bridge, dictionary) in columns.items()
    }


def predictability_table(
    columns: Mapping[str, tuple[Bridge, Dictionary]],
    token_batches: Sequence[Any],
    *,
    heldout: Heldout | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Result]]:
    """`predictability_columns`, with each model's loss on `heldout` windows of token ids, its parameters and nonzeros.

    A row `A - B` is the first column less each other one.
    """
    bridges = {name: bridge for name, (bridge, _) in columns.items()}
    return side_by_side(predictability_columns(columns, token_batches, seed=seed), bridges, heldout)


def _random_weights(
    bridge: Bridge, dictionary: Dictionary, token_batches: Sequence[Any], n_features: int | None, seed: int
) -> dict[str, Result]:
    with random_weights(bridge, seed=seed):
        sums = collect_sums(bridge, dictionary, token_batches, seed=seed)
    names = (*Predictability.COMPARED, FROM_ALL)
    if (alive := len(sums.alive())) < max(_FEWEST, n_features or 0):
        few = not_measurable(f"{alive} features are alive with random weights, too few")
        return {f"random_weights_{name}": few for name in names}
    found = sums.measure(n_features).results
    found[FROM_ALL] = sums.from_all(found, n_features)
    return {f"random_weights_{name}": found[name] for name in names}
