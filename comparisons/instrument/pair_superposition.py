"""Superposition of both models of a pair: effective features of SAEs on the neurons (arXiv:2512.13568), and two controls of it.

The token held fixed (`same_token`): a layer that holds a table of words looks as rich as one that computes. And shift: where
sparsity only made superposition dear, it should come back on text that the model was not trained for.
"""

from __future__ import annotations

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
from sparse_lens.comparisons.rows.superposition import measure_superposition
from sparse_lens.comparisons.shift import python_ladder
from sparse_lens.dictionaries import Dictionary, SAETrainingConfig, TrainedSAE, train_sae
from sparse_lens.results import Result, exact, not_measurable

PSI, SAME_TOKEN, RENAMED = "psi", "same_token_psi", "psi_rise_renamed"
"""Features per neuron; with the token held fixed; how much more where all identifiers are renamed to rare strings."""

_CONTROLLED = (PSI, SAME_TOKEN, RENAMED)


def measure_pair_superposition(pair: ModelPair, size: Size) -> Measured:
    """Features per neuron of SAEs of twice as many latents as neurons, layer by layer, and what is left of them in each control.

    Neurons themselves cannot be more features than neurons. An SAE is as good in one basis as in another: the control is the
    model with shuffled weights, and an SAE of its own. `psi_as_is` and `psi_renamed` read one SAE on held-out files as they are
    and with every identifier renamed; of `psi_rise_renamed` they are the two ends.
    """
    batches = reading_batches(pair, size.tokens)
    ladder = python_ladder(pair, "identifiers", n_windows=size.shift_windows)
    as_is, renamed = (_in_parts(ladder.windows[level][:, :-1]) for level in (0, -1))

    def measure(bridge: Any, units: Dictionary) -> dict[str, Result]:
        with tempfile.TemporaryDirectory() as folder:
            trained = train_neuron_sae(pair, bridge, units, size, Path(folder) / "sae", batches)
        sae, fvu = trained.dictionary, trained.statistics.fvu
        found = measure_superposition(bridge, sae, batches)
        ends = [measure_superposition(bridge, sae, windows)[PSI] for windows in (as_is, renamed)]
        return {
            **{name: found[name] for name in (PSI, "effective_features")},
            "fvu": not_measurable("the activation does not vary") if fvu is None else exact(fvu),
            **measure_same_token(bridge, sae, batches),
            **dict(zip(("psi_as_is", "psi_renamed"), ends, strict=True)),
            RENAMED: _rise(*ends),
        }

    return with_controls(pair, measure, _CONTROLLED, rotated=False)


def train_neuron_sae(
    pair: ModelPair, bridge: Any, units: Dictionary, size: Size, folder: Path, held_out: Sequence[Int[np.ndarray, "window pos"]]
) -> TrainedSAE:
    """An SAE of a layer's neurons, of twice as many latents, trained on the pair's text into `folder`."""
    buffer = min(65_536, size.sae_tokens)
    config = SAETrainingConfig(d_sae=2 * units.n_latents, k=SAE_K, tokens=size.sae_tokens, batch_size=2048, buffer_tokens=buffer)
    reading = reading_windows(pair, int(1.3 * size.sae_tokens) + 2 * buffer)
    batches = np.array_split(reading, max(1, len(reading) // 16))
    return train_sae(bridge, units.hook_in, batches, config, folder, held_out=held_out, progress=False)


def _in_parts(windows: Int[np.ndarray, "window pos"]) -> list[Int[np.ndarray, "window pos"]]:
    return np.array_split(windows, max(1, len(windows) // 16))


def _rise(before: Result, after: Result) -> Result:
    if before.value is None or after.value is None:
        return not_measurable(before.reason or after.reason or "", n=min(before.n, after.n))
    return exact(after.value - before.value, n=min(before.n, after.n))
