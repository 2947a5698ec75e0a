"""Hook names: TransformerLens' and the reference implementation's, and the tensor layouts that go with them."""

from __future__ import annotations

import re

from jaxtyping import Float
from torch import Tensor

from sparse_lens.errors import UnknownNameError

_IN_BLOCK = {
    "resid_in": "hook_resid_pre",
    "attn.act_in": "attn.hook_act_in",
    "attn.q": "attn.hook_q",
    "attn.k": "attn.hook_k",
    "attn.v": "attn.hook_v",
    "attn.y": "attn.hook_z",
    "attn.resid_delta": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp.act_in": "mlp.hook_act_in",
    "mlp.post_act": "mlp.hook_post",
    "mlp.resid_delta": "hook_mlp_out",
}
_OUTSIDE = {"final_resid": "ln_final.hook_in"}
_SAME_TENSOR = {
    "hook_in": "hook_resid_pre",
    "resid_mid.hook_out": "hook_resid_mid",
    "attn.hook_out": "hook_attn_out",
    "mlp.hook_out": "hook_mlp_out",
}
"""Canonical bridge names of the aliases above; also accepted, never returned."""

_SPLIT_BY_HEAD = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z")


def reference_hook_name(name: str) -> str:
    """The reference implementation's name of a TransformerLens hook: "blocks.0.attn.hook_z" is "0.attn.y".

    Names after openai/circuit_sparsity, `circuit_sparsity/inference/gpt.py`. Raises `UnknownNameError` for hooks that
    the reference does not have (patterns, norms, embeddings).
    """
    names = {theirs: ours for ours, theirs in _IN_BLOCK.items()}
    names |= {canonical: names[alias] for canonical, alias in _SAME_TENSOR.items()}
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        if match[2] in names:
            return f"{int(match[1])}.{names[match[2]]}"
    elif name in _OUTSIDE.values():
        return next(ours for ours, theirs in _OUTSIDE.items() if theirs == name)
    layer = match[1] if match else "0"
    known = [f"blocks.{layer}.{rest}" for rest in names] + [*_OUTSIDE.values()]
    raise UnknownNameError("TransformerLens hook", name, known)


def transformerlens_hook_name(name: str) -> str:
    """The TransformerLens name of a reference hook: "0.attn.y" is "blocks.0.attn.hook_z".

    The inverse of `reference_hook_name`. Raises `UnknownNameError` for a name that the reference does not have.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = re.fullmatch(r"(\d+)\.(.+)", name)
    if match and match[2] in _IN_BLOCK:
        return f"blocks.{int(match[1])}.{_IN_BLOCK[match[2]]}"
    layer = match[1] if match else "0"
    raise UnknownNameError("reference hook", name, [f"{layer}.{rest}" for rest in _IN_BLOCK] + [*_OUTSIDE])


def canonical_hook_name(name: str) -> str:
    """The name of the hook point behind an alias: "blocks.0.hook_resid_pre" is "blocks.0.hook_in"; other names stay."""
    block = re.fullmatch(r"(blocks\.\d+)\.(.+)", name)
    aliases = {alias: canonical for canonical, alias in _SAME_TENSOR.items()} | {"hook_resid_post": "hook_out"}
    if block is None:
        return f"{name.removeprefix('hook_')}.hook_out" if name in ("hook_embed", "hook_pos_embed", "hook_unembed") else name
    return f"{block[1]}.{aliases.get(block[2], block[2])}"


def is_split_by_head(name: str) -> bool:
    """Whether TransformerLens shows the hook as `[batch pos head d_head]` where the reference has it flat."""
    return name.endswith(_SPLIT_BY_HEAD)


def to_reference_layout(name: str, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*flat"]:
    """A TransformerLens hook's tensor in the reference's layout: q, k, v, z are flat over heads there.

    `name` is the TransformerLens name. `[batch pos head d_head] -> [batch pos head*d_head]`; others stay as they are.
    """
    return tensor.flatten(-2) if is_split_by_head(name) else tensor


def to_transformerlens_layout(name: str, tensor: Float[Tensor, "*flat"], n_heads: int) -> Float[Tensor, "*shape"]:
    """A reference hook's tensor in TransformerLens' layout, the inverse of `to_reference_layout`."""
    return tensor.unflatten(-1, (n_heads, -1)) if is_split_by_head(name) else tensor
