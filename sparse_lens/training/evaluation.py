"""Pretraining loss on held-out windows, per window, so that intervals and paired differences can be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_lens.models import CircuitGPTCore
from sparse_lens.training.sharding import whole

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
        loss = F.cross_entropy(scores.flatten(0, 1).float(), ids[:, 1:].flatten().to(scores.device), reduction="none")
        losses.append(loss.view(len(ids), -1).mean(1).cpu())
    return torch.cat(losses).numpy()


@torch.no_grad()
def dead_neurons(core: CircuitGPTCore, windows: Int[np.ndarray, "window context_plus_1"], *, n_windows: int = 32) -> int:
    """How many MLP neurons, over all layers, are zero at every token of the first `n_windows` windows.

    Only AbsTopK and ReLU make exact zeros: in a model with GELU and without activation sparsity no neuron is ever dead.
    """
    alive: dict[int, Tensor] = {}

    def note(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001 - the signature of a hook
            alive[layer] = (inputs[0] != 0).flatten(0, -2).any(0)

        return hook

    handles = [block.get_submodule("mlp.fc_out").register_forward_pre_hook(note(n)) for n, block in enumerate(core.blocks)]
    try:
        core(torch.from_numpy(windows[:n_windows, :-1].astype(np.int64)).to(core.wte.weight.device))
    finally:
        for handle in handles:
            handle.remove()
    return sum(int((~of_layer).sum()) for of_layer in alive.values())


def count_nonzeros(tensors: Iterable[Tensor]) -> int:
    """Entries that are not zero, shards of other processes included."""
    return sum(int(whole((tensor.detach() != 0).sum())) for tensor in tensors)
