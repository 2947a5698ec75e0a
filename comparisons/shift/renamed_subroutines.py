"""Structural compositionality along a ladder of shift: does ablating a subroutine's mask still spare the other one?

The masks are learned on prompts as they are, and scored on prompts whose names are written as rare strings: a model can keep its
accuracy under shift and lose the division of labour behind it, or the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.comparisons.compositionality.mask_learning import learn_weight_masks
from sparse_lens.comparisons.compositionality.scoring import right_answers, task_loss
from sparse_lens.comparisons.compositionality.shared_prompts import SharedPrompts, sample_shared
from sparse_lens.comparisons.compositionality.weight_masks import SITES, MaskConfig, Masks, maskable, under_masks, without
from sparse_lens.comparisons.shift.python_ladders import SHARES
from sparse_lens.comparisons.shift.renaming import rare_names, renamed_with_places
from sparse_lens.errors import DataError


def renamed_ablation(
    tokenizer: Any,
    task_a: str = "quote",
    task_b: str = "bracket",
    *,
    config: MaskConfig | None = None,
    mask_seeds: Sequence[int] = (0,),
    n_search: int = 512,
    n_heldout: int = 256,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> RenamedAblation:
    """`d_abl` of two subroutines as a score for `robustness_slopes`, with a share of the held-out prompts' names written rare.

    Of each prompt, and in the mean over both subroutines and the mask seeds: 1 if the own answer is right without the mask, less 1
    if the other one is (equal logits count half). Not floored at chance, as a single prompt cannot be. Masks are learned for each
    model that is scored, on search prompts as they are, and kept with the score. Raises as `sample_shared`, `maskable` and
    `learn_weight_masks`; `DataError` for a share that is not among `shares`.
    """
    names = (task_a, task_b)
    search = sample_shared(tokenizer, names, n_search, seed=seed, split="search")
    heldout = {
        share: sample_shared(tokenizer, names, n_heldout, seed=seed, split="heldout", rewrite=partial(_written_rare, share, seed))
        for share in shares
    }
    return RenamedAblation(search, heldout, config or MaskConfig(), tuple(mask_seeds))


def _written_rare(share: float, seed: int, text: str, places: Sequence[int], row: int) -> tuple[str, list[int]]:
    return renamed_with_places(text, rare_names([text], share, seed=seed + row), places)


@dataclass(frozen=True, eq=False)
class RenamedAblation:
    """The score of `renamed_ablation`; called with a bridge and a share it gives a number for each held-out prompt."""

    search: SharedPrompts
    heldout: dict[float, SharedPrompts]
    config: MaskConfig
    mask_seeds: tuple[int, ...]
    _ablated: dict[str, list[tuple[int, Masks]]] = field(default_factory=dict)

    def __call__(self, bridge: Any, share: float) -> Float[np.ndarray, " prompt"]:
        """Own less other answer right, in the mean over masks."""
        if share not in self.heldout:
            raise DataError(f"the prompts were shifted by {', '.join(map(str, self.heldout))}, not by {share}; name it in shares=")
        prompts, found = self.heldout[share], []
        for which, kept in self._without_masks(bridge):
            right = right_answers(under_masks(bridge, kept), prompts)
            found.append((right[which] - right[1 - which]).double().cpu().numpy())
        return np.mean(found, axis=0)

    def _without_masks(self, bridge: Any) -> list[tuple[int, Masks]]:
        """What each mask leaves of the model, with the subroutine that it is of; learned once for the weights of a bridge."""
        weights = model_fingerprint(bridge)
        if weights not in self._ablated:
            allowed = maskable(bridge, SITES, self.config.from_layer)
            self._ablated[weights] = [
                (which, without(allowed, self._mask(bridge, allowed, which, mask_seed)))
                for which in range(2)
                for mask_seed in self.mask_seeds
            ]
        return self._ablated[weights]

    def _mask(self, bridge: Any, allowed: Masks, which: int, mask_seed: int) -> Masks:
        with torch.enable_grad():
            return learn_weight_masks(bridge, allowed, task_loss(self.search, which, self.config), self.config, seed=mask_seed)
