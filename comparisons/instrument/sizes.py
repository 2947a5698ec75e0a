"""How much the measures of the claims read, and on what: two models of a pair by their role, its tasks, its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons.compositionality import CHEAP, MaskConfig
from sparse_lens.comparisons.fracture.model_fracture import FractureConfig
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.reading import reading_windows
from sparse_lens.results import Result, not_measurable

Measured = dict[str, dict[str, Result]]
"""The numbers of one measure by role and metric."""

Seed = Mapping[str, Measured]
"""What was measured on the pair of one training seed, by measure."""

NOTHING = not_measurable("not measured in this run")

ROLES = {"sparse": "sparse", "dense": "dense_matched"}
"""What a claim calls the sides, and what the pair calls them."""

SAE_K = 16
"""Latents of an SAE that are active at a token."""

MOST_LAYERS = 4
"""So many layers are read of a deeper model in a family; the two models of a pair are read in all."""

ON_TASK = "_on_"
"""Between a metric's name and a task's: the metric on that task alone."""


@dataclass(frozen=True)
class Size:
    """How much each measure reads; the default, and the least that still runs everything."""

    tokens: int = 60_000
    labelled_tokens: int = 60_000
    sae_tokens: int = 200_000
    fracture: FractureConfig = FractureConfig()  # noqa: RUF009 - frozen
    tasks: int = 5
    masks: MaskConfig = MaskConfig()  # noqa: RUF009 - frozen
    mask_seeds: tuple[int, ...] = (0, 1, 2)
    binding_pairs: int = 240
    shift_windows: int = 128
    search: SearchConfig = SearchConfig()  # noqa: RUF009 - frozen
    layers: Sequence[int] | None = None
    """Those that superposition, concepts and predictability read; None: all."""


SMOKE = Size(
    tokens=6_400,
    labelled_tokens=12_800,
    sae_tokens=4_096,
    fracture=FractureConfig(n_pairs=2, n_units=16),
    tasks=1,
    masks=CHEAP.model_copy(update={"steps": 20}),
    mask_seeds=(0,),
    binding_pairs=48,
    shift_windows=16,
    search=SearchConfig(steps=20, search_pairs=64, evaluation_pairs=32, evaluations=6),
)


def reading_batches(pair: ModelPair, n_tokens: int) -> list[Int[np.ndarray, "_ pos"]]:
    """Windows that dictionaries and neurons are measured on: another draw than that which dictionaries are trained on.

    Both draw from the same files. At the default sizes and with Python 3.11's library no file is in both, which nothing enforces.
    """
    windows = reading_windows(pair, n_tokens, seed=1)
    return np.array_split(windows, max(1, len(windows) // 16))


def layers_read(n_layers: int) -> list[int]:
    """All of up to `MOST_LAYERS`, of more as many from the first to the last: what a layer costs grows with those around it."""
    if n_layers <= MOST_LAYERS:
        return list(range(n_layers))
    return [round(step * (n_layers - 1) / (MOST_LAYERS - 1)) for step in range(MOST_LAYERS)]


def tasks_of(pair: ModelPair) -> list[str]:
    """The tasks that a pair is compared on."""
    return list(pair.default_tasks or ())
