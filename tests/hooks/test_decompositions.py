"""Decompositions of the residual stream: they add up in every variant, and equal TransformerLens' where it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import SparseLensError
from sparse_lens.hooks.cache import CircuitGPTCache

pytestmark = pytest.mark.tool(
    "ActivationCache: decompose_resid, accumulated_resid, logit_attrs, stack_head_results, stack_neuron_results and the full one",
    limits="exact, with the masks of that forward pass; the hooks that the masks are read from must be cached",
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TARGETS = ((None, False), (0, False), (0, True), (1, False), (1, True))
VARIANTS = (
    *("plain_layernorm", "afrac_half_rms", "afrac_keeps_one", "learned_concatenated", "learned_concatenated_rms_sparse"),
    *("sink_sparse", "sink_sparse_biased", "relu_residual_sparse", "everything", "tied"),
)


@pytest.fixture(params=VARIANTS)
def run(request: pytest.FixtureRequest, build_bridge: Callable[[str], TransformerBridge]) -> tuple[TransformerBridge, Any, Tensor]:
    """A bridge, its cache on two rows, its logits."""
    bridge = build_bridge(request.param)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens())
    return bridge, cache, logits


def tokens() -> Tensor:
    return torch.randint(23, (2, 7), generator=torch.Generator().manual_seed(3))


def stream(cache: Any, layer: int | None, mlp_input: bool, n_layers: int) -> Tensor:
    if mlp_input:
        return cache[f"blocks.{layer}.hook_resid_mid"]
    return cache[f"blocks.{n_layers - 1}.hook_resid_post"] if layer is None else cache[f"blocks.{layer}.hook_resid_pre"]


@pytest.mark.parametrize(("layer", "mlp_input"), TARGETS)
def test_terms_add_up(run: tuple[TransformerBridge, Any, Tensor], layer: int | None, mlp_input: bool) -> None:
    bridge, cache, _ = run
    target = stream(cache, layer, mlp_input, bridge.cfg.n_layers)
    for expand in (True, False):
        stack, labels = cache.get_full_resid_decomposition(layer, mlp_input, expand_neurons=expand, return_labels=True)
        assert len(stack) == len(labels)
        torch.testing.assert_close(stack.sum(0), target, **CLOSE)
    stack, labels = cache.decompose_resid(layer, mlp_input, return_labels=True)
    assert ("pos_embed" in labels) == (bridge.model_config.d_pos_emb is None)
    torch.testing.assert_close(stack.sum(0), target, **CLOSE)


def test_remainders_complete(run: tuple[TransformerBridge, Any, Tensor]) -> None:
    bridge, cache, _ = run
    for layer in range(1, bridge.cfg.n_layers + 1):
        target = cache[f"blocks.{layer - 1}.hook_resid_post"]
        for method in (cache.stack_head_results, cache.stack_neuron_results):
            stack, labels = method(layer, incl_remainder=True, return_labels=True)
            assert labels[-1] == "remainder"
            torch.testing.assert_close(stack.sum(0), target, **CLOSE)


def test_shares_are_effects(run: tuple[TransformerBridge, Any, Tensor]) -> None:
    """A head's term is what its write changes in the residual stream, with the masks held where they were."""
    bridge, cache, _ = run
    stack = cache.stack_head_results(1)
    write = torch.einsum("bpd,dm->bpm", cache["blocks.0.attn.hook_z"][:, :, 0], bridge.W_O[0, 0])
    expected = write
    for hook in ("hook_attn_out", "hook_resid_mid", "hook_resid_post"):
        kept = cache[f"blocks.0.{hook}"] != 0
        if hook == "hook_attn_out" and "attn_out" not in bridge.model_config.sparse_sites:
            continue
        if hook == "hook_resid_post" and not {"resid_post_mlp"} & set(bridge.model_config.sparse_sites):
            continue
        if hook == "hook_resid_mid" and not {"resid_post_attn"} & set(bridge.model_config.sparse_sites):
            continue
        expected = torch.where(kept, expected, torch.zeros(()))
    torch.testing.assert_close(stack[0], expected, **CLOSE)


@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_projecting_first_is_projecting_last(run: tuple[TransformerBridge, Any, Tensor], apply_ln: bool, width: int) -> None:
    bridge, cache, _ = run
    matrix = torch.randn(bridge.cfg.d_model, width, generator=torch.Generator().manual_seed(4))
    projection = matrix[:, 0] if width == 1 else matrix
    for method, arguments in ((cache.get_full_resid_decomposition, (1, True)), (cache.stack_neuron_results, (1,))):
        plain = method(*arguments, apply_ln=apply_ln) @ projection
        projected = method(*arguments, apply_ln=apply_ln, project_output_onto=projection)
        torch.testing.assert_close(projected, plain, **CLOSE)


def test_slices(run: tuple[TransformerBridge, Any, Tensor]) -> None:
    _, cache, _ = run
    torch.testing.assert_close(cache.decompose_resid(1, pos_slice=-1), cache.decompose_resid(1)[:, :, -1])
    torch.testing.assert_close(cache.stack_head_results(1, pos_slice=(1, 4)), cache.stack_head_results(1)[:, :, 1:4])
    some, labels = cache.stack_neuron_results(1, neuron_slice=(2, 5), pos_slice=2, return_labels=True)
    torch.testing.assert_close(some, cache.stack_neuron_results(1)[2:5, :, 2])
    assert labels == ["L0N2", "L0N3", "L0N4"]
    one_row = cache.apply_slice_to_batch_dim(1)
    assert isinstance(one_row, CircuitGPTCache)
    torch.testing.assert_close(one_row.get_full_resid_decomposition(), cache.get_full_resid_decomposition()[:, 1])


def test_logit_attributions_add_up(run: tuple[TransformerBridge, Any, Tensor]) -> None:
    """To the logit, less what does not come from the residual stream: biases and bigram table."""
    bridge, cache, logits = run
    answer, other = 5, 11
    apart = bridge.b_U.expand_as(logits)
    if "bigram.hook_out" in cache:
        apart = apart + cache["bigram.hook_out"]
    if getattr(bridge.ln_final, "bias", None) is not None:
        apart = apart + bridge.ln_final.bias @ bridge.W_U
    expected = logits - apart
    stack = cache.decompose_resid()
    torch.testing.assert_close(cache.logit_attrs(stack, answer).sum(0), expected[..., answer], **CLOSE)
    difference = cache.logit_attrs(stack, answer, incorrect_tokens=other).sum(0)
    torch.testing.assert_close(difference, expected[..., answer] - expected[..., other], **CLOSE)


@pytest.mark.parametrize("variant", ["plain_layernorm", "tied", "plain_rms"])
def test_equal_to_transformerlens_where_nothing_masks(build_bridge: Callable[[str], TransformerBridge], variant: str) -> None:
    bridge = build_bridge(variant)
    with torch.no_grad():
        _, ours = bridge.run_with_cache(tokens())
    theirs = ActivationCache(dict(ours.cache_dict), bridge)
    for layer, mlp_input in TARGETS:
        for name in ("decompose_resid", "get_full_resid_decomposition"):
            ours_stack, our_labels = getattr(ours, name)(layer, mlp_input=mlp_input, apply_ln=True, return_labels=True)
            stack, labels = getattr(theirs, name)(layer, mlp_input=mlp_input, apply_ln=True, return_labels=True)
            assert our_labels == labels
            torch.testing.assert_close(ours_stack, stack, **CLOSE)
    heads = ours.stack_head_results(incl_remainder=True, apply_ln=True)
    torch.testing.assert_close(heads, theirs.stack_head_results(incl_remainder=True, apply_ln=True), **CLOSE)
    neurons, labels = ours.stack_neuron_results(-1, neuron_slice=(0, 4), pos_slice=-1, return_labels=True)
    stack, their_labels = theirs.stack_neuron_results(-1, neuron_slice=(0, 4), pos_slice=-1, return_labels=True)
    torch.testing.assert_close(neurons, stack, **CLOSE)
    assert labels == their_labels


def test_accumulated_resid(run: tuple[TransformerBridge, Any, Tensor]) -> None:
    bridge, cache, _ = run
    stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels[:2] == ["0_pre", "0_mid"]
    torch.testing.assert_close(stack[-1], stream(cache, None, False, bridge.cfg.n_layers))
    normalized = cache.accumulated_resid(apply_ln=True)[-1]
    torch.testing.assert_close(normalized, cache["ln_final.hook_out"], **CLOSE)


def test_a_missing_mask_is_named(build_bridge: Callable[[str], TransformerBridge]) -> None:
    bridge = build_bridge("sink_abstopk_bigram")
    _, cache = bridge.run_with_cache(tokens(), names_filter=lambda name: not name.endswith(("attn_out", "attn.hook_out")))
    with pytest.raises(SparseLensError, match=r"the mask at blocks\.0\.hook_attn_out"):
        cache.stack_head_results(1)


def test_impossible_layers_are_refused(architecture: TransformerBridge) -> None:
    _, cache = architecture.run_with_cache(tokens())
    for layer, mlp_input in ((3, False), (-2, False), (2, True)):
        with pytest.raises(SparseLensError, match="2 layers"):
            cache.decompose_resid(layer, mlp_input)
    with pytest.raises(SparseLensError, match="project_output_onto"):
        cache.stack_neuron_results(1, project_output_onto=torch.zeros(1, 2, 3))
