"""TopK latents without their zeros: what `encode` and `decode` give, and the same gradients."""

from __future__ import annotations

import pytest
import torch

from sparse_lens.comparisons import ModelPair
from sparse_lens.dictionaries import IdentityDictionary, SAELensDictionary
from sparse_lens.dictionaries.active_latents import ActiveLatents, active_latents, weighted_rows

WIDTH, LATENTS, K = 6, 20, 4


def made_up(architecture: str = "topk", **options) -> SAELensDictionary:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (WIDTH, LATENTS), "W_dec": (LATENTS, WIDTH), "b_enc": (LATENTS,), "b_dec": (WIDTH,)}
    weights = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    weights["b_enc"] -= 3  # so that in some rows fewer than k are above zero
    return SAELensDictionary(architecture, weights, "blocks.0.mlp.hook_post", K, **options)


def dense(active: ActiveLatents, n: int) -> torch.Tensor:
    return torch.zeros(*active.values.shape[:-1], n, dtype=active.values.dtype).scatter(-1, active.index, active.values)


@pytest.mark.parametrize("options", [{}, {"apply_b_dec_to_input": False}])
def test_values_and_gradients_are_those_of_the_dense_form(options) -> None:
    """Of rows in batches, too, some of which have fewer than k latents above zero."""
    dictionary = made_up(**options)
    x = torch.randn(3, 50, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    active = active_latents(dictionary, x)
    assert active is not None and active.values.shape == (3, 50, K) and bool((active.values == 0).any())
    latents = dictionary.encode(x)
    assert torch.allclose(dense(active, LATENTS), latents, rtol=0, atol=1e-12)
    scale = torch.linspace(-1, 2, LATENTS, dtype=torch.float64).requires_grad_()
    few = weighted_rows(dictionary.W_dec, ActiveLatents(active.values * scale[active.index], active.index))
    whole = (latents * scale) @ dictionary.W_dec
    assert torch.allclose(few, whole, rtol=0, atol=1e-12)
    found, expected = (torch.autograd.grad(side.cos().sum(), (x, scale)) for side in (few, whole))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_the_gradient_is_that_of_finite_differences() -> None:
    dictionary = made_up()
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: weighted_rows(dictionary.W_dec, active_latents(dictionary, x)), (x,))  # pyright: ignore


def test_the_shipped_dictionary() -> None:
    (dictionary, *_), generator = ModelPair.open().dictionaries(), torch.Generator().manual_seed(0)
    x = torch.randn(40, dictionary.W_dec.shape[1], generator=generator)
    active = active_latents(dictionary, x)
    assert active is not None and torch.allclose(dense(active, dictionary.n_latents), dictionary.encode(x), atol=1e-5)


def test_others_have_none() -> None:
    """What does not keep k latents of each row stays as it is."""
    assert active_latents(IdentityDictionary(WIDTH, "blocks.0.mlp.hook_post"), torch.zeros(2, WIDTH)) is None
    assert active_latents(made_up("standard"), torch.zeros(2, WIDTH)) is None
