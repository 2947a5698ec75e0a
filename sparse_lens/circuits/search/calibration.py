"""Logit scale and shift: `d -> scale * d + shift`, fitted to the task loss (arXiv:2511.13653, Appendix A.5).

Ablation shrinks logits, so that a circuit may rank the answers right and still miss a target loss. `d` is the logit of the answer
with the smaller id minus that of the other: oriented by token, never by which one is right, so that a shift cannot know the
answer. A scalar added to all logits would cancel in the softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.prompts import Prompts

_STEPS = 16
"""LBFGS steps, as published."""


@dataclass(frozen=True)
class Calibration:
    """Two numbers: `scale` (positive: a circuit that says the opposite is no circuit) and `shift`, in logits."""

    scale: float = 1.0
    shift: float = 0.0

    def apply(self, differences: Float[Tensor, " row"], prompts: Prompts) -> Float[Tensor, " row"]:
        """Logit differences (right minus wrong answer) after the change."""
        return self.scale * differences + _sign(prompts) * self.shift


def fit_calibration(differences: Float[Tensor, " row"], prompts: Prompts) -> Calibration:
    """Scale and shift of least mean task loss on these prompts, by LBFGS."""
    d, sign = differences.double(), _sign(prompts).double()
    log_scale, shift = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([log_scale, shift], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def scale() -> Tensor:
        return log_scale.clamp(-10, 10).exp()  # where all answers are right, the best scale is infinite

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.softplus(-(scale() * d + sign * shift)).mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return Calibration(float(scale().detach()), float(shift.detach()))


def _sign(prompts: Prompts) -> Float[Tensor, " row"]:
    """1 where the right answer has the smaller id, -1 where the wrong one has."""
    return 1.0 - 2.0 * (prompts.right > prompts.wrong).float()
