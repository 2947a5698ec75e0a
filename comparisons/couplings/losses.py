"""The five losses of a coupling (bridges, arXiv:2511.13653), as functions of two models, the coupling and a batch of windows.

| loss | formula |
|---|---|
| `sparse_loss` | cross-entropy of the sparse model |
| `distillation` | `KL(dense, sparse)` of their next-token distributions |
| `reconstruction` | sum over boundaries of `NMSE(encode(h_dense), h_sparse) + NMSE(decode(h_sparse), h_dense)` |
| `dense_to_sparse` | sum over boundaries of `KL(dense, hybrid that crosses to the sparse model there)` |
| `sparse_to_dense` | the same of the hybrids that cross to the dense model |

NMSE is per token, over the token's squared distance from the batch's mean; targets are held constant. KL, in nats per token, is
over the dense model's `kl_top` likeliest tokens, both sides renormalized there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.comparisons.couplings.coupling import Coupling
from sparse_lens.comparisons.couplings.hybrids import replaced_stream, streams

LOSSES = ("sparse_loss", "distillation", "reconstruction", "dense_to_sparse", "sparse_to_dense")
OF_COUPLING = LOSSES[2:]
"""The losses that depend on the coupling; the first two are of the models alone."""


def coupling_losses(
    dense: Any,
    sparse: Any,
    coupling: Coupling,
    tokens: Int[Tensor, "batch context_plus_1"],
    *,
    hybrids_at: Sequence[int] | None = None,
    kl_top: int | None = 64,
) -> dict[str, Tensor]:
    """The five `LOSSES` on a batch of windows, on the graph of whatever requires a gradient.

    `hybrids_at` are the boundaries of the hybrids (all), whose losses are scaled up to all boundaries.
    """
    ids = tokens[:, :-1]
    dense_logits, dense_streams = streams(dense, coupling.boundaries, ids)
    sparse_logits, sparse_streams = streams(sparse, coupling.boundaries, ids)
    places = range(len(coupling.boundaries)) if hybrids_at is None else hybrids_at
    encoded = [coupling.encode(at, stream) for at, stream in enumerate(dense_streams)]
    decoded = [coupling.decode(at, stream) for at, stream in enumerate(sparse_streams)]
    target = _Distribution(dense_logits.detach(), kl_top)
    scale = len(coupling.boundaries) / len(places)

    def hybrids(second: Any, crossed: list[Tensor]) -> Tensor:
        total = sparse_logits.new_zeros(())
        for at in places:
            with replaced_stream(second, coupling.boundaries[at], crossed[at]):
                total = total + target.divergence(second(ids))
        return scale * total

    pairs = [*zip(encoded, sparse_streams, strict=True), *zip(decoded, dense_streams, strict=True)]
    return {
        "sparse_loss": F.cross_entropy(sparse_logits.flatten(0, 1), tokens[:, 1:].flatten()),
        "distillation": target.divergence(sparse_logits),
        "reconstruction": torch.stack([nmse(found, wanted) for found, wanted in pairs]).sum(),
        "dense_to_sparse": hybrids(sparse, encoded),
        "sparse_to_dense": hybrids(dense, decoded),
    }


def nmse(found: Float[Tensor, "batch pos d"], wanted: Float[Tensor, "batch pos d"]) -> Float[Tensor, ""]:
    """Mean over tokens of `|found - wanted|^2 / |wanted - mean wanted|^2`, with `wanted` held constant."""
    wanted = wanted.detach()
    spread = (wanted - wanted.mean((0, 1))).square().sum(-1)
    return ((found - wanted).square().sum(-1) / (spread + torch.finfo(wanted.dtype).eps)).mean()


class _Distribution:
    """A target's next-token distribution, of its likeliest tokens."""

    def __init__(self, logits: Float[Tensor, "batch pos vocab"], top: int | None) -> None:
        self.chosen = None if top is None or top >= logits.shape[-1] else logits.topk(top, dim=-1).indices
        self.log_probs = self._of(logits)

    def divergence(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, ""]:
        """`KL(target, logits)` in nats, mean over tokens."""
        return (self.log_probs.exp() * (self.log_probs - self._of(logits))).sum(-1).mean()

    def _of(self, logits: Tensor) -> Tensor:
        return (logits if self.chosen is None else logits.gather(-1, self.chosen)).log_softmax(-1)
