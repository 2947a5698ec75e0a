"""`rotated_twin`: the same function in other weights, the control that tells a basis from a function.

An orthogonal matrix is put into every linear space of the model and taken out again: into the residual stream (the norms' gains
folded into what reads them) and into queries with keys, and values with outputs, of every head. Logits stay as they were but for
rounding; no channel of these spaces means what it meant. Neurons stay: a nonlinearity stands between their two sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries import random_rotation
from sparse_lens.errors import ConfigError


def rotation_obstacle(bridge: Any) -> str | None:
    """Why the model has no rotated twin with the same function; None if it has."""
    config = getattr(bridge, "model_config", None)
    if config is None:
        return "rotated twins are made of models of this package only"
    if config.afrac is not None and config.afrac < 1:
        return "AbsTopK chooses channels, so that no rotation of the model leaves its function as it is"
    if not config.rms_norm:
        return "LayerNorm takes away the mean of the channels, which a rotation does not keep"
    if config.tied_unembed or config.d_pos_emb is not None or config.n_experts is not None:
        return "tied unembeddings, concatenated positions and experts are not rotated"
    if config.residual_activation_type != "identity":
        return "a nonlinearity on the residual stream stands in the way of a rotation"
    return None


@contextmanager
def rotated_twin(bridge: Any, *, seed: int = 0) -> Iterator[Any]:
    """Inside the block the bridge's weights are those of its rotated twin; then it has its own again.

    Raises `ConfigError` if there is none (`rotation_obstacle`).
    """
    if (obstacle := rotation_obstacle(bridge)) is not None:
        raise ConfigError(f"{obstacle}; take a model without, or leave this control out")
    before = {name: parameter.detach().clone() for name, parameter in bridge.named_parameters()}
    try:
        _rotate(bridge, seed)
        yield bridge
    finally:
        for name, parameter in bridge.named_parameters():
            parameter.detach().copy_(before[name])


@torch.no_grad()
def _rotate(bridge: Any, seed: int) -> None:
    """In float64: products of the weights with rotations, written back in their own dtype."""
    weights = {name.replace("._original_component", ""): parameter for name, parameter in bridge.named_parameters()}
    config = bridge.model_config
    stream = random_rotation(config.d_model, seed, dtype=torch.float64)

    def put(name: str, value: Float[Tensor, "..."]) -> None:
        weights[name].copy_(value.to(weights[name].dtype))

    def read(matrix: str, gain: str) -> Float[Tensor, "out d_model"]:
        return weights[matrix].double() * weights[gain].double() @ stream

    for name in ("core.wte", "core.wpe"):
        put(f"{name}.weight", weights[f"{name}.weight"].double() @ stream)
    for layer in range(config.n_layer):
        block = f"core.blocks.{layer}"
        inside = [_by_head(config, seed + 1 + 2 * layer + i) for i in range(2)]
        for letter, rotation in (("q", inside[0]), ("k", inside[0]), ("v", inside[1])):
            put(f"{block}.attn.{letter}.weight", rotation.T @ read(f"{block}.attn.{letter}.weight", f"{block}.ln_1.weight"))
            put(f"{block}.attn.{letter}.bias", rotation.T @ weights[f"{block}.attn.{letter}.bias"].double())
        put(f"{block}.attn.o.weight", stream.T @ weights[f"{block}.attn.o.weight"].double() @ inside[1])
        put(f"{block}.mlp.fc_in.weight", read(f"{block}.mlp.fc_in.weight", f"{block}.ln_2.weight"))
        put(f"{block}.mlp.fc_out.weight", stream.T @ weights[f"{block}.mlp.fc_out.weight"].double())
        for bias in ("attn.o", "mlp.fc_out"):
            put(f"{block}.{bias}.bias", stream.T @ weights[f"{block}.{bias}.bias"].double())
        for norm in ("ln_1", "ln_2"):
            weights[f"{block}.{norm}.weight"].fill_(1)
    put("core.lm_head.weight", read("core.lm_head.weight", "core.ln_f.weight"))
    weights["core.ln_f.weight"].fill_(1)


def _by_head(config: Any, seed: int) -> Float[Tensor, "d_attn d_attn"]:
    """One rotation for every head, block-diagonal."""
    heads = [random_rotation(config.d_head, 1000 * seed + head, dtype=torch.float64) for head in range(config.n_head)]
    return torch.block_diag(*heads)
