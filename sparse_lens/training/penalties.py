"""What is added to the cross-entropy: the multi-objective alternative to sparsity by projection, and the balance of experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sparse_lens.models import CircuitGPTCore
from sparse_lens.models.core import Block, Router
from sparse_lens.training.sharding import whole


class PenaltyConfig(BaseModel):
    """A penalty that pushes a dense model towards sparsity while it learns.

    `l1_weights`: mean magnitude of the weights of the blocks' matrices, relative to their size at the start (the lasso,
    Tibshirani 1996). `l1_activations`: mean magnitude of the MLP's neurons over tokens. `entropy_activations`: entropy of each
    token's neurons, their magnitudes taken as shares, divided by its largest possible value: 0 for one active neuron, 1 for all
    equally.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["l1_weights", "l1_activations", "entropy_activations"]
    coefficient: float = Field(gt=0, description="what the penalty is multiplied by before it joins the loss")


class Penalties:
    """Watches the forward passes of a core and gives what they cost beyond the cross-entropy.

    `balance` weighs the load-balancing loss of a mixture of experts, n_experts * sum(share of tokens * mean probability)
    (arXiv:2101.03961, eq. 4), which is 1 if all experts are used equally; each process balances its own part of a batch.
    """

    def __init__(self, core: CircuitGPTCore, penalty: PenaltyConfig | None, balance: float) -> None:
        self.penalty, self.balance = penalty, balance
        self.neurons: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.matrices = [p for name, p in core.blocks.named_parameters() if p.ndim == 2 and "router" not in name]
        self.start = torch.stack([whole(p.detach().abs().mean()) for p in self.matrices]).mean() if penalty is not None else None
        for block in core.blocks:
            mlp = cast(Block, block).mlp
            if penalty is not None and penalty.kind != "l1_weights":
                mlp.fc_out.register_forward_pre_hook(_note(self.neurons))
            if isinstance(mlp.router, Router):
                mlp.router.score.register_forward_hook(self._note_scores)

    def _note_scores(self, module: nn.Module, _inputs: tuple[Tensor, ...], scores: Tensor) -> None:
        if module.training:
            self.scores.append(scores)

    def take(self) -> Tensor | None:
        """The penalties of the last forward pass, None if there are none."""
        parts = [self.balance * _balance(scores) for scores in self.scores]
        if self.penalty is not None:
            parts.append(self.penalty.coefficient * self._penalty(self.penalty.kind))
        self.neurons.clear()
        self.scores.clear()
        return None if not parts else torch.stack(parts).sum()

    def _penalty(self, kind: str) -> Tensor:
        if kind == "l1_weights":
            assert self.start is not None
            return torch.stack([whole(matrix.abs().mean()) for matrix in self.matrices]).mean() / self.start
        of_layer = [_entropy(neurons) if kind == "entropy_activations" else neurons.abs().mean() for neurons in self.neurons]
        return torch.stack(of_layer).mean()


def _note(into: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            into.append(inputs[0])

    return hook


def _entropy(neurons: Tensor) -> Tensor:
    """Mean entropy of the shares of magnitude over the last axis, as a part of its largest value."""
    neurons = neurons.to(torch.promote_types(neurons.dtype, torch.float32))  # half precision has no 1e-9
    shares = neurons.abs() / neurons.abs().sum(-1, keepdim=True).clamp(min=1e-9)
    return -(shares * (shares + 1e-9).log()).sum(-1).mean() / math.log(neurons.shape[-1])


def _balance(scores: Tensor) -> Tensor:
    probability = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).flatten(0, -2)
    n_experts = probability.shape[-1]
    chosen = torch.nn.functional.one_hot(probability.argmax(-1), n_experts).to(probability).mean(0)
    return n_experts * (chosen * probability.mean(0)).sum()
