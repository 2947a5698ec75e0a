"""Every way to set a hook, against the same computation without hooks; and that nothing is left behind."""

from __future__ import annotations

import copy
from functools import partial
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import SparseLensError

pytestmark = pytest.mark.tool(
    "hooks of every kind, run_with_cache, loss, stop_at_layer, start_at_layer",
    limits="start_at_layer: TransformerLens 4 only, refused with a bigram table, which reads token ids",
)

MAJOR = int(version("transformer-lens").split(".")[0])
SITE = "blocks.0.attn.hook_z"


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(1))


def without_head(bridge: TransformerBridge, tokens: Tensor) -> Tensor:
    """Logits with head 1 of layer 0 cut out of the weights, in a copy of the model without any hook point."""
    core = copy.deepcopy(bridge).original_model.core
    width = bridge.cfg.d_head
    with torch.no_grad():
        core.blocks[0].attn.o.weight[:, width : 2 * width] = 0
        return core(tokens)


def cut(z: Tensor, hook: Any) -> Tensor:
    z[:, :, 1] = 0
    return z


def still_hooked(bridge: TransformerBridge) -> list[str]:
    return [name for name, point in bridge.hook_dict.items() if point.fwd_hooks or point.bwd_hooks or point._forward_hooks]


@torch.no_grad()
def test_forward_hooks(architecture: TransformerBridge, tokens: Tensor) -> None:
    expected, clean = without_head(architecture, tokens), architecture(tokens)
    assert (expected - clean).abs().max() > 1e-3
    close = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(architecture.run_with_hooks(tokens, fwd_hooks=[(SITE, cut)]), expected, **close)
    by_function = [(lambda name: name == SITE, cut)]
    torch.testing.assert_close(architecture.run_with_hooks(tokens, fwd_hooks=by_function), expected, **close)
    by_iterator = iter([(SITE, cut)])
    torch.testing.assert_close(architecture.run_with_hooks(tokens, fwd_hooks=by_iterator), expected, **close)
    with architecture.hooks(fwd_hooks=[(SITE, cut)]):
        torch.testing.assert_close(architecture(tokens), expected, **close)
    architecture.add_hook(SITE, cut)
    torch.testing.assert_close(architecture(tokens), expected, **close)
    architecture.reset_hooks()
    assert torch.equal(architecture(tokens), clean)
    assert still_hooked(architecture) == []


def test_backward_hooks(architecture: TransformerBridge, tokens: Tensor) -> None:
    """They receive the derivative of the loss by the activation, as autograd has it."""
    seen: dict[str, Tensor] = {}

    def note(gradient: Tensor, hook: Any) -> None:
        seen[hook.name] = gradient.detach().clone()

    names = [SITE, "blocks.1.hook_resid_mid", "blocks.0.mlp.hook_post"]
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        kept[hook.name] = tensor

    with architecture.hooks(fwd_hooks=[(name, keep) for name in names]):
        loss = architecture(tokens, return_type="loss")
    expected = torch.autograd.grad(loss, list(kept.values()))
    with architecture.hooks(bwd_hooks=[(name, note) for name in names]):
        architecture(tokens, return_type="loss").backward()
    assert len(seen) == len(names) == len(expected)
    for name, gradient in zip(kept, expected, strict=True):
        torch.testing.assert_close(seen[name], gradient, atol=1e-6, rtol=1e-4)
    assert still_hooked(architecture) == []


@torch.no_grad()
def test_permanent_hooks(architecture: TransformerBridge, tokens: Tensor) -> None:
    expected, clean = without_head(architecture, tokens), architecture(tokens)
    architecture.add_perma_hook(SITE, cut)
    architecture.reset_hooks()
    torch.testing.assert_close(architecture(tokens), expected, atol=1e-5, rtol=0)
    _, cache = architecture.run_with_cache(tokens)
    assert not cache[SITE][:, :, 1].any()
    architecture.reset_hooks(including_permanent=True)
    assert torch.equal(architecture(tokens), clean)


@torch.no_grad()
def test_nested_contexts(architecture: TransformerBridge, tokens: Tensor) -> None:
    clean, seen = architecture(tokens), []

    def count(name: str) -> Any:
        return lambda tensor, hook: seen.append(name)

    with architecture.hooks(fwd_hooks=[(SITE, count("outer"))]):
        with pytest.raises(RuntimeError, match="as asked"), architecture.hooks(fwd_hooks=[(SITE, fail)], reset_hooks_end=True):
            architecture(tokens)
        with architecture.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", count("inner"))]):
            architecture(tokens)
    assert torch.equal(architecture(tokens), clean)
    assert seen.count("inner") == 1
    assert still_hooked(architecture) == []


def fail(tensor: Tensor, hook: Any) -> Tensor:
    raise RuntimeError("as asked")


@torch.no_grad()
def test_caches(architecture: TransformerBridge, tokens: Tensor) -> None:
    logits, cache = architecture.run_with_cache(tokens)
    assert torch.equal(logits, architecture(tokens))
    for wanted in (SITE, [SITE, "blocks.1.mlp.hook_post"], lambda name: name.endswith("hook_pattern")):
        _, some = architecture.run_with_cache(tokens, names_filter=wanted)
        assert 0 < len(some) < len(cache)
        assert all(torch.equal(some[name], cache[name]) for name in some)
    _, row = architecture.run_with_cache(tokens[:1], remove_batch_dim=True)
    torch.testing.assert_close(row[SITE], cache[SITE][0], atol=1e-6, rtol=1e-5)
    assert still_hooked(architecture) == []


@torch.no_grad()
def test_loss(architecture: TransformerBridge, tokens: Tensor) -> None:
    log_probabilities = architecture(tokens)[:, :-1].log_softmax(-1)
    expected = -log_probabilities.gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(architecture(tokens, return_type="loss", loss_per_token=True), expected)
    torch.testing.assert_close(architecture(tokens, return_type="loss"), expected.mean())
    logits, loss = architecture(tokens, return_type="both")
    torch.testing.assert_close(architecture.loss_fn(logits, tokens), loss)


@torch.no_grad()
def test_start_and_stop(architecture: TransformerBridge, tokens: Tensor) -> None:
    logits, cache = architecture.run_with_cache(tokens)
    assert torch.equal(architecture(tokens, stop_at_layer=1), cache["blocks.1.hook_resid_pre"])
    resume = partial(architecture, cache["blocks.1.hook_resid_pre"], start_at_layer=1)
    if MAJOR == 3:
        with pytest.raises(NotImplementedError):
            resume()
    elif "bigram.hook_out" in cache:
        with pytest.raises(SparseLensError, match="enable_bigram_table"):
            resume()
    else:
        torch.testing.assert_close(resume(), logits, atol=1e-5, rtol=0)
