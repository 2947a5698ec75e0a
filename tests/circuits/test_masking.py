"""Mean ablation through the bridge, against the same ablation written out by hand and against `splice`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import mask_hooks, mean_reference, node_space
from sparse_lens.circuits.masking import Reference, blend, flat_channels
from sparse_lens.circuits.sites import Site
from sparse_lens.comparisons import ModelPair
from sparse_lens.dictionaries import IdentityDictionary, RotationDictionary, random_rotation
from sparse_lens.hooks import Blend, splice

from .conftest import VOCAB, random_bridge

TOKENS = torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(3))


def masked_logits(bridge: Any, space: Any, mask: torch.Tensor, reference: Any) -> torch.Tensor:
    with bridge.hooks(fwd_hooks=mask_hooks(space, mask, reference)):
        return bridge(TOKENS)


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any, Any]:
    bridge = random_bridge(afrac=0.5, afrac_loctypes="attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out", sink=True)
    space = node_space(bridge)
    windows = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
    return bridge, space, mean_reference(bridge, space, windows, batch_size=7)


def test_reference_is_the_mean_activation(model: tuple[Any, Any, Any]) -> None:
    bridge, space, reference = model
    windows = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
    _, cache = bridge.run_with_cache(torch.from_numpy(windows))
    for site in space.sites:
        mean = flat_channels(cache[site.hook], site).flatten(0, 1).mean(0)
        torch.testing.assert_close(reference[site.name].latents, mean, atol=1e-6, rtol=1e-5)


def test_full_mask_is_the_model(model: tuple[Any, Any, Any]) -> None:
    bridge, space, reference = model
    everything = torch.ones(space.n_nodes, dtype=torch.bool)
    assert mask_hooks(space, everything, reference) == []
    torch.testing.assert_close(masked_logits(bridge, space, everything.float(), reference), bridge(TOKENS), atol=1e-6, rtol=0)


def test_empty_mask_depends_on_nothing_but_the_bigram_free_constants(model: tuple[Any, Any, Any]) -> None:
    """With every node at its mean, final_resid is constant, so all positions predict the same."""
    bridge, space, reference = model
    logits = masked_logits(bridge, space, torch.zeros(space.n_nodes, dtype=torch.bool), reference)
    torch.testing.assert_close(logits, logits[:1, :1].expand_as(logits), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["attn_in", "attn_q", "attn_v", "attn_out", "mlp_neuron", "mlp_out"])
def test_one_site_equals_an_ablation_by_hand(model: tuple[Any, Any, Any], kind: str) -> None:
    bridge, space, reference = model
    site = next(s for s in space.sites if s.name == f"{kind}.1")
    mask = torch.ones(space.n_nodes, dtype=torch.bool)
    mask[space.slices[site.name].start + 1] = False

    def by_hand(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        flat = tensor.reshape(*tensor.shape[:2], -1).clone()
        flat[..., 1] = reference[site.name].latents[1]
        return flat.reshape(tensor.shape)

    expected = bridge.run_with_hooks(TOKENS, fwd_hooks=[(site.hook, by_hand)])
    assert not torch.equal(expected, bridge(TOKENS))
    torch.testing.assert_close(masked_logits(bridge, space, mask, reference), expected, atol=1e-6, rtol=0)


def test_fast_identity_path_equals_the_splice() -> None:
    """The slow twin: an identity dictionary spliced in learn mode with the same mask and reference."""
    bridge = random_bridge()
    space = node_space(bridge)
    reference = mean_reference(bridge, space, np.random.default_rng(1).integers(0, VOCAB, (8, 8)))
    hook = "blocks.0.mlp.hook_post"
    part = torch.rand(12, generator=torch.Generator().manual_seed(0)).round()
    mask = torch.ones(space.n_nodes)
    mask[space.slices["mlp_neuron.0"]] = part
    blend = Blend(mask=part, reference=reference["mlp_neuron.0"].latents)
    with splice(bridge, [IdentityDictionary(12, hook)], mode="learn", edit=blend):
        expected = bridge(TOKENS)
    torch.testing.assert_close(masked_logits(bridge, space, mask, reference), expected, atol=1e-6, rtol=0)


def test_a_dictionary_that_keeps_everything_changes_nothing() -> None:
    bridge = random_bridge()
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))
    space = node_space(bridge, [RotationDictionary(rotation, "blocks.1.mlp.hook_post")])
    reference = mean_reference(bridge, space, np.random.default_rng(1).integers(0, VOCAB, (8, 8)))
    logits = masked_logits(bridge, space, torch.ones(space.n_nodes), reference)
    torch.testing.assert_close(logits, bridge(TOKENS), atol=1e-5, rtol=0)


def test_splicing_where_activations_are_sparse(model: tuple[Any, Any, Any]) -> None:
    """Behind AbsTopK: zeros stay zeros through an identity, and any dictionary with its error changes no logit and no gradient."""
    bridge, space, _ = model
    site = next(site for site in space.sites if site.name == "mlp_neuron.0")
    clean = bridge(TOKENS)
    plain: dict[str, torch.Tensor] = {}
    with bridge.hooks(bwd_hooks=[(site.hook, lambda gradient, hook: plain.__setitem__(hook.name, gradient.clone()))]):
        bridge(TOKENS)[:, -1, 3].sum().backward()
    rotated = RotationDictionary(random_rotation(site.n_nodes, seed=1), site.hook)
    for dictionary in (IdentityDictionary(site.n_nodes, site.hook), rotated):
        with splice(bridge, [dictionary]) as sites:
            logits = bridge(TOKENS)
            logits[:, -1, 3].sum().backward()
        found = sites[dictionary.name]
        torch.testing.assert_close(logits, clean, atol=0, rtol=0)
        torch.testing.assert_close(found.error.grad, plain[site.hook], atol=1e-7, rtol=1e-6)
        if isinstance(dictionary, IdentityDictionary):
            assert float((found.latents == 0).float().mean()) >= 0.5


def test_mask_gradient_equals_finite_differences() -> None:
    """Through two layers at once, for a real-valued mask."""
    bridge = random_bridge().to(torch.float64)
    space = node_space(bridge)
    windows = np.random.default_rng(1).integers(0, VOCAB, (8, 8))
    reference = {name: type(r)(r.latents.double(), r.error.double()) for name, r in mean_reference(bridge, space, windows).items()}
    mask = torch.rand(space.n_nodes, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def score(values: torch.Tensor) -> torch.Tensor:
        return masked_logits(bridge, space, values, reference)[:, -1, 3].sum()

    (gradient,) = torch.autograd.grad(score(mask), mask)
    for name in ("attn_in.0", "attn_q.1", "attn_v.0", "mlp_neuron.0", "final_resid"):
        index = space.slices[name].start + 2
        step = torch.zeros_like(mask)
        step[index] = 1e-5
        slope = (score(mask.detach() + step) - score(mask.detach() - step)) / 2e-5
        assert gradient[index].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("n_open", [0, 3, 12])
def test_blending_open_directions_is_blending_all_of_them(n_open: int) -> None:
    """A rotated basis: equal to encoding, keeping and decoding, in the slopes of closed gates and of activations as well."""
    generator = torch.Generator().manual_seed(0)
    dictionary = RotationDictionary(random_rotation(12, dtype=torch.float64), "hook")
    reference = torch.randn(12, dtype=torch.float64, generator=generator)
    x = torch.randn(2, 30, 12, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.rand(12, dtype=torch.float64, generator=generator)
    mask = (mask * (torch.randperm(12, generator=generator) < n_open)).requires_grad_()
    found = blend(Site("mlp_neuron", 0, "hook", dictionary), mask, Reference(reference, torch.zeros(12)), x, x)
    expected = dictionary.decode(torch.lerp(reference, dictionary.encode(x), mask))
    torch.testing.assert_close(found, expected)
    for wanted in ((x, mask), (x,), (mask,)):
        slopes = [torch.autograd.grad(side.cos().sum(), wanted, retain_graph=True) for side in (found, expected)]
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b)
    with torch.no_grad():
        without_slopes = blend(Site("mlp_neuron", 0, "hook", dictionary), mask, Reference(reference, torch.zeros(12)), x, x)
    torch.testing.assert_close(without_slopes, expected.detach())
    only_x = blend(Site("mlp_neuron", 0, "hook", dictionary), mask.detach(), Reference(reference, torch.zeros(12)), x, x)
    (slope,) = torch.autograd.grad(only_x.cos().sum(), x)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.cos().sum(), x)[0])


def test_blending_active_latents_is_blending_all_of_them() -> None:
    """TopK latents go through k rows of the decoder; gradients in activations, gates of latents and the error's included."""
    (dictionary, *_) = ModelPair.open().dictionaries()
    n, d = dictionary.W_dec.shape
    generator = torch.Generator().manual_seed(0)
    site = Site("mlp_neuron", 0, dictionary.hook_in, dictionary)
    reference = Reference(torch.rand(n, generator=generator) / 10, torch.randn(d, generator=generator) / 10)
    x = torch.randn(2, 30, d, generator=generator).requires_grad_()
    mask = torch.rand(n + 1, generator=generator).requires_grad_()
    of_each_row = Reference(
        reference.latents.expand(2, 30, n), reference.error.expand(2, 30, d)
    )  # has no one vector: all latents are decoded
    found, expected = (blend(site, mask, of, x, x) for of in (reference, of_each_row))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    slopes = [torch.autograd.grad(side.cos().sum(), (x, mask)) for side in (found, expected)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
