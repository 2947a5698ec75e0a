"""Tools that are not TransformerLens': SAELens' own attachment, nnsight, circuitsvis."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import SparseLensError, UnknownNameError
from sparse_lens.hooks import load, with_saelens

SAELENS = pytest.mark.tool(
    "SAELens: with_saelens, run_with_saes, add_sae, error term",
    limits="TransformerLens 3 only; a warning on hooks off the model's path; its error term carries no gradient (splice does)",
)
CIRCUITSVIS = pytest.mark.tool("circuitsvis: attention patterns", limits="rows of a model with a sink sum to less than one")
SITES = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_act_in", "attn.hook_q"),
    *("attn.hook_v", "attn.hook_z", "mlp.hook_act_in", "mlp.hook_pre", "mlp.hook_post", "mlp.out.hook_in", "ln2.hook_normalized"),
)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(23, (2, 6), generator=torch.Generator().manual_seed(1))


def random_sae(hook: str, width: int) -> Any:
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens caps TransformerLens below 4")
    from sae_lens.saes.sae import SAEMetadata

    config = sae_lens.StandardSAEConfig(d_in=width, d_sae=9, dtype="float32", metadata=SAEMetadata(hook_name=hook))
    sae = sae_lens.StandardSAE(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    return sae


@pytest.mark.parametrize("site", SITES)
@SAELENS
@torch.no_grad()
def test_saelens_attachment(architecture: TransformerBridge, tokens: Tensor, site: str) -> None:
    name = f"blocks.1.{site}"
    clean, cache = architecture.run_with_cache(tokens)
    shape = cache[name].shape
    sae = random_sae(name, cache[name].flatten(2).shape[-1])
    bridge: Any = with_saelens(cast(Any, architecture))

    def replace(tensor: Tensor, hook: Any) -> Tensor:
        return sae(tensor.flatten(2)).view(shape)

    expected = bridge.run_with_hooks(tokens, fwd_hooks=[(name, replace)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bridge.run_with_saes(tokens, saes=[sae], use_error_term=False)
        exact = bridge.run_with_saes(tokens, saes=[sae], use_error_term=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exact, clean, atol=1e-4, rtol=1e-4)
    assert (expected - clean).abs().max() > 1e-3
    assert torch.equal(bridge(tokens), clean)


@SAELENS
@torch.no_grad()
def test_saelens_keeps_the_decompositions(build_bridge: Callable[[str], TransformerBridge], tokens: Tensor) -> None:
    bridge: Any = build_bridge("sink_abstopk_bigram")
    sae = random_sae("blocks.1.mlp.hook_post", 48)
    with with_saelens(bridge).saes(saes=[sae]):
        _, cache = bridge.run_with_cache(tokens)
    torch.testing.assert_close(
        cache.stack_head_results(1, incl_remainder=True).sum(0), cache["blocks.0.hook_resid_post"], atol=1e-5, rtol=1e-5
    )


@SAELENS
def test_saelens_on_wrong_hooks(build_bridge: Callable[[str], TransformerBridge]) -> None:
    wrong = random_sae("blocks.0.hook_resid_prex", 12)
    bridge: Any = with_saelens(cast(Any, build_bridge("plain_rms")))
    with pytest.raises(UnknownNameError, match="hook_resid_pre"):
        bridge.add_sae(wrong)
    with pytest.warns(UserWarning, match="use sparse_lens.hooks.splice"):
        bridge.add_sae(random_sae("blocks.0.attn.hook_pattern", 12))


@SAELENS
def test_without_saelens_the_extra_is_named(build_bridge: Callable[[str], TransformerBridge]) -> None:
    if importlib.util.find_spec("sae_lens") is not None:
        pytest.skip("sae-lens is installed")
    with pytest.raises(SparseLensError, match=r"sparse_lens\[sae\]"):
        with_saelens(cast(Any, build_bridge("plain_rms")))


@pytest.mark.tool("nnsight: tracing of the bridge and of the Hugging Face model", limits="values in the order of computation")
def test_nnsight(architecture: TransformerBridge, tokens: Tensor) -> None:
    """Reading and editing by tracing, of the bridge and of the Hugging Face model inside."""
    nnsight = pytest.importorskip("nnsight")
    with torch.no_grad():
        clean, cache = architecture.run_with_cache(tokens)

        def silence(tensor: Tensor, hook: Any) -> Tensor:
            return torch.zeros_like(tensor)

        edited = architecture.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_mlp_out", silence)])
        traced = nnsight.NNsight(architecture)
        with traced.trace(tokens):
            stream = traced.blocks[0].hook_out.output.save()
            logits = traced.output.save()
        torch.testing.assert_close(stream, cache["blocks.0.hook_resid_post"])
        torch.testing.assert_close(logits, clean)
        model = nnsight.NNsight(architecture.original_model)
        with model.trace(tokens):
            model.core.blocks[0].mlp.output[:] = 0
            logits = model.output.logits.save()
    torch.testing.assert_close(logits, edited, atol=1e-5, rtol=1e-5)


@CIRCUITSVIS
def test_circuitsvis(architecture: TransformerBridge, tokens: Tensor) -> None:
    """Attention patterns whose rows sum to less than one are drawn as they are."""
    attention = pytest.importorskip("circuitsvis.attention")
    _, cache = architecture.run_with_cache(tokens[:1])
    pattern = cache["blocks.0.attn.hook_pattern"][0].detach()
    page = str(attention.attention_patterns(tokens=[str(token) for token in tokens[0].tolist()], attention=pattern))
    assert f"{float(pattern[0, 1, 1]):.4f}"[:5] in page
    assert (float(pattern.sum(-1).max()) < 1) == bool(architecture.model_config.sink)


@CIRCUITSVIS
def test_circuitsvis_on_a_real_model() -> None:
    attention = pytest.importorskip("circuitsvis.attention")
    bridge = load("python-sparse")
    text = "for i in range(3):\n    print(i)\n"
    _, cache = bridge.run_with_cache(bridge.to_tokens(text))
    page = attention.attention_patterns(
        tokens=bridge.to_str_tokens(text), attention=cache["blocks.1.attn.hook_pattern"][0].detach()
    )
    assert "print" in str(page)
