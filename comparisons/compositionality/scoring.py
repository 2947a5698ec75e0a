"""Learning and scoring the masks of one seed: what each subroutine's mask keeps and what it leaves, and random masks as large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.comparisons.compositionality.cells import Cell, difference
from sparse_lens.comparisons.compositionality.mask_learning import LossOf, learn_weight_masks
from sparse_lens.comparisons.compositionality.shared_prompts import SharedPrompts
from sparse_lens.comparisons.compositionality.weight_masks import (
    MaskConfig,
    Masks,
    Run,
    n_kept,
    random_masks,
    under_masks,
    without,
)

_DRAWS, _ROWS = 4, 64


@dataclass(frozen=True, eq=False)
class MaskStudy:
    """A model, the prompts that masks are learned on and those that they are scored on, and the parameters that are masked.

    Cells are pure functions of the weights that the model has when they are asked for, of its name for them, and of the seed.
    """

    model: Any
    search: SharedPrompts
    heldout: SharedPrompts
    config: MaskConfig
    parameters: tuple[str, ...]

    def cells(self, weights: str, seed: int) -> Iterator[tuple[Cell, Masks]]:
        """A cell and its mask for each of the two subroutines."""
        parameters = dict(self.model.named_parameters())
        allowed = {name: parameters[name].detach() != 0 for name in self.parameters}
        for which in range(2):
            mask = learn_weight_masks(self.model, allowed, task_loss(self.search, which, self.config), self.config, seed=seed)
            yield self._cell(allowed, mask, which, seed, weights), mask

    def _cell(self, allowed: Masks, mask: Masks, which: int, seed: int, weights: str) -> Cell:
        return Cell(
            subroutine=self.heldout.names[which],
            seed=seed,
            weights=weights,
            kept=n_kept(mask),
            kept_share=n_kept(mask) / n_kept(allowed),
            accuracies=self._scored("sub", mask, which) | self._scored("abl", without(allowed, mask), which),
            random=self._random(allowed, mask, which, seed),
        )

    def _random(self, allowed: Masks, mask: Masks, which: int, seed: int) -> dict[str, float | None]:
        """Mean differences of random masks: anywhere, and (the paper's `complement_sampled`) outside the mask."""
        generator = torch.Generator().manual_seed(seed)

        def mean(part: str, among: Masks) -> float | None:
            drawn = [random_masks(mask, among, generator, self.config.units) for _ in range(_DRAWS)]
            kept = [one if part == "sub" else without(allowed, one) for one in drawn if one is not None]
            return float(np.mean([difference(self._scored(part, one, which), part) for one in kept])) if kept else None

        return {
            "random_d_sub": mean("sub", allowed),
            "random_d_abl": mean("abl", allowed),
            "complement_d_abl": mean("abl", without(allowed, mask)),
        }

    def _scored(self, part: str, kept: Masks, which: int) -> dict[str, float]:
        values = accuracies(under_masks(self.model, kept), self.heldout).tolist()
        return {f"{part}_own": values[which], f"{part}_other": values[1 - which]}


def task_loss(prompts: SharedPrompts, which: int, config: MaskConfig) -> LossOf:
    """Two-token cross-entropy of one subroutine on random rows of the prompts, in nats."""

    def loss_of(run: Run, generator: torch.Generator) -> Tensor:
        batch = prompts.rows(torch.randint(len(prompts), (config.batch_size,), generator=generator))
        return F.softplus(-margins(run, batch)[which]).mean()

    return loss_of


def margins(run: Run, prompts: SharedPrompts) -> Float[Tensor, "subroutine row"]:
    """Right answer's logit minus the wrong one's, of both subroutines."""
    logits = run(prompts.inputs)
    position, right, wrong = (part.to(logits.device) for part in (prompts.position, prompts.right, prompts.wrong))
    row = torch.arange(len(prompts), device=logits.device)
    return logits[row, position, right] - logits[row, position, wrong]


def accuracies(run: Run, prompts: SharedPrompts) -> Float[Tensor, " subroutine"]:
    """Share of right answers of both subroutines; equal logits count half, as the coin they are."""
    return right_answers(run, prompts).mean(1)


@torch.no_grad()
def right_answers(run: Run, prompts: SharedPrompts) -> Float[Tensor, "subroutine row"]:
    """1 where the right answer has the larger logit, 0.5 where both are equal, 0 elsewhere."""
    by_length = prompts.position.amax(0).argsort()  # rows are cut to the longest of their batch
    found = torch.cat([margins(run, prompts.rows(rows)) for rows in by_length.split(_ROWS)], 1)[:, by_length.argsort()]
    return (found > 0).double() + 0.5 * (found == 0).double()
