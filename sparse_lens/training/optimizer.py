"""The optimizer of the released script: Adam on scaled gradients, and a decay of its own after the projection."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparse_lens.models import CircuitGPTCore
from sparse_lens.training.config import TrainingConfig
from sparse_lens.training.sharding import own, whole
from sparse_lens.training.sparsifiers import Sparsifier

_GATE_EPS = 1e-8


def make_optimizer(config: TrainingConfig, core: CircuitGPTCore, sparsifier: Sparsifier) -> torch.optim.Adam:
    """Adam without weight decay (see `decay_weights`); gates of a learned mask form a group with a faster rate."""
    gates = sparsifier.gates()
    among_gates = set(gates)
    weights = [p for p in core.parameters() if p.requires_grad and p not in among_gates]
    groups: list[dict[str, object]] = [{"params": weights, "rate_factor": 1.0}]
    if gates:
        groups.append({"params": gates, "rate_factor": getattr(config.sparsity, "gate_rate", 1.0), "eps": _GATE_EPS})
    fused = all(p.device.type in ("cpu", "cuda") and type(p) is torch.nn.Parameter for p in weights)
    return torch.optim.Adam(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def decayed_weights(core: CircuitGPTCore) -> list[Tensor]:
    """Tensors of two dimensions, but for the bigram table: what the released script decays."""
    named = [(name, p) for name, p in core.named_parameters() if p.requires_grad and not name.endswith(".score")]
    return [p for name, p in named if p.ndim >= 2 and not name.startswith("bigram_table")]


@torch.no_grad()
def decay_weights(weights: list[Tensor], amount: float) -> None:
    """Shrink weights by the share `amount`, the weight decay times the present learning rate; after the projection."""
    if amount:
        torch._foreach_mul_([own(weight) for weight in weights], 1 - amount)  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def scale_gradient(parameters: list[Tensor], how: str) -> None:
    """Divide the gradient by its root mean square over all `parameters` that have one ("rms"), clip its norm at 1, or leave it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if how == "none" or not gradients:
        return
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if how == "rms":
        factor = 1 / (norm / math.sqrt(sum(gradient.numel() for gradient in gradients)) + 1e-5)
    else:
        factor = (1 / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([own(gradient) for gradient in gradients], factor)  # pyright: ignore[reportPrivateImportUsage]
