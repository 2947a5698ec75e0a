"""`splice`: exact forward passes, true gradients, and nothing left behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import SparseLensError, UnknownNameError
from sparse_lens.hooks import Blend, splice

pytestmark = pytest.mark.tool("sparse_lens.hooks.splice")

MODES = ("read", "edit", "learn")


@dataclass
class Linear:
    """A dictionary in the least code: linear encoder with a ReLU, linear decoder."""

    hook_in: str
    hook_out: str
    d_in: int = 16
    d_out: int = 16
    n_latents: int = 24
    exact: bool = False

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(len(self.hook_in) + len(self.hook_out))
        self.W_enc = torch.randn(self.d_in, self.n_latents, generator=generator) / 4
        self.W_dec = torch.randn(self.n_latents, self.d_out, generator=generator) / 4

    @property
    def name(self) -> str:
        return f"linear@{self.hook_in}"

    @property
    def hash(self) -> str:
        return "0" * 16

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc).relu()

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec + 0.1


def at(hook: str, width: int = 16) -> Linear:
    return Linear(hook, hook, width, width)


@pytest.fixture
def tokens() -> Tensor:
    return torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


HOOKS = {
    "blocks.0.hook_resid_pre": 16,
    "blocks.1.hook_resid_mid": 16,
    "blocks.0.attn.hook_q": 16,
    "blocks.0.attn.hook_z": 16,
    "blocks.0.attn.hook_act_in": 16,
    "blocks.1.hook_attn_out": 16,
    "blocks.0.mlp.hook_post": 64,
    "blocks.0.hook_mlp_out": 16,
    "ln_final.hook_in": 16,
}


@pytest.mark.parametrize("mode", MODES)
def test_forward_pass_is_exact(sink_bridge: TransformerBridge, tokens: Tensor, mode: Any) -> None:
    clean = sink_bridge(tokens)
    for hook, width in HOOKS.items():
        with splice(sink_bridge, [at(hook, width)], mode) as sites:
            assert torch.equal(sink_bridge(tokens), clean), hook
        site = sites[f"linear@{hook}"]
        torch.testing.assert_close(at(hook, width).decode(site.latents) + site.error, site.activation)
    with splice(sink_bridge, [at(hook, width) for hook, width in HOOKS.items()], mode):
        assert torch.equal(sink_bridge(tokens), clean)


@pytest.mark.parametrize("mode", ["edit", "learn"])
def test_identity_edit_is_exact(sink_bridge: TransformerBridge, tokens: Tensor, mode: Any) -> None:
    clean = sink_bridge(tokens)
    dictionaries = [at(hook, width) for hook, width in HOOKS.items()]
    for edit in (lambda f, e: (f, e), Blend(), Blend(mask=1.0, reference=torch.tensor(5.0))):
        with splice(sink_bridge, dictionaries, mode, edit):
            assert torch.equal(sink_bridge(tokens), clean)


def test_read_mode_gradients(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    """The latents' gradient is the decoder's transpose of the activation's, which is that of the unspliced model."""
    hooks = ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_mid"]
    plain: dict[str, Tensor] = {}
    record = [(hook, lambda g, hook, name=hook: plain.__setitem__(name, g.clone())) for hook in hooks]
    with sink_bridge.hooks(bwd_hooks=record):
        sink_bridge(tokens)[:, -1, 3].sum().backward()
    for chosen in ([0], [1], [0, 1]):
        dictionaries = [at(hooks[i]) for i in chosen]
        with splice(sink_bridge, dictionaries) as sites:
            sink_bridge(tokens)[:, -1, 3].sum().backward()
        for dictionary in dictionaries:
            site, gradient = sites[dictionary.name], plain[dictionary.hook_out]
            torch.testing.assert_close(site.error.grad, gradient, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(site.latents.grad, gradient @ dictionary.W_dec.T, atol=1e-6, rtol=1e-5)


def test_edit_mode_changes_and_cuts(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    dictionary = at("blocks.0.hook_mlp_out")
    scale = torch.tensor(0.5, requires_grad=True)
    with splice(sink_bridge, [dictionary], "edit", lambda f, e: (f * scale, e)) as sites:
        logits = sink_bridge(tokens)
    site = sites[dictionary.name]
    wanted = dictionary.decode(site.latents * 0.5) + site.error
    by_hand = sink_bridge.run_with_hooks(tokens, fwd_hooks=[(dictionary.hook_out, lambda x, hook: wanted)])
    torch.testing.assert_close(logits, by_hand, atol=1e-5, rtol=0)
    upstream = sink_bridge.blocks[0].mlp.original_component.fc_in.weight
    gradients = torch.autograd.grad(logits.sum(), [scale, upstream], allow_unused=True)
    assert gradients[0].abs() > 0
    assert gradients[1] is None


def test_learn_mode_gradients_over_two_sites(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    """Two masks in sequence: both gradients equal finite differences; in edit mode the upstream mask gets none."""
    model = sink_bridge.double()
    upstream, downstream = at("blocks.0.hook_mlp_out"), at("blocks.1.hook_resid_mid")
    for dictionary in (upstream, downstream):
        dictionary.W_enc, dictionary.W_dec = dictionary.W_enc.double(), dictionary.W_dec.double()

    def loss(masks: dict[str, Tensor], mode: Any) -> Tensor:
        edits = {name: Blend(mask, 0.2, error_mask=0.7) for name, mask in masks.items()}
        with splice(model, [upstream, downstream], mode, edits):
            return model(tokens).log_softmax(-1)[:, -1, 3].sum()

    start = {d.name: torch.full((24,), 0.6, dtype=torch.float64, requires_grad=True) for d in (upstream, downstream)}
    gradients = torch.autograd.grad(loss(start, "learn"), list(start.values()))
    for name, gradient in zip(start, gradients, strict=True):
        latent = int(gradient.abs().argmax())
        nudge = torch.zeros(24, dtype=torch.float64)
        nudge[latent] = 1e-6
        with torch.no_grad():
            ahead, behind = (loss({**start, name: start[name] + sign * nudge}, "learn") for sign in (1, -1))
        assert abs(float(gradient[latent] - (ahead - behind) / 2e-6)) < 1e-6 * max(1.0, abs(float(gradient[latent])))
        assert gradient[latent].abs() > 1e-4
    cut = torch.autograd.grad(loss(start, "edit"), list(start.values()), allow_unused=True)
    assert cut[0] is None
    torch.testing.assert_close(loss(start, "edit"), loss(start, "learn"))


@pytest.mark.parametrize("mode", MODES)
def test_transcoder_reads_and_writes_elsewhere(sink_bridge: TransformerBridge, tokens: Tensor, mode: Any) -> None:
    transcoder = Linear("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out")
    clean, cache = sink_bridge.run_with_cache(tokens)
    with splice(sink_bridge, [transcoder], mode) as sites:
        assert torch.equal(sink_bridge(tokens), clean)
    site = sites[transcoder.name]
    torch.testing.assert_close(site.latents, transcoder.encode(cache[transcoder.hook_in]))
    if mode != "read":
        with splice(sink_bridge, [transcoder], mode, Blend(error_mask=0.0)):
            replaced = sink_bridge(tokens)
        decoded = transcoder.decode(site.latents)
        by_hand = sink_bridge.run_with_hooks(tokens, fwd_hooks=[(transcoder.hook_out, lambda x, hook: decoded)])
        torch.testing.assert_close(replaced, by_hand, atol=1e-5, rtol=0)


def test_transcoder_backwards_is_refused(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    backwards = Linear("blocks.0.hook_mlp_out", "blocks.0.mlp.hook_in")
    with splice(sink_bridge, [backwards]), pytest.raises(SparseLensError, match="did not run before"):
        sink_bridge(tokens)


def test_edits_by_name(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    first, second = at("blocks.0.hook_mlp_out"), at("blocks.1.hook_mlp_out")
    zero = Blend(mask=0.0)
    with splice(sink_bridge, [first], "edit", zero):
        alone = sink_bridge(tokens)
    with splice(sink_bridge, [first, second], "edit", {first.name: zero}):
        assert torch.equal(sink_bridge(tokens), alone)
    with splice(sink_bridge, [first, second], "edit", zero):
        assert not torch.equal(sink_bridge(tokens), alone)


def test_other_hooks_stay_alive(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    hook = "blocks.0.hook_mlp_out"
    calls: list[str] = []
    sink_bridge.add_hook(hook, lambda x, hook: calls.append("mine"))
    with splice(sink_bridge, [at(hook)], "edit", Blend(mask=0.0)):
        spliced = sink_bridge(tokens)
        sink_bridge.run_with_hooks(tokens, fwd_hooks=[(hook, lambda x, hook: calls.append("inner"))])
        _, cache = sink_bridge.run_with_cache(tokens)
        sink_bridge.reset_hooks()
        assert torch.equal(sink_bridge(tokens), spliced)
    assert calls == ["mine", "mine", "inner", "mine"]
    assert "blocks.0.hook_mlp_out" in cache


@pytest.mark.parametrize("mode", MODES)
def test_own_hooks_are_removed_on_exceptions(sink_bridge: TransformerBridge, tokens: Tensor, mode: Any) -> None:
    clean = sink_bridge(tokens)
    sink_bridge.add_hook("blocks.0.hook_mlp_out", lambda x, hook: None)
    before = {name: len(point._forward_hooks) for name, point in sink_bridge.hook_dict.items()}
    transcoder = Linear("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out")
    with pytest.raises(RuntimeError, match="as asked"), splice(sink_bridge, [transcoder, at("ln_final.hook_in")], mode):
        raise RuntimeError("as asked")
    with pytest.raises(UnknownNameError), splice(sink_bridge, [transcoder, at("blocks.0.hook_mlp_owt")], mode):
        pass
    assert before == {name: len(point._forward_hooks) for name, point in sink_bridge.hook_dict.items()}
    assert torch.equal(sink_bridge(tokens), clean)


def test_impossible_combinations(sink_bridge: TransformerBridge, tokens: Tensor) -> None:
    dictionary = at("blocks.0.hook_mlp_out")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dictionaries": [dictionary], "mode": "read", "edit": Blend()}, "leaves the forward pass alone"),
        ({"dictionaries": [dictionary, dictionary], "mode": "edit"}, "two dictionaries have one name"),
        ({"dictionaries": [dictionary], "mode": "edit", "edit": {"other": Blend()}}, "unknown dictionary 'other'"),
        ({"dictionaries": [at("blocks.0.hook_mlp_owt")]}, "did you mean 'blocks.0.hook_mlp_out'"),
    ]
    for arguments, message in cases:
        with pytest.raises(Exception, match=message), splice(sink_bridge, **arguments):
            pass
    narrow = at("blocks.0.mlp.hook_post", 16)
    with splice(sink_bridge, [narrow]), pytest.raises((SparseLensError, RuntimeError)):
        sink_bridge(tokens)
