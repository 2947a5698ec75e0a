"""RelP's rules: a backward pass that carries relevance in the place of slopes, the forward pass left as it is.

After "RelP" (arXiv:2508.21258) and its code (github.com/FarnoushRJ/RelP), whose rules are these:

| part | rule | here |
|---|---|---|
| norm | LN-rule | its scale is a constant |
| activation function | identity rule | `f(x)` passes on `f(x) / x`; AbsTopK after it is a constant choice |
| product of a gate | half rule | each factor gets half; a router's share is a constant |
| linear map | 0-rule | its slope |
| attention pattern | AH-rule, where asked for | a constant |

With the AH-rule queries and keys have no relevance at all; RelP's own example for GPT-2 leaves it out, as is the default here. With
all rules the model is linear in its embeddings and biases, which is what an attribution graph needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparse_lens.circuits.masking import Hook
from sparse_lens.hooks.layout import decoder_layout, layer_matrices

_SMALLEST = 1e-6
"""What a factor closer to zero is taken for, as in RelP's code."""


def relevance_hooks(bridge: Any, *, freeze_patterns: bool = False) -> list[tuple[str, Hook]]:
    """Forward hooks that change no value and make the backward pass RelP's; they go before all others.

    `freeze_patterns` adds the AH-rule. Raises `CircuitError` for a decoder whose blocks are not norm, attention, norm, MLP.
    """
    layout = decoder_layout(bridge)
    hooks: list[tuple[str, Hook]] = [(name, _detached) for name in bridge.hook_dict if name.endswith(".hook_scale")]
    for layer in range(layout.n_layers):
        hooks += _activation_hooks(bridge, layer)
        if freeze_patterns:
            hooks.append((f"blocks.{layer}.attn.hook_pattern", _detached))
    return hooks


@contextmanager
def silent_norms() -> Iterator[None]:
    """Without TransformerLens' warning that a norm with a hook on its scale is computed by another formula."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
        yield


def _detached(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
    return tensor.detach()


def _activation_hooks(bridge: Any, layer: int) -> list[tuple[str, Hook]]:
    """The identity rule for a layer's neurons, with the half rule if they have a gate."""
    factors: dict[str, Tensor] = {}

    def remember(tensor: Tensor, hook: Any) -> None:
        factors[hook.name] = tensor

    def pass_on(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
        parts = [factor * (tensor / _away_from_zero(factor)).detach() for factor in factors.values()]
        factors.clear()
        relevance = torch.stack(parts).mean(0)
        return tensor.detach() + (relevance - relevance.detach())

    gated = layer_matrices(bridge, layer).gate is not None
    names = ("hook_pre", "hook_pre_linear") if gated else ("hook_pre",)
    hooks: list[tuple[str, Hook]] = [(f"blocks.{layer}.mlp.{name}", remember) for name in names]
    return [*hooks, (f"blocks.{layer}.mlp.hook_post", pass_on)]


def _away_from_zero(tensor: Tensor) -> Tensor:
    return torch.where(tensor.abs() < _SMALLEST, torch.where(tensor < 0, -_SMALLEST, _SMALLEST), tensor)
