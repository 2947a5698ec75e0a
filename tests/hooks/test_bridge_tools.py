"""The bridge as an object: its weights and configuration, weight processing, and what it keeps alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import SparseLensError
from sparse_lens.hooks import load

pytestmark = pytest.mark.tool(
    "enable_compatibility_mode, process_weights",
    limits="a processing that would change the model is refused by name; no_processing=True always works",
)


@pytest.fixture
def clean() -> Tensor:
    return torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture
def corrupt() -> Tensor:
    return torch.tensor([[2, 7, 1, 8, 2]])


@torch.no_grad()
def test_patching_the_whole_input_gives_the_clean_run(bridge: TransformerBridge, clean: Tensor, corrupt: Tensor) -> None:
    _, cache = bridge.run_with_cache(clean)
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: cache["blocks.0.hook_resid_pre"])]
    patched = bridge.run_with_hooks(corrupt, fwd_hooks=hooks)[0, -1]
    torch.testing.assert_close(patched, expected_last(bridge, clean, corrupt))


def expected_last(bridge: TransformerBridge, clean: Tensor, corrupt: Tensor) -> Tensor:
    """The clean run's last logits, but with the bigram row of the corrupt token."""
    logits = bridge(clean)[0, -1]
    if "bigram.hook_out" in bridge.hook_dict:
        table = bridge.bigram.W_E
        logits = logits - table[clean[0, -1]] + table[corrupt[0, -1]]
    return logits


def test_stop_at_layer(bridge: TransformerBridge, clean: Tensor) -> None:
    _, cache = bridge.run_with_cache(clean)
    for layer in range(bridge.cfg.n_layers):
        assert torch.equal(bridge(clean, stop_at_layer=layer), cache[f"blocks.{layer}.hook_resid_pre"])
    assert torch.equal(bridge(clean, stop_at_layer=-1), cache[f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_pre"])
    _, partial = bridge.run_with_cache(clean, stop_at_layer=0)
    assert "blocks.0.hook_resid_post" not in partial


def test_weights_are_stacked_by_head(reference: Any, bridge: TransformerBridge) -> None:
    cfg, state = bridge.cfg, reference.state()
    heads, width = (cfg.n_layers, cfg.n_heads), cfg.d_model + (reference.fields.get("d_pos_emb") or 0)
    assert bridge.W_Q.shape == bridge.W_K.shape == bridge.W_V.shape == (*heads, width, cfg.d_head)
    assert bridge.W_O.shape == (*heads, cfg.d_head, cfg.d_model)
    assert bridge.b_Q.shape == bridge.b_K.shape == bridge.b_V.shape == (*heads, cfg.d_head)
    assert bridge.b_O.shape == bridge.b_out.shape == (cfg.n_layers, cfg.d_model)
    assert bridge.b_in.shape == (cfg.n_layers, cfg.d_mlp)
    assert bridge.W_in.shape == (cfg.n_layers, width, cfg.d_mlp)
    assert bridge.W_out.shape == (cfg.n_layers, cfg.d_mlp, cfg.d_model)
    assert torch.equal(bridge.W_U, state.get("lm_head.weight", state["transformer.wte.weight"]).T)
    assert torch.equal(bridge.W_E, state["transformer.wte.weight"])
    assert torch.equal(bridge.W_pos, state["transformer.wpe.weight"])
    assert bridge.b_U.shape == (cfg.d_vocab,)
    last, rows = cfg.n_heads - 1, state["transformer.h.0.attn.c_attn.weight"].float()
    queries = rows[: cfg.n_heads * cfg.d_head]
    assert torch.equal(bridge.W_Q[0, last], queries[last * cfg.d_head :].T)


def test_weights_compute_the_hooks(sink_bridge: TransformerBridge, clean: Tensor) -> None:
    _, cache = sink_bridge.run_with_cache(clean)
    q = torch.einsum("bpm,hmd->bphd", cache["blocks.1.attn.hook_act_in"], sink_bridge.W_Q[1]) + sink_bridge.b_Q[1]
    torch.testing.assert_close(q, cache["blocks.1.attn.hook_q"], atol=1e-5, rtol=0)
    out = torch.einsum("bphd,hdm->bpm", cache["blocks.1.attn.hook_z"], sink_bridge.W_O[1]) + sink_bridge.b_O[1]
    torch.testing.assert_close(out, cache["blocks.1.hook_attn_out"], atol=1e-5, rtol=0)
    pre = cache["blocks.1.mlp.hook_act_in"] @ sink_bridge.W_in[1] + sink_bridge.b_in[1]
    torch.testing.assert_close(pre, cache["blocks.1.mlp.hook_pre"], atol=1e-5, rtol=0)


PROCESSED = ("plain_layernorm", "layernorm_without_bias", "layernorm_no_linear_bias", "tied", "bigram_buffer", "wide_heads")


@pytest.mark.parametrize("variant", PROCESSED)
@torch.no_grad()
def test_weight_processing_keeps_the_predictions(variant_folder: Callable[[str], Path], variant: str) -> None:
    bridge = load(variant_folder(variant))
    tokens = torch.arange(8)[None]
    before = bridge(tokens).log_softmax(-1)
    bridge.enable_compatibility_mode()
    torch.testing.assert_close(bridge(tokens).log_softmax(-1), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("variant", "setting"),
    [
        ("afrac_default_sites", "fold_ln: AbsTopK on attn_in"),
        ("sink_sparse", "AbsTopK on mlp_in"),
        ("sink_concatenated", "d_pos_emb=5"),
        ("relu_residual_sparse", "sink=True"),
        ("learned_concatenated", "center_writing_weights: d_pos_emb=6"),
    ],
)
@torch.no_grad()
def test_wrong_weight_processing_is_refused(variant_folder: Callable[[str], Path], variant: str, setting: str) -> None:
    bridge = load(variant_folder(variant))
    tokens = torch.arange(8)[None]
    before = bridge(tokens)
    for call in (bridge.enable_compatibility_mode, bridge.process_weights):
        with pytest.raises(SparseLensError, match=setting):
            call()
    bridge.enable_compatibility_mode(no_processing=True)
    assert torch.equal(bridge(tokens), before)


@pytest.mark.parametrize(("variant", "setting"), [("sink_concatenated", "sink=True"), ("layernorm_no_linear_bias", "bias=False")])
def test_refactoring_is_refused_where_it_is_wrong(variant_folder: Callable[[str], Path], variant: str, setting: str) -> None:
    """TransformerLens folds the value biases with it, which a sink forbids, and expects biases."""
    steps = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    with pytest.raises(SparseLensError, match=f"refactor_factored_attn_matrices: {setting}"):
        load(variant_folder(variant)).enable_compatibility_mode(**steps, refactor_factored_attn_matrices=True)


@torch.no_grad()
def test_refusals_are_needed(variant_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the predictions would change, which is why they are there."""
    monkeypatch.setattr("sparse_lens.hooks.bridge.refuse_wrong_processing", lambda *_, **__: None)
    tokens = torch.arange(8)[None]
    for variant, step in (("afrac_default_sites", "fold_ln"), ("sink_sparse_biased", "fold_value_biases")):
        bridge = load(variant_folder(variant))
        before = bridge(tokens).log_softmax(-1)
        steps = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
        bridge.enable_compatibility_mode(**{**steps, step: True})
        assert (bridge(tokens).log_softmax(-1) - before).abs().max() > 1e-2, variant


def test_state_dict_round_trip(reference: Any, fresh_bridge: TransformerBridge, clean: Tensor) -> None:
    state = {name: tensor.clone() for name, tensor in fresh_bridge.state_dict().items()}
    logits = fresh_bridge(clean)
    with torch.no_grad():
        for parameter in fresh_bridge.parameters():
            parameter.zero_()
    assert not torch.equal(fresh_bridge(clean), logits)
    fresh_bridge.load_state_dict(state)
    assert torch.equal(fresh_bridge(clean), logits)


def test_prepare_model_is_idempotent(sink_bridge: TransformerBridge, clean: Tensor) -> None:
    logits, cfg = sink_bridge(clean), dict(vars(sink_bridge.cfg))
    sink_bridge.adapter.prepare_model(sink_bridge.original_model)
    assert torch.equal(sink_bridge(clean), logits)
    assert vars(sink_bridge.cfg) == cfg


def test_configuration(reference: Any, bridge: TransformerBridge) -> None:
    cfg, rms = bridge.cfg, bool(reference.fields.get("rms_norm"))
    assert cfg.eps == (torch.finfo(torch.float32).eps if rms else 1e-5)
    assert (cfg.normalization_type, cfg.uses_rms_norm, cfg.final_rms) == ("RMS" if rms else "LN", rms, rms)
    assert cfg.act_fn == reference.fields.get("activation_type", "gelu")
    assert cfg.tokenizer_name is None
    assert cfg.positional_embedding_type == ("concat" if reference.fields.get("d_pos_emb") else "standard")
    assert (cfg.d_vocab, cfg.d_vocab_out, cfg.n_ctx) == (41, 41, 16)
    assert bridge.adapter.supports_kv_cache
    assert cfg.default_prepend_bos is False


def test_nothing_keeps_the_model_alive(sink_reference: Any, clean: Tensor) -> None:
    bridge = load(sink_reference.folder)
    bridge.run_with_hooks(clean, fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z)])
    bridge.run_with_cache(clean)
    watched = [weakref.ref(thing) for thing in (bridge, bridge.original_model, bridge.blocks[0].attn)]
    gc.collect()
    gc.disable()
    try:
        del bridge
        assert [ref() for ref in watched] == [None, None, None]
    finally:
        gc.enable()
