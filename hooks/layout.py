"""Where the nine sites and the matrices of a decoder lie: in our architecture, and in any sequential decoder of TransformerLens.

A block must be norm, attention, norm, MLP, each pair added to the residual stream (GPT-2, Llama and their kin). Keys and values may
have fewer heads than queries, the MLP may be gated, positions may be rotary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.errors import CircuitError

_OWN_HOOKS = {"attn_in": "attn.hook_act_in", "mlp_in": "mlp.hook_act_in"}
_OTHER_HOOKS = {"attn_in": "ln1.hook_out", "mlp_in": "ln2.hook_out"}
_SHARED_HOOKS = {
    "attn_q": "attn.hook_q",
    "attn_k": "attn.hook_k",
    "attn_v": "attn.hook_v",
    "attn_out": "hook_attn_out",
    "mlp_neuron": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}
_KINDS = ("attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")


@dataclass(frozen=True, eq=False)
class LayerMatrices:
    """One layer's matrices, `[out, in]`, heads flat; `gate` of a gated MLP reads what `fc_in` reads."""

    q: Float[Tensor, "d_attn d_in"]
    k: Float[Tensor, "d_kv d_in"]
    v: Float[Tensor, "d_kv d_in"]
    o: Float[Tensor, "d_model d_attn"]
    fc_in: Float[Tensor, "d_mlp d_in"]
    fc_out: Float[Tensor, "d_model d_mlp"]
    gate: Float[Tensor, "d_mlp d_in"] | None
    biases: dict[str, Float[Tensor, " d"]]


@dataclass(frozen=True, eq=False)
class DecoderLayout:
    """A decoder's sites and sizes; `hooks` gives each kind of site its hook within a block."""

    n_layers: int
    d_model: int
    n_head: int
    n_kv_head: int
    sink: bool
    concatenated: bool
    widths: dict[str, int]
    hooks: dict[str, str]


def decoder_layout(bridge: Any) -> DecoderLayout:
    """The layout of a bridge's decoder; raises `CircuitError` for blocks that are built otherwise."""
    _check_blocks(bridge)
    config, first = getattr(bridge, "model_config", None), layer_matrices(bridge, 0)
    n_head, n_kv_head = int(bridge.cfg.n_heads), bridge.blocks[0].attn.W_K.shape[0]
    d_model = int(bridge.cfg.d_model)
    widths = {
        "attn_in": first.q.shape[1],
        "attn_q": first.q.shape[0],
        "attn_k": first.k.shape[0],
        "attn_v": first.v.shape[0],
        "attn_out": d_model,
        "mlp_in": first.fc_in.shape[1],
        "mlp_neuron": first.fc_in.shape[0],
        "mlp_out": d_model,
    }
    hooks = _SHARED_HOOKS | (_OTHER_HOOKS if config is None else _OWN_HOOKS)
    return DecoderLayout(
        n_layers=int(bridge.cfg.n_layers),
        d_model=d_model,
        n_head=n_head,
        n_kv_head=n_kv_head,
        sink=config is not None and config.sink,
        concatenated=config is not None and config.d_pos_emb is not None,
        widths=widths,
        hooks={kind: hooks[kind] for kind in _KINDS},
    )


def layer_matrices(bridge: Any, layer: int) -> LayerMatrices:
    """The matrices of one layer, by way of TransformerLens' names for them."""
    attn, mlp = bridge.blocks[layer].attn, bridge.blocks[layer].mlp
    q, k, v = (getattr(attn, f"W_{letter}").transpose(-1, -2).flatten(0, 1) for letter in "QKV")
    gate = getattr(mlp, "W_gate", None)
    pairs = [(f"attn.{letter.lower()}", attn, f"b_{letter}") for letter in "QKVO"] + [
        ("mlp.in", mlp, "b_in"),
        ("mlp.out", mlp, "b_out"),
    ]
    found = {name: getattr(module, bias, None) for name, module, bias in pairs}
    return LayerMatrices(
        q=q,
        k=k,
        v=v,
        o=attn.W_O.flatten(0, 1).T,
        fc_in=mlp.W_in.T,
        fc_out=mlp.W_out.T,
        gate=None if gate is None else gate.T,
        biases={name: bias.flatten() for name, bias in found.items() if bias is not None},
    )


def spread(per_kv_head: Bool[Tensor, " d_kv"], n_kv_head: int, n_head: int) -> Bool[Tensor, " d_attn"]:
    """What holds for channels of key-value heads, for the channels of all query heads that use them."""
    return per_kv_head.view(n_kv_head, 1, -1).expand(-1, n_head // n_kv_head, -1).reshape(-1)


def gather(per_head: Bool[Tensor, " d_attn"], n_kv_head: int, n_head: int) -> Bool[Tensor, " d_kv"]:
    """Channels of key-value heads for which it holds in any query head that uses them."""
    return per_head.view(n_kv_head, n_head // n_kv_head, -1).any(1).reshape(-1)


def _check_blocks(bridge: Any) -> None:
    blocks = getattr(bridge, "blocks", None)
    if not blocks:
        raise CircuitError(f"this {type(bridge).__name__} has no stack of blocks; circuits are found in decoders")
    for layer, block in enumerate(blocks):
        if "Parallel" in type(block).__name__ or str(getattr(getattr(block, "ln1", None), "name", "")).startswith("post_"):
            raise CircuitError(
                f"block {layer} of this {type(bridge).__name__} adds attention and MLP in parallel, or norms after them; the node "
                "and edge view is for decoders whose blocks are norm, attention, norm, MLP"
            )
        parts = set(getattr(block, "submodules", {}) or {})
        missing, extra = (
            {"ln1", "attn", "ln2", "mlp"} - parts,
            parts & {"ln1_post", "ln2_post", "linear_attn", "mamba", "mixer", "ssm"},
        )
        no_matrices = not missing and not all(
            isinstance(getattr(module, name, None), torch.Tensor)
            for module, name in ((block.attn, "W_Q"), (block.attn, "W_O"), (block.mlp, "W_in"), (block.mlp, "W_out"))
        )
        if missing or extra or no_matrices:
            what = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(extra)) or 'no plain matrices'}"
            raise CircuitError(
                f"block {layer} of this {type(bridge).__name__} {what}; the node and edge view is for decoders whose blocks are "
                "norm, attention, norm, MLP"
            )
