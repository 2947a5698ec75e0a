"""`sparse_lens.hooks.patching` against `transformer_lens.patching`, function by function, and what it does beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens import patching as original
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import sparse_lens.hooks.patching as ours
import sparse_lens.hooks.recording as recording
from sparse_lens.errors import SparseLensError, UnknownNameError

FUNCTIONS = sorted(name for name in dir(original) if name.startswith("get_act_patch_") and "direct_path" not in name)
SINGLE = [name for name in FUNCTIONS if not name.endswith("_every")]
EVERY = [name for name in FUNCTIONS if name.endswith("_every")]
MODELS = ["sink_abstopk_bigram", "concatenated", "gpt2", "llama", pytest.param("everything", marks=pytest.mark.slow)]
CLEAN = torch.tensor([[3, 1, 4], [3, 6, 2]])
CORRUPT = torch.tensor([[3, 7, 4], [3, 8, 2]])


def last(logits: Tensor) -> Tensor:
    return (logits[:, -1, 9] - logits[:, -1, 11]).mean()


def everywhere(logits: Tensor) -> Tensor:
    """Reads all logits."""
    return logits.log_softmax(-1)[:, :, 5].mean()


def other_decoder(name: str) -> TransformerBridge:
    torch.manual_seed(0)
    if name == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=12, vocab_size=23, n_positions=12))
    else:
        sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16, "intermediate_size": 24}
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=23, max_position_embeddings=12, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape) if parameter.ndim == 2 else parameter + 0.1)
    architecture = type(model).__name__
    return build_bridge_from_module(
        model.eval(), architecture, hf_config=model.config, tokenizer=None, device="cpu", model_name=name
    )


@pytest.fixture
def build(build_bridge: Callable[[str], TransformerBridge]) -> Callable[[str], TransformerBridge]:
    return lambda name: other_decoder(name) if name in ("gpt2", "llama") else build_bridge(name)


@pytest.fixture
def bridge(build: Callable[[str], TransformerBridge]) -> TransformerBridge:
    return build("everything")


@pytest.fixture(autouse=True)
def quiet_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original, "tqdm", lambda iterable, **_: iterable)


@torch.no_grad()
def clean_cache(bridge: TransformerBridge) -> Any:
    return bridge.run_with_cache(CLEAN)[1]


def assert_close(found: Tensor, expected: Tensor, function: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda text: f"{function}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_every_function(build: Callable[[str], TransformerBridge], name: str) -> None:
    bridge = build(name)
    cache = clean_cache(bridge)
    expected: dict[str, Tensor] = {}
    for number, function in enumerate(SINGLE):
        metric = everywhere if number % 3 == 0 else last
        with torch.no_grad():
            expected[function] = getattr(original, function)(bridge, CORRUPT, cache, metric)
        assert_close(getattr(ours, function)(bridge, CORRUPT, cache, metric, progress=False), expected[function], function)
    assert not any(point.fwd_hooks or point._forward_hooks for point in bridge.hook_dict.values())
    assert not any("forward" in vars(module) for module in bridge.modules())


@pytest.mark.parametrize(("name", "function"), [("sink_abstopk_bigram", EVERY[0]), *(("llama", name) for name in EVERY)])
def test_stacks(build: Callable[[str], TransformerBridge], name: str, function: str) -> None:
    bridge = build(name)
    cache = clean_cache(bridge)
    with torch.no_grad():
        expected = getattr(original, function)(bridge, CORRUPT, cache, last)
    assert_close(getattr(ours, function)(bridge, CORRUPT, cache, last, progress=False), expected, function)


@pytest.mark.parametrize("metric", [last, everywhere])
def test_batch_size_is_invisible(bridge: TransformerBridge, metric: Any) -> None:
    arguments = (bridge, CORRUPT, clean_cache(bridge), metric)
    for function in ("get_act_patch_attn_head_out_all_pos", "get_act_patch_mlp_out"):
        expected = getattr(ours, function)(*arguments, progress=False)
        for batch_size in (1, 5):
            assert_close(getattr(ours, function)(*arguments, batch_size=batch_size, progress=False), expected, function)


@pytest.mark.parametrize("name", ["sink_abstopk_bigram", "gpt2"])
@pytest.mark.parametrize(
    ("hook", "permanent"),
    [("hook_embed", True), ("blocks.1.attn.hook_z", False), ("blocks.1.mlp.hook_post", True), ("ln_final.hook_out", False)],
)
def test_hooks_of_the_user_stay(build: Callable[[str], TransformerBridge], name: str, hook: str, permanent: bool) -> None:
    """They see one run at a time, so a hook that names a row of the batch means it."""
    bridge = build(name)
    cache = clean_cache(bridge)
    before = ours.get_act_patch_attn_out(bridge, CORRUPT, cache, last, progress=False)
    shapes = set()

    def user(tensor: Tensor, hook: Any) -> Tensor | None:
        shapes.add(tensor.shape[0])
        tensor = tensor.clone() if permanent else tensor
        tensor[1, 1:] *= 0.25
        return tensor if permanent else None

    bridge.add_hook(hook, user, is_permanent=permanent)
    for function in ("get_act_patch_resid_mid", "get_act_patch_attn_out", "get_act_patch_attn_head_q_all_pos"):
        with torch.no_grad():
            expected = getattr(original, function)(bridge, CORRUPT, cache, last)
        assert_close(getattr(ours, function)(bridge, CORRUPT, cache, last, progress=False), expected, function)
    assert shapes == {2}
    after = ours.get_act_patch_attn_out(bridge, CORRUPT, cache, last, progress=False)
    assert (before - after).abs().max() > 1e-4
    assert sum(len(point.fwd_hooks) for point in set(bridge.hook_dict.values())) == 1


@pytest.mark.parametrize(
    "metric",
    [
        lambda logits: logits[torch.arange(2), torch.tensor([1, -1]), torch.tensor([4, 5])].sum(),
        lambda logits: logits[..., -1, :].softmax(-1)[:, 3].sum(),
        lambda logits: logits[:, 1:2].logsumexp(-1).sum(),
        lambda logits: logits[0][-1, 3] + logits.shape[1],
        lambda logits: logits[logits.shape[0] - 1, 2, 3] * len(logits) + logits.numel(),
        lambda logits: torch.einsum("bpv,bpv->", logits, logits),
        lambda logits: float(logits.numpy().sum()) if isinstance(logits, Tensor) else None,
        lambda logits: logits[:, -1, 2].sum() if logits[0, -1, 3] > 0 else logits[:, 1, 2].sum(),
        lambda logits: logits[:, -1].sub_(1).sum() + logits.mul_(2)[:, -1].sum(),
        lambda logits: logits[logits > 0].sum(),
    ],
)
def test_any_metric(bridge: TransformerBridge, metric: Any) -> None:
    """Whatever part of the logits it reads, and if that depends on the run."""
    table = ours.get_act_patch_attn_out(bridge, CORRUPT, clean_cache(bridge), metric, progress=False)
    cache = clean_cache(bridge)
    with torch.no_grad():
        expected = original.get_act_patch_attn_out(bridge, CORRUPT, cache, lambda logits: torch.as_tensor(metric(logits)))
    torch.testing.assert_close(table, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["everything", "gpt2"])
@torch.no_grad()
def test_metric_that_reads_elsewhere_later(build: Callable[[str], TransformerBridge], name: str) -> None:
    """Unpatched, it reads the last position only; in patched runs another one too, from the middle of a batch on."""
    bridge = build(name)
    cache, unpatched = clean_cache(bridge), bridge(CORRUPT)[0, -1]

    def metric(logits: Tensor) -> Tensor:
        moved = (logits[0, -1] - unpatched).abs().max() > 1e-4
        return logits[:, 1, 2].sum() + logits[1, 0, 3] if moved else logits[:, -1, 2].sum()

    for function in ("get_act_patch_resid_pre", "get_act_patch_attn_head_out_all_pos", "get_act_patch_mlp_out"):
        expected = getattr(original, function)(bridge, CORRUPT, cache, metric)
        assert_close(getattr(ours, function)(bridge, CORRUPT, cache, metric, progress=False), expected, function)


@pytest.mark.parametrize("name", ["sink_abstopk_bigram", "gpt2"])
def test_without_anything_to_take_from(build: Callable[[str], TransformerBridge], name: str, monkeypatch: Any) -> None:
    """A model whose components cannot be recorded is run whole."""
    bridge = build(name)
    cache = clean_cache(bridge)
    arguments = (bridge, CORRUPT, cache, last)
    expected = ours.get_act_patch_block_every(*arguments, progress=False)
    monkeypatch.setattr(recording, "components", lambda model: [])
    assert_close(ours.get_act_patch_block_every(*arguments, progress=False), expected, "block_every")


@torch.no_grad()
def test_channels(bridge: TransformerBridge) -> None:
    cache = clean_cache(bridge)
    for name, hook, width in (("post", "mlp.hook_post", 48), ("attn.hook_act_in", "attn.hook_act_in", 16)):
        table = ours.activation_patch(bridge, CORRUPT, cache, last, name, ("layer", "channel"), progress=False)
        placed = ours.activation_patch(bridge, CORRUPT, cache, last, name, ("layer", "pos", "channel"), progress=False)
        assert table.shape == (3, width) and placed.shape == (3, 3, width)
        for layer, channel in ((0, 1), (1, 3), (2, 7)):
            for where, found in ((slice(None), table[layer, channel]), (1, placed[layer, 1, channel])):
                full = f"blocks.{layer}.{hook}"

                def patch(tensor: Tensor, hook: Any, full: str = full, where: Any = where, channel: int = channel) -> Tensor:
                    tensor[:, where, channel] = cache[full][:, where, channel]
                    return tensor

                torch.testing.assert_close(found, last(bridge.run_with_hooks(CORRUPT, fwd_hooks=[(full, patch)])))
        assert (table - last(bridge(CORRUPT))).abs().max() > 1e-5


def test_indices_and_setters_of_ones_own(bridge: TransformerBridge) -> None:
    cache = clean_cache(bridge)
    rows = pd.DataFrame({"layer": [2, 0, 1], "head_index": [1, 0, 1], "pos": [2, 1, 2]})
    full = ours.get_act_patch_attn_head_out_by_pos(bridge, CORRUPT, cache, last, progress=False)
    some = ours.activation_patch(bridge, CORRUPT, cache, last, "z", index_df=rows, progress=False)
    torch.testing.assert_close(some, full[[2, 0, 1], [2, 1, 2], [1, 0, 1]])

    def setter(corrupted: Tensor, index: Any, clean: Tensor) -> Tensor:
        corrupted[:, index[1], 5] = 2 * clean[:, index[1], 5]
        return corrupted

    arguments = (bridge, CORRUPT, cache, last, setter, "post", ["layer", "pos"])
    table, index = ours.generic_activation_patch(*arguments, return_index_df=True, progress=False)
    with torch.no_grad():
        expected, expected_index = original.generic_activation_patch(*arguments, return_index_df=True)
    torch.testing.assert_close(table, expected)
    pd.testing.assert_frame_equal(index, expected_index)


def test_one_prompt(bridge: TransformerBridge) -> None:
    _, cache = bridge.run_with_cache(CLEAN[0])
    table = ours.get_act_patch_resid_pre(bridge, CORRUPT[0], cache, last, progress=False)
    torch.testing.assert_close(table, ours.get_act_patch_resid_pre(bridge, CORRUPT[:1], cache, last, progress=False))


def test_bad_input_is_named(bridge: TransformerBridge) -> None:
    cache = clean_cache(bridge)

    def patch(tokens: Tensor = CORRUPT, cache: Any = cache, metric: Any = last, **options: Any) -> Tensor:
        return ours.get_act_patch_resid_pre(bridge, tokens, cache, metric, progress=False, **options)

    with pytest.raises(SparseLensError, match="same number of tokens"):
        patch(CORRUPT[:, :2])
    with pytest.raises(SparseLensError, match="shape"):
        patch(torch.cat([CORRUPT, CORRUPT[:1]]))
    with pytest.raises(SparseLensError, match=r"does not hold blocks\.\d\.hook_resid_pre"):
        patch(cache={})
    with pytest.raises(SparseLensError, match="one number"):
        patch(metric=lambda logits: logits[:, -1, 0])
    with pytest.raises(SparseLensError, match="batch_size"):
        patch(batch_size=0)
    with pytest.raises(SparseLensError, match="token ids"):
        patch(CORRUPT[None])
    for axes, error in (
        (("pos", "layer"), SparseLensError),
        (("layer", "head"), UnknownNameError),
        (("layer", "pos", "pos"), SparseLensError),
    ):
        with pytest.raises(error):
            ours.activation_patch(bridge, CORRUPT, cache, last, "resid_pre", axes, progress=False)
    with pytest.raises(SparseLensError, match="no index"):
        wrong = pd.DataFrame({"layer": [0], "pos": [4]})
        ours.activation_patch(bridge, CORRUPT, cache, last, "resid_pre", index_df=wrong, progress=False)
    with pytest.raises(UnknownNameError, match="hook"):
        ours.activation_patch(bridge, CORRUPT, {"blocks.0.hook_what": CLEAN}, last, "hook_what", ("layer",), progress=False)
    silent = {f"blocks.{layer}.attn.hook_result": torch.zeros(2, 3, 2, 12) for layer in range(3)}
    with pytest.raises(SparseLensError, match="does not fire"):
        ours.activation_patch(bridge, CORRUPT, silent, last, "result", ("layer", "head"), progress=False)


def test_nothing_is_left_behind_by_an_error(bridge: TransformerBridge) -> None:
    calls = []

    def fails_later(logits: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("metric")
        return last(logits)

    cache = clean_cache(bridge)
    with pytest.raises(RuntimeError, match="metric"):
        ours.get_act_patch_resid_pre(bridge, CORRUPT, cache, fails_later, progress=False)
    assert not any(point.fwd_hooks or point._forward_hooks for point in bridge.hook_dict.values())
    assert not any("forward" in vars(module) for module in bridge.modules())
