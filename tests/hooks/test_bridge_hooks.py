"""The hook points: shapes, what an edit reaches, and that nothing stays behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import SparseLensError
from sparse_lens.hooks import load
from sparse_lens.models import load_checkpoint

BATCH, POS = 3, 7
NEVER_FIRE = {"hook_mlp_in", "attn.hook_result", "attn.hook_attn_in", *(f"attn.hook_{letter}_input" for letter in "qkv")}
"""Block hooks that fire only after `set_use_hook_mlp_in(True)`, `set_use_attn_result(True)` and their like."""


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(41, (BATCH, POS), generator=torch.Generator().manual_seed(1))


def expected_shapes(bridge: TransformerBridge, fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    b, p, cfg = BATCH, POS, bridge.cfg
    m, h, d, f, v, extra = cfg.d_model, cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab, fields.get("d_pos_emb") or 0
    shapes = {"hook_embed": (b, p, m), "hook_pos_embed": (b, p, extra or m), "unembed.hook_out": (b, p, v)}
    norms = [("ln_final", m)]
    if fields.get("enable_bigram_table"):
        shapes["bigram.hook_out"] = (b, p, v)
    for i in range(cfg.n_layers):
        stem = f"blocks.{i}"
        for hook in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"):
            shapes[f"{stem}.{hook}"] = (b, p, m)
        norms += [(f"{stem}.ln1", m), (f"{stem}.ln2", m)]
        norms += [(f"{stem}.ln_p1", extra), (f"{stem}.ln_p2", extra)] if extra else []
        shapes |= {f"{stem}.{part}.hook_act_in": (b, p, m + extra) for part in ("attn", "mlp")}
        shapes |= {f"{stem}.attn.hook_{letter}": (b, p, h, d) for letter in "qkvz"}
        shapes |= {f"{stem}.attn.hook_{what}": (b, h, p, p) for what in ("attn_scores", "pattern")}
        shapes |= {f"{stem}.mlp.hook_{when}": (b, p, f) for when in ("pre", "post")}
        if fields.get("sink"):
            shapes[f"{stem}.attn.hook_sink"] = (b, h, p)
    for norm, width in norms:
        shapes |= {f"{norm}.hook_{what}": (b, p, width) for what in ("in", "out", "normalized")}
        shapes[f"{norm}.hook_scale"] = (b, p, 1)
    return shapes


def test_every_hook_fires_in_its_shape(reference: Any, bridge: TransformerBridge, tokens: Tensor) -> None:
    _, cache = bridge.run_with_cache(tokens)
    for name, shape in expected_shapes(bridge, reference.fields).items():
        assert cache[name].shape == shape, name
    silent = {name.split(".", 2)[2] for name in bridge.hook_dict if name not in cache}
    assert silent == NEVER_FIRE
    assert ("blocks.0.attn.hook_sink" in bridge.hook_dict) == bool(reference.fields.get("sink"))


def test_each_hook_point_fires_once(bridge: TransformerBridge, tokens: Tensor) -> None:
    counts: dict[int, int] = {}

    def count(module: HookPoint, args: Any, output: Any) -> None:
        counts[id(module)] = counts.get(id(module), 0) + 1

    handles = [point.register_forward_hook(count) for point in set(bridge.hook_dict.values())]
    bridge(tokens)
    for handle in handles:
        handle.remove()
    assert set(counts.values()) == {1}


def test_named_result_hooks(fresh_bridge: TransformerBridge, tokens: Tensor) -> None:
    bridge, cfg = fresh_bridge, fresh_bridge.cfg
    clean = bridge(tokens)
    bridge.set_use_attn_result(True)
    logits, cache = bridge.run_with_cache(tokens)
    torch.testing.assert_close(logits, clean, atol=1e-5, rtol=0)
    result, z = cache["blocks.0.attn.hook_result"], cache["blocks.0.attn.hook_z"]
    assert result.shape == (BATCH, POS, cfg.n_heads, cfg.d_model)
    torch.testing.assert_close(result, torch.einsum("bphd,hdm->bphm", z, bridge.W_O[0]), atol=1e-5, rtol=0)

    def drop_head(tensor: Tensor, hook: Any) -> Tensor:
        tensor[:, :, 0] = 0
        return tensor

    by_result = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_result", drop_head)])
    bridge.set_use_attn_result(False)
    by_z = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", drop_head)])
    torch.testing.assert_close(by_result, by_z, atol=1e-5, rtol=0)


def test_mlp_in_hook_reaches_the_mlp_alone(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    sink_bridge.set_use_hook_mlp_in(True)
    _, clean = sink_bridge.run_with_cache(tokens)
    with sink_bridge.hooks(fwd_hooks=[("blocks.0.hook_mlp_in", lambda x, hook: torch.zeros_like(x))]):
        _, cache = sink_bridge.run_with_cache(tokens)
    assert not torch.equal(cache["blocks.0.hook_mlp_out"], clean["blocks.0.hook_mlp_out"])
    assert torch.equal(cache["blocks.0.hook_resid_mid"], clean["blocks.0.hook_resid_mid"])


def test_resid_mid_edit_reaches_the_skip_path(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    def shift(tensor: Tensor, hook: Any) -> Tensor:
        return tensor + 1.0

    def silence(tensor: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(tensor)

    silent = [("blocks.0.hook_mlp_out", silence)]
    with sink_bridge.hooks(fwd_hooks=silent):
        _, clean = sink_bridge.run_with_cache(tokens)
    with sink_bridge.hooks(fwd_hooks=[*silent, ("blocks.0.hook_resid_mid", shift)]):
        _, cache = sink_bridge.run_with_cache(tokens)
    torch.testing.assert_close(cache["blocks.0.hook_resid_post"], clean["blocks.0.hook_resid_post"] + 1.0)
    assert not torch.equal(cache["blocks.0.ln2.hook_in"], clean["blocks.0.ln2.hook_in"])


def test_sink_edit_is_a_change_of_the_parameter(sink_reference: Any, sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    new = torch.tensor([2.0, -1.0, 0.5, 3.0])
    edited = sink_bridge.run_with_hooks(
        tokens, fwd_hooks=[("blocks.1.attn.hook_sink", lambda sink, hook: new[None, :, None].expand_as(sink))]
    )
    assert (edited - sink_bridge(tokens)).abs().max() > 1e-3
    core = load_checkpoint(sink_reference.folder).core
    core.blocks[1].attn.sink_logit.data = new  # type: ignore[union-attr]
    torch.testing.assert_close(edited, core(tokens), atol=1e-6, rtol=0)


def test_sink_takes_the_missing_mass(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    _, cache = sink_bridge.run_with_cache(tokens)
    scores, sink = cache["blocks.0.attn.hook_attn_scores"], cache["blocks.0.attn.hook_sink"]
    mass = sink.exp() / (sink.exp() + scores.exp().tril().sum(-1))
    torch.testing.assert_close(1 - cache["blocks.0.attn.hook_pattern"].sum(-1), mass, atol=1e-5, rtol=0)


def test_pattern_edit_moves_the_output(bridge: TransformerBridge, tokens: Tensor) -> None:
    cut = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda x, hook: torch.zeros_like(x))])
    assert (cut - bridge(tokens)).abs().max() > 1e-4


@pytest.mark.parametrize("run", ["run_with_hooks", "run_with_cache", "hooks"])
def test_hooks_are_gone_after_an_exception(sink_bridge: TransformerBridge, tokens: Tensor, run: str) -> None:
    def fail(tensor: Tensor, hook: Any) -> Tensor:
        raise RuntimeError("as asked")

    clean = sink_bridge(tokens)
    point = sink_bridge.hook_dict["blocks.1.mlp.hook_post"]
    with pytest.raises(RuntimeError, match="as asked"):
        if run == "run_with_cache":
            sink_bridge.add_hook("blocks.1.mlp.hook_post", fail)
            sink_bridge.run_with_cache(tokens)
        elif run == "run_with_hooks":
            sink_bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.mlp.hook_post", fail)])
        else:
            with sink_bridge.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", fail)]):
                sink_bridge(tokens)
    assert len(point.fwd_hooks) == (run == "run_with_cache")  # the user's own hook stays
    sink_bridge.reset_hooks()
    assert not any(hook.fwd_hooks or hook._forward_hooks for hook in sink_bridge.hook_dict.values())
    assert torch.equal(sink_bridge(tokens), clean)


class Doubled(nn.Module):
    """Stands in a hook point's place, as SAELens' wrapper does."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 3
        return x * 2


@pytest.mark.parametrize(
    "path",
    [
        *("blocks.0.attn.hook_q", "blocks.0.attn.hook_z", "blocks.0.attn.hook_act_in", "blocks.1.mlp.hook_post"),
        *("blocks.0.mlp.hook_pre", "blocks.0.mlp.hook_act_in", "blocks.0.mlp.out.hook_in", "blocks.0.attn.o.hook_in"),
        *("blocks.0.hook_in", "blocks.0.resid_mid.hook_out", "blocks.1.mlp.hook_out", "ln_final.hook_in"),
        *("blocks.0.ln1.hook_normalized", "blocks.0.attn.hook_sink", "embed.hook_out", "unembed.hook_out"),
    ],
)
def test_a_module_in_a_hook_points_place_takes_effect(sink_bridge: TransformerBridge, tokens: Tensor, path: str) -> None:
    *parents, name = path.split(".")
    owner: Any = sink_bridge
    for part in parents:
        owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
    by_hook = sink_bridge.run_with_hooks(tokens, fwd_hooks=[(path, lambda x, hook: x * 2)])
    clean = sink_bridge(tokens)
    setattr(owner, name, Doubled())
    torch.testing.assert_close(sink_bridge(tokens), by_hook, atol=1e-5, rtol=0)
    setattr(owner, name, HookPoint())  # as SAELens takes its wrapper off
    sink_bridge._hook_registry[path] = getattr(owner, name)
    torch.testing.assert_close(sink_bridge(tokens), clean, atol=1e-5, rtol=0)
    again = sink_bridge.run_with_hooks(tokens, fwd_hooks=[(path, lambda x, hook: x * 2)])
    torch.testing.assert_close(again, by_hook, atol=1e-5, rtol=0)


def test_a_foreign_hook_on_a_norm_keeps_the_gradient(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    point = sink_bridge.hook_dict["blocks.0.ln1.hook_normalized"]
    scale = torch.ones((), requires_grad=True)
    handle = point.register_forward_hook(lambda module, args, output: output * scale)
    clean_sum = sink_bridge(tokens).square().sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(clean_sum, scale)
    assert gradient.abs() > 1e-3


def test_deepcopy_is_independent(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    twin = copy.deepcopy(sink_bridge)
    clean = sink_bridge(tokens)
    twin.add_hook("blocks.0.attn.hook_z", lambda z, hook: torch.zeros_like(z))
    assert not torch.equal(twin(tokens), clean)
    assert torch.equal(sink_bridge(tokens), clean)


def test_gradients_through_the_cache(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    _, plain = sink_bridge.run_with_cache(tokens, return_type="loss", names_filter=lambda name: "ln" not in name, incl_bwd=True)
    _, cache = sink_bridge.run_with_cache(tokens)
    assert plain["blocks.0.attn.hook_z_grad"].shape == cache["blocks.0.attn.hook_z"].shape
    assert plain["blocks.0.hook_resid_mid_grad"].abs().max() > 0


def test_too_long_an_input_says_so(sink_bridge: TransformerBridge) -> None:
    with pytest.raises(SparseLensError, match="17 tokens, this model has block_size=16"):
        sink_bridge(torch.zeros(1, 17, dtype=torch.long))


def test_bigram_is_outside_the_unembedding(variant_folder: Callable[[str], Path]) -> None:
    bridge = load(variant_folder("bigram_buffer"))
    tokens = torch.arange(6)[None]
    logits, cache = bridge.run_with_cache(tokens)
    torch.testing.assert_close(cache["unembed.hook_out"] + cache["bigram.hook_out"], logits)
    without = bridge.run_with_hooks(tokens, fwd_hooks=[("bigram.hook_out", lambda x, hook: torch.zeros_like(x))])
    torch.testing.assert_close(without, cache["unembed.hook_out"])
