"""Loss of windows over the tokens that a ladder reads, from the same forward pass as the activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_lens.dictionaries import Bridge, harvest_activations


class LogitKeeper:
    """A bridge that keeps the logits of its last forward pass.

    What `unembed` gives would not do: a model may add to it afterwards (a table of bigrams, in those of arXiv:2511.13653).
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.logits = torch.empty(0)

    @property
    def hook_dict(self) -> Mapping[str, nn.Module]:
        """The bridge's hook points."""
        return self._bridge.hook_dict

    @property
    def cfg(self) -> Any:
        """The bridge's configuration."""
        return self._bridge.cfg

    def __call__(self, tokens: Int[Tensor, "batch pos"], **_: Any) -> Float[Tensor, "batch pos vocab"]:
        """The bridge's logits."""
        self.logits = self._bridge(tokens, return_type="logits")
        return self.logits


def harvest_with_logits(
    bridge: Bridge, hook: str, windows: Int[np.ndarray, "window _"], batch_size: int
) -> Iterator[tuple[slice, Float[Tensor, "token width"], Float[Tensor, "batch pos vocab"]]]:
    """For each batch of windows `[pos + 1]` which they are, the activation at a hook, and the model's logits."""
    keeper = LogitKeeper(bridge)
    parts = [slice(first, first + batch_size) for first in range(0, len(windows), batch_size)]
    harvested = harvest_activations(keeper, [hook], (windows[part, :-1] for part in parts), whole=True)
    for part, activations in zip(parts, harvested, strict=True):
        yield part, activations[hook], keeper.logits


def read_losses(
    logits: Float[Tensor, "window pos vocab"], windows: Int[np.ndarray, "window _"], start: int
) -> Float[np.ndarray, " window"]:
    """Mean next-token loss of each window `[pos + 1]` over its positions from `start` on, nats per token."""
    labels = torch.from_numpy(windows[:, start + 1 :].astype(np.int64)).to(logits.device)
    scores = logits[:, start:].float().flatten(0, 1)
    each = torch.nn.functional.cross_entropy(scores, labels.flatten(), reduction="none")
    return each.double().view(len(windows), -1).mean(1).cpu().numpy()


@torch.no_grad()
def bridge_losses(
    bridge: Bridge, windows: Int[np.ndarray, "window _"], start: int, batch_size: int
) -> Float[np.ndarray, " window"]:
    """`read_losses` of a bridge, batch by batch; raises what a forward pass does for windows longer than the context."""
    parts = [windows[first : first + batch_size] for first in range(0, len(windows), batch_size)]
    logits = (bridge(torch.from_numpy(part[:, :-1].astype(np.int64)), return_type="logits") for part in parts)
    return np.concatenate([read_losses(found, part, start) for part, found in zip(parts, logits, strict=True)])
