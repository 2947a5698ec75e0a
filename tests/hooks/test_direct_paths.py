"""Forks of the attention's input, and direct path patching: exact where the path is linear, refused where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import SparseLensError

pytestmark = pytest.mark.tool(
    "direct path patching, split Q/K/V inputs",
    limits="refused by name where AbsTopK or a ReLU is in the path; TransformerLens 3 freezes the norm's scale, wants folded norms",
)

try:
    from transformer_lens.patching import get_act_patch_direct_path  # pyright: ignore[reportAttributeAccessIssue]

    FROZEN_SCALE = False
except ImportError:  # 3.x has it elsewhere, and holds the norm's scale where it was
    from transformer_lens.tools.analysis.direct_path_patching import get_act_patch_direct_path

    FROZEN_SCALE = True

CLEAN, CORRUPT = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[2, 7, 1, 8, 2]])


def score(logits: Tensor) -> Tensor:
    return logits[0, -1, 9] - logits[0, -1, 11]


def test_forks_change_nothing(architecture: TransformerBridge) -> None:
    with torch.no_grad():
        clean = architecture(CLEAN)
        for flag in (architecture.set_use_split_qkv_input, architecture.set_use_attn_in):
            flag(True)
            torch.testing.assert_close(architecture(CLEAN), clean, atol=1e-5, rtol=0)
            flag(False)
        assert torch.equal(architecture(CLEAN), clean)


@pytest.mark.parametrize("letter", ["q", "k", "v"])
@torch.no_grad()
def test_a_fork_reaches_one_head_alone(build_bridge: Callable[[str], TransformerBridge], letter: str) -> None:
    for name in ("plain_rms", "concatenated"):
        bridge = build_bridge(name)
        bridge.set_use_split_qkv_input(True)
        _, clean = bridge.run_with_cache(CLEAN)

        def double(copies: Tensor, hook: Any) -> Tensor:
            assert copies.shape == (1, 5, 2, 12)
            copies[:, :, 1] = copies[:, :, 1] ** 2
            return copies

        with bridge.hooks(fwd_hooks=[(f"blocks.1.attn.hook_{letter}_input", double)]):
            _, cache = bridge.run_with_cache(CLEAN)
        for other in "qkv":
            same = [torch.equal(cache[other, 1][:, :, head], clean[other, 1][:, :, head]) for head in (0, 1)]
            assert same == [True, other != letter]


@pytest.mark.parametrize("letter", ["q", "k", "v"])
@torch.no_grad()
def test_direct_paths_equal_the_computation_by_hand(build_bridge: Callable[[str], TransformerBridge], letter: str) -> None:
    names = ["plain_rms"] if FROZEN_SCALE else ["plain_rms", "plain_layernorm", "concatenated"]
    for name in names:
        bridge = build_bridge(name)
        if FROZEN_SCALE:
            bridge.enable_compatibility_mode()  # that version ignores the norm's gain unless it is folded
        _, clean = bridge.run_with_cache(CLEAN)
        _, corrupt = bridge.run_with_cache(CORRUPT)
        table = get_act_patch_direct_path(bridge, CORRUPT, clean, corrupt, score, 0, 1, letter, verbose=False)
        for head in range(bridge.cfg.n_heads):
            expected = by_hand(bridge, clean, corrupt, letter, head)
            torch.testing.assert_close(table[1, head], expected, atol=1e-5, rtol=0)
            assert (expected - score(bridge(CORRUPT))).abs() > 1e-4


def by_hand(bridge: TransformerBridge, clean: Any, corrupt: Any, letter: str, head: int) -> Tensor:
    """Head 1 of layer 0, clean instead of corrupt, into one head of layer 1."""
    write = (clean["z", 0][:, :, 1] - corrupt["z", 0][:, :, 1]) @ bridge.W_O[0, 1]
    stream = corrupt["blocks.1.hook_resid_pre"]
    norm, weight = bridge.blocks[1].ln1, getattr(bridge, f"W_{letter.upper()}")[1, head]
    bias = getattr(bridge, f"b_{letter.upper()}")[1, head]
    if FROZEN_SCALE:
        scale = (stream.pow(2).mean(-1, keepdim=True) + bridge.cfg.eps).sqrt()
        inputs = (stream + write) / scale
    else:
        centered = stream + write
        if not bridge.model_config.rms_norm:
            centered = centered - centered.mean(-1, keepdim=True)
        inputs = centered / (centered.pow(2).mean(-1, keepdim=True) + bridge.cfg.eps).sqrt() * norm.weight
        inputs = inputs if getattr(norm, "bias", None) is None else inputs + norm.bias
        if (width := bridge.model_config.d_pos_emb) is not None:
            inputs = torch.cat([inputs, corrupt["blocks.1.attn.hook_act_in"][..., -width:]], dim=-1)

    def put(tensor: Tensor, hook: Any) -> Tensor:
        tensor[:, :, head] = inputs @ weight + bias
        return tensor

    assert math.prod(inputs.shape[:2]) == CORRUPT.numel()
    return score(bridge.run_with_hooks(CORRUPT, fwd_hooks=[(f"blocks.1.attn.hook_{letter}", put)]))


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("sink_abstopk_bigram", "AbsTopK on attn_out, AbsTopK on attn_in, AbsTopK on attn_q"),
        ("afrac_default_sites", "AbsTopK on attn_in"),
        ("relu_residual_sparse", "residual_activation_type=relu"),
    ],
)
@torch.no_grad()
def test_paths_through_a_mask_are_refused(build_bridge: Callable[[str], TransformerBridge], variant: str, reason: str) -> None:
    bridge = build_bridge(variant)
    _, clean = bridge.run_with_cache(CLEAN)
    _, corrupt = bridge.run_with_cache(CORRUPT)
    with pytest.raises(SparseLensError, match=reason):
        get_act_patch_direct_path(bridge, CORRUPT, clean, corrupt, score, 0, 0, "q", verbose=False)


@pytest.mark.skipif(not FROZEN_SCALE, reason="TransformerLens 4 patches before the norm")
def test_concatenated_positions_are_refused_by_the_older_form(build_bridge: Callable[[str], TransformerBridge]) -> None:
    bridge = build_bridge("concatenated")

    def _make_direct_path_hook() -> Callable[..., Tensor]:
        return lambda tensor, hook: tensor

    hook = _make_direct_path_hook()
    hook.__qualname__ = "_make_direct_path_hook.<locals>.hook_fn"
    with pytest.raises(SparseLensError, match="d_pos_emb=4"):
        bridge.run_with_hooks(CLEAN, fwd_hooks=[("blocks.1.attn.hook_q", hook)])
