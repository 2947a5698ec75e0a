"""A linear probe for a task's answer, so that fracture is compared at equal decodability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.dictionaries import Dictionary
from sparse_lens.hooks import splice
from sparse_lens.results import Result, bootstrap_mean
from sparse_lens.tasks import TaskBatch, get_task

_RIDGE = 1e-3


def probe_accuracies(
    bridge: Any, dictionary: Dictionary, tasks: Sequence[str], *, n_pairs: int = 128, seed: int = 0
) -> dict[str, Result]:
    """How well the answer can be read off the latents at the answer position, by a ridge classifier for each task.

    Fitted on `n_pairs` of the search templates, scored on as many of the held-out ones: `probe_accuracy` on their clean prompts,
    `probe_accuracy_partner` on the corrupt ones; means over tasks and prompts, null 0.5. A rotation of the latents changes nothing.
    """
    right: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name in tasks:
        fitted, scored = (
            get_task(name).sample(bridge.tokenizer, n_pairs, seed=seed, split=split) for split in ("search", "heldout")
        )
        inputs = torch.cat([_latents(bridge, dictionary, fitted, side) for side in (0, 1)])
        classify = ridge_classifier(inputs, torch.cat([_labels(fitted, side) for side in (0, 1)]))
        for side in (0, 1):
            guesses = classify(_latents(bridge, dictionary, scored, side))
            right[side].append((guesses == _labels(scored, side)).double().numpy())
    names = ("probe_accuracy", "probe_accuracy_partner")
    return {name: bootstrap_mean(np.concatenate(values), null=0.5) for name, values in zip(names, right, strict=True)}


def ridge_classifier(
    inputs: Float[Tensor, "row feature"], labels: Bool[Tensor, " row"]
) -> Callable[[Float[Tensor, "other feature"]], Bool[Tensor, " other"]]:
    """Least squares on centered inputs with targets 1 and -1, with a thousandth of the mean squared norm as ridge."""
    mean = inputs.double().mean(0)
    centered = inputs.double() - mean
    kernel = centered @ centered.T
    ridge = _RIDGE * float(kernel.diagonal().mean()) + 1e-12
    weights = torch.linalg.solve(kernel + ridge * torch.eye(len(kernel), dtype=torch.float64), 2 * labels.double() - 1)
    direction = centered.T @ weights
    offset = 2 * labels.double().mean() - 1
    return lambda others: (others.double() - mean) @ direction + offset > 0


@torch.no_grad()
def _latents(bridge: Any, dictionary: Dictionary, batch: TaskBatch, side: int) -> Float[Tensor, "pair latent"]:
    """Latents at the answer position of one side of every pair."""
    with splice(bridge, [dictionary], mode="edit") as seen:
        bridge(torch.from_numpy((batch.clean, batch.corrupt)[side]), return_type=None)
    return seen[dictionary.name].latents[torch.arange(len(batch)), torch.from_numpy(batch.length) - 1]


def _labels(batch: TaskBatch, side: int) -> Bool[Tensor, " pair"]:
    """Whether the right answer is the one of the two with the larger id."""
    larger = torch.from_numpy(batch.target > batch.distractor)
    return larger if side == 0 else ~larger
