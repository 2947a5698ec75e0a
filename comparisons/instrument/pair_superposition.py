"""Superposition of both models of a pair: effective features of SAEs on the neurons (arXiv:2512.13568), and two controls of it.

The token held fixed (`same_token`): a layer that holds a table of words looks as rich as one that computes. And shift: where
sparsity only made superposition dear, it should come back on text that the model was not trained for.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from sparse_lens.comparisons.instrument.neuron_controls import with_controls
from sparse_lens.comparisons.instrument.sizes import SAE_K, Measured, Size, reading_batches
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.reading import reading_windows
from sparse_lens.comparisons.rows.same_token import measure_same_token
from sparse_lens.comparisons.rows.superposition import SuperpositionSums, measure_superposition
from sparse_lens.comparisons.shift import python_ladder
from sparse_lens.comparisons.shift.ladder import ShiftLadder
from sparse_lens.dictionaries import Dictionary, SAETrainingConfig, TrainedSAE, harvest_activations, train_sae
from sparse_lens.dictionaries.measurement import StatisticsSums
from sparse_lens.errors import DataError
from sparse_lens.results import Result, exact, not_measurable, scaled

PSI, SAME_TOKEN, RISE = "psi", "same_token_psi", "log_psi_rise"
"""Features per neuron; the share of them that is left with the token held fixed, per neuron; the logarithm of their number on text
with every identifier renamed over that on the same text as it is."""

_CONTROLLED = (PSI, SAME_TOKEN, RISE)
_LEVELS = {"as_is": 0, "renamed": -1}


def measure_pair_superposition(pair: ModelPair, size: Size) -> Measured:
    """Features per neuron of SAEs of twice as many latents as neurons, layer by layer, and what is left of them in each control.

    Neurons themselves cannot be more features than neurons. An SAE is as good in one basis as in another: the control is the
    model with shuffled weights, and an SAE of its own. `same_token_psi` is psi times `same_token_share`, and `log_psi_rise` has
    `psi_as_is` and `psi_renamed` beside it, with what the SAE leaves unexplained there: what it has no latent for it cannot count.
    """
    batches, ladder = reading_batches(pair, size.tokens), _ladder(pair, size)

    def measure(bridge: Any, units: Dictionary) -> dict[str, Result]:
        with tempfile.TemporaryDirectory() as folder:
            trained = train_neuron_sae(pair, bridge, units, size, Path(folder) / "sae", batches)
        found = measure_superposition(bridge, trained.dictionary, batches)
        same = measure_same_token(bridge, trained.dictionary, batches)
        share = same["same_token_share"]
        return {
            **{name: found[name] for name in (PSI, "effective_features")},
            "fvu": unexplained(trained.statistics.fvu),
            **same,
            SAME_TOKEN: share if share.value is None else scaled(found[PSI], share.value),
            **under_shift(bridge, trained.dictionary, ladder),
        }

    return with_controls(pair, measure, _CONTROLLED, rotated=False, layers=size.layers)


def train_neuron_sae(
    pair: ModelPair, bridge: Any, units: Dictionary, size: Size, folder: Path, held_out: Sequence[Int[np.ndarray, "_ pos"]]
) -> TrainedSAE:
    """An SAE of a layer's neurons, of twice as many latents, trained on the pair's text into `folder`."""
    buffer = min(65_536, size.sae_tokens)
    config = SAETrainingConfig(d_sae=2 * units.n_latents, k=SAE_K, tokens=size.sae_tokens, batch_size=2048, buffer_tokens=buffer)
    reading = reading_windows(pair, int(1.3 * size.sae_tokens) + 2 * buffer)
    batches = np.array_split(reading, max(1, len(reading) // 16))
    return train_sae(bridge, units.hook_in, batches, config, folder, held_out=held_out, progress=False)


def unexplained(fvu: float | None) -> Result:
    """The share of variance that a dictionary leaves unexplained."""
    return not_measurable("the activation does not vary") if fvu is None else exact(fvu)


def _ladder(pair: ModelPair, size: Size) -> ShiftLadder | str:
    """Held-out files as they are and with identifiers renamed; why not, for a pair that has none."""
    try:
        return python_ladder(pair, "identifiers", n_windows=size.shift_windows)
    except DataError as error:
        return str(error)


def under_shift(bridge: Any, sae: Dictionary, ladder: ShiftLadder | str) -> dict[str, Result]:
    """psi and what is unexplained at both ends of a ladder, and `log_psi_rise`; with a reason for a ladder it is that of each."""
    if isinstance(ladder, str):
        return dict.fromkeys([*(f"{name}_{level}" for name in (PSI, "fvu") for level in _LEVELS), RISE], not_measurable(ladder))
    found: dict[str, Result] = {}
    for level, place in _LEVELS.items():
        windows, start = ladder.windows[place][:, :-1], ladder.read_from[place]
        found |= {f"{name}_{level}": result for name, result in _read_from(bridge, sae, windows, start).items()}
    return found | {RISE: _log_ratio(*(found[f"{PSI}_{level}"] for level in _LEVELS))}


def _read_from(bridge: Any, sae: Dictionary, windows: Int[np.ndarray, "window pos"], start: int) -> dict[str, Result]:
    """psi of the latents at positions from `start` on."""
    sums, statistics = SuperpositionSums(sae), StatisticsSums(sae)
    parts = np.array_split(windows, max(1, len(windows) // 16))
    for part, harvested in zip(parts, harvest_activations(bridge, [sae.hook_in], parts), strict=True):
        read = harvested[sae.hook_in].unflatten(0, (len(part), -1))[:, start:].flatten(0, 1)
        sums.add(read, read)
        statistics.add(read, read)
    return {PSI: sums.results()[PSI], "fvu": unexplained(statistics.statistics().fvu)}


def _log_ratio(before: Result, after: Result) -> Result:
    if before.value is None or after.value is None:
        return not_measurable(before.reason or after.reason or "", n=min(before.n, after.n))
    return exact(math.log(after.value / before.value), n=min(before.n, after.n))
