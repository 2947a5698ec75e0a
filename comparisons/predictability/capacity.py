"""Structure against capacity: what a fixed mask, a learned mask and a narrow dense model make of the same number of weights.

EASE, a linear model with one constraint, is said to do as well as deep autoencoders of far more capacity on some data:
"structural bias over capacity" (arXiv:1905.03375, section 5, at second hand). Here the same is asked of language models: at
equal nonzeros and equal tokens, does it matter which weights there are? A fixed mask is drawn before training, a learned one is
found in it, a narrow dense model spends every weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sparse_lens.comparisons.pair import model_facts
from sparse_lens.errors import CheckpointError, ConfigError, UnknownNameError
from sparse_lens.hooks import load
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable
from sparse_lens.training import window_losses

ALLOWED_DIFFERENCE = 0.05
"""Models whose nonzero matrix weights or tokens differ by a larger share than this are not compared."""


@dataclass(frozen=True, eq=False)
class _Model:
    losses: Float[np.ndarray, " window"]
    nonzeros: int
    tokens: int


def structural_bias(
    arms: Mapping[str, Sequence[str | Path]], heldout: Int[np.ndarray, "window pos"], *, baseline: str
) -> dict[str, dict[str, Result]]:
    """Loss of each arm and its difference from the `baseline` arm, each arm a list of trained models' folders (its seeds).

    `loss` (nats per token on `heldout`, windows of token ids), `nonzeros` (of the matrices), `tokens` trained on, and
    `loss_above_baseline` with its bootstrap interval over windows, the models of an arm averaged: on one window all arms read the
    same. With several seeds on both sides its null is the spread that seeds alone make: the largest difference between two
    models of one arm. Not measurable against an arm of another number of nonzeros or tokens.
    Raises `UnknownNameError` for a `baseline` that is no arm, `ConfigError` for an arm without models, `CheckpointError` for a
    model without the record of its training.
    """
    if baseline not in arms:
        raise UnknownNameError("arm", baseline, arms)
    if empty := [name for name, folders in arms.items() if not folders]:
        raise ConfigError(f"no models are given for {', '.join(empty)}; an arm needs at least one")
    models = {name: [_measured(Path(folder), heldout) for folder in folders] for name, folders in arms.items()}
    return {name: _arm(found) | {"loss_above_baseline": _difference(found, models[baseline])} for name, found in models.items()}


def _measured(folder: Path, heldout: np.ndarray) -> _Model:
    try:
        tokens = int(json.loads((folder / "training.json").read_text(encoding="utf-8"))["tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has no training.json that says how many tokens it was trained on ({error})") from error
    bridge: Any = load(folder)
    nonzeros = model_facts(bridge, heldout[:1])["matrix_nonzeros"].value
    return _Model(np.asarray(window_losses(bridge, heldout), dtype=np.float64), int(nonzeros or 0), tokens)


def _arm(models: Sequence[_Model]) -> dict[str, Result]:
    seeds = len(models)
    return {
        "loss": bootstrap_mean(np.mean([model.losses for model in models], axis=0), seeds=seeds),
        "nonzeros": exact(float(np.mean([model.nonzeros for model in models])), seeds=seeds),
        "tokens": exact(float(np.mean([model.tokens for model in models])), seeds=seeds),
    }


def _difference(models: Sequence[_Model], baseline: Sequence[_Model]) -> Result:
    for what in ("nonzeros", "tokens"):
        here, there = (float(np.mean([getattr(model, what) for model in side])) for side in (models, baseline))
        if abs(here / there - 1) > ALLOWED_DIFFERENCE:
            return not_measurable(f"{here:,.0f} {what} against {there:,.0f} of the baseline: not equal", seeds=len(models))
    seeds = min(len(models), len(baseline))
    spread = max(_spread(models), _spread(baseline)) if seeds > 1 else None
    by_window = [np.mean([model.losses for model in side], axis=0) for side in (models, baseline)]
    return bootstrap_mean(by_window[0] - by_window[1], null=spread, seeds=seeds)


def _spread(models: Sequence[_Model]) -> float:
    return float(np.ptp([model.losses.mean() for model in models]))
