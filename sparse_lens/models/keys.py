"""The map between the parameter names of the reference implementation, of its public replication, and of the core."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from sparse_lens.errors import CheckpointError
from sparse_lens.models.config import CircuitGPTConfig

_PREFIXES = ("core.", "circuit_model.", "module.", "_orig_mod.")
_TOP = {
    "transformer.wte.weight": "wte.weight",
    "transformer.wpe.weight": "wpe.weight",
    "transformer.ln_f.weight": "ln_f.weight",
    "transformer.ln_f.bias": "ln_f.bias",
    "lm_head.weight": "lm_head.weight",
    "bigram_table": "bigram_table.weight",
    "final_logits_bias": "lm_head.bias",
}
_INNER = {
    "attn.c_proj": "attn.o",
    "attn.attn_imp.sink_logit": "attn.sink_logit",
    "mlp.c_fc": "mlp.fc_in",
    "mlp.c_proj": "mlp.fc_out",
}
_REPLICATION_SINK = "attn.attn_fn.sink_logit"
_BLOCK = re.compile(r"(?:transformer\.h|blocks)\.(\d+)\.(.+)")
_MASK_BUFFER = re.compile(r"\.attn\.(bias|causal_mask)$")  # with its dot: "c_attn.bias" ends in "attn.bias" too


def to_core_names(state: dict[str, Tensor], config: CircuitGPTConfig) -> dict[str, Tensor]:
    """Parameters by the core's names, from the reference's, the replication's, or the core's own, with or without a known prefix.

    The causal-mask buffers of checkpoints saved with flash=False are dropped, and a tied unembedding may be stored once. Nothing
    else is forgiven: the caller compares the result with the core key by key. Parts of a tensor are views of it.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _strip_prefixes(key)
        if _MASK_BUFFER.search(name):
            continue
        for core_name, part in _rename(name, tensor, config):
            if core_name in renamed:
                raise CheckpointError(f"the checkpoint holds {core_name!r} twice (again as {key!r}); it is damaged")
            renamed[core_name] = part
    if config.tied_unembed:
        present = [renamed[name] for name in ("wte.weight", "lm_head.weight") if name in renamed]
        if len(present) == 2 and not torch.equal(*present):
            raise CheckpointError("tied_unembed is true, but wte.weight and lm_head.weight differ; the folder is damaged")
        if present:
            renamed["wte.weight"] = renamed["lm_head.weight"] = present[0]
    return renamed


def to_reference_names(state: dict[str, Tensor], config: CircuitGPTConfig) -> dict[str, Tensor]:
    """Parameters by the reference's names, the inverse of `to_core_names`."""
    top = {core: reference for reference, core in _TOP.items()}
    inner = {core: reference for reference, core in _INNER.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match is None:
            renamed[top[name]] = tensor
            continue
        prefix, rest = f"transformer.h.{match[1]}.", match[2]
        for core, reference in inner.items():
            rest = rest.replace(core, reference) if rest.startswith(core) else rest
        if (part := re.fullmatch(r"attn\.([qkv])\.(weight|bias)", rest)) is None:
            renamed[prefix + rest] = tensor
        elif part[1] == "q":
            stem = f"blocks.{match[1]}.attn"
            blocks = [state[f"{stem}.{letter}.{part[2]}"] for letter in "qkv"]
            renamed[f"{prefix}attn.c_attn.{part[2]}"] = torch.cat(blocks)
    if not config.enable_bigram_table:
        renamed.pop("bigram_table", None)
    return renamed


def _strip_prefixes(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _rename(name: str, tensor: Tensor, config: CircuitGPTConfig) -> list[tuple[str, Tensor]]:
    if name in _TOP:
        return [(_TOP[name], tensor)]
    match = _BLOCK.fullmatch(name)
    if match is None:
        return [(name, tensor)]
    prefix, rest = f"blocks.{match[1]}.", match[2]
    if rest == _REPLICATION_SINK:
        return [(f"{prefix}attn.sink_logit", tensor)]
    if rest in ("attn.c_attn.weight", "attn.c_attn.bias"):
        return _split_qkv(prefix, rest, tensor, config)
    for reference, core in _INNER.items():
        if rest.startswith(reference):
            return [(prefix + rest.replace(reference, core, 1), tensor)]
    return [(prefix + rest, tensor)]


def _split_qkv(prefix: str, rest: str, tensor: Tensor, config: CircuitGPTConfig) -> list[tuple[str, Tensor]]:
    if tensor.ndim == 0 or tensor.shape[0] != 3 * config.d_attn:
        raise CheckpointError(
            f"{prefix}{rest} has the shape {tuple(tensor.shape)}, the configuration promises 3 * n_head * d_head = "
            f"{3 * config.d_attn} rows; weights and configuration do not belong together"
        )
    kind = rest.rsplit(".", 1)[1]
    return [(f"{prefix}attn.{letter}.{kind}", part) for letter, part in zip("qkv", tensor.chunk(3), strict=True)]
