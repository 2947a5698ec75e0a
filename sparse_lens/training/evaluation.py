"""Pretraining loss on held-out windows, per window, so that intervals and paired differences can be had."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Logits = Callable[[Tensor], Tensor]


@torch.no_grad()
def window_losses(
    logits: Logits, windows: Int[np.ndarray, "window context_plus_1"], *, batch_size: int = 32
) -> Float[np.ndarray, " window"]:
    """Mean next-token cross-entropy of each window, in nats per token; `logits` maps ids `[batch pos]` to `[batch pos vocab]`."""
    losses: list[Tensor] = []
    for start in range(0, len(windows), batch_size):
        ids = torch.from_numpy(windows[start : start + batch_size].astype(np.int64))
        scores = logits(ids[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        losses.append(loss.view(len(ids), -1).mean(1))
    return torch.cat(losses).numpy()
