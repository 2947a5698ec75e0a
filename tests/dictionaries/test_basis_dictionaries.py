"""Neurons and rotated neurons behave as dictionaries, exactly."""

import pytest
import torch

from sparse_lens.dictionaries import Dictionary, IdentityDictionary, RotationDictionary, random_rotation
from sparse_lens.errors import ConfigError

HOOK = "blocks.0.mlp.hook_post"


def activations(dtype=torch.float32):
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dictionary", [IdentityDictionary(12, HOOK), RotationDictionary(random_rotation(12), HOOK)])
def test_protocol(dictionary):
    assert isinstance(dictionary, Dictionary)
    assert dictionary.hook_in == dictionary.hook_out == HOOK
    assert dictionary.n_latents == 12 and dictionary.W_dec.shape == (12, 12) and dictionary.exact
    assert HOOK in dictionary.name and len(dictionary.hash) == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_identity_is_bitwise_exact(dtype):
    dictionary, x = IdentityDictionary(12, HOOK, dtype), activations(dtype)
    assert torch.equal(dictionary.decode(dictionary.encode(x)), x)
    assert dictionary.W_dec.dtype == dtype and torch.equal(dictionary.encode(x) @ dictionary.W_dec, x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13), (torch.bfloat16, 0.1)])
def test_rotation_round_trip(dtype, tolerance):
    dictionary, x = RotationDictionary(random_rotation(12, dtype=torch.float64), HOOK), activations(dtype)
    z = dictionary.encode(x)
    assert z.dtype == dtype and (z - x).abs().max() > 0.1
    assert (dictionary.decode(z) - x).abs().max() < tolerance


def test_rotation_writes_its_rows():
    dictionary = RotationDictionary(random_rotation(12), HOOK)
    assert torch.allclose(dictionary.decode(torch.eye(12)), dictionary.W_dec)
    assert torch.allclose(dictionary.W_dec @ dictionary.W_dec.T, torch.eye(12), atol=1e-6)


def test_random_rotation_is_seeded_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    assert torch.equal(random_rotation(6, 3), random_rotation(6, 3))
    assert not torch.equal(random_rotation(6, 3), random_rotation(6, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_random_rotations_have_no_preferred_sign():
    diagonal = torch.stack([random_rotation(3, seed).diagonal() for seed in range(400)])
    assert diagonal.mean().abs() < 0.1


@pytest.mark.parametrize("dictionary", [IdentityDictionary(12, HOOK), RotationDictionary(random_rotation(12), HOOK)])
def test_gradient_is_that_of_the_round_trip(dictionary):
    x = activations().requires_grad_()
    weight = torch.randn(12)
    (dictionary.decode(dictionary.encode(x)) @ weight).sum().backward()
    assert torch.allclose(x.grad, weight.expand_as(x), atol=1e-5)


def test_hashes_tell_dictionaries_apart():
    dictionaries = [
        IdentityDictionary(12, HOOK),
        IdentityDictionary(13, HOOK),
        IdentityDictionary(12, "blocks.1.mlp.hook_post"),
        RotationDictionary(torch.eye(12), HOOK),
        RotationDictionary(random_rotation(12), HOOK),
        RotationDictionary(random_rotation(12, 1), HOOK),
        RotationDictionary(random_rotation(12), "blocks.1.mlp.hook_post"),
    ]
    assert len({dictionary.hash for dictionary in dictionaries}) == len(dictionaries)


def test_hashes_are_stable():
    assert IdentityDictionary(12, HOOK).hash == "a308387df1784e6f"
    for dtype in (torch.float32, torch.float64):
        assert RotationDictionary(torch.eye(3, dtype=dtype), HOOK).hash == "e759bf8e7171a113"


def test_what_is_no_rotation_is_refused():
    with pytest.raises(ConfigError, match=r"not orthogonal.*differs.*random_rotation"):
        RotationDictionary(2 * torch.eye(4), HOOK)
    with pytest.raises(ConfigError, match="not orthogonal"):
        RotationDictionary(torch.full((4, 4), torch.nan), HOOK)
    with pytest.raises(ConfigError, match=r"square matrix.*\(4, 3\)"):
        RotationDictionary(torch.ones(4, 3), HOOK)
    with pytest.raises(ConfigError, match="width=0"):
        IdentityDictionary(0, HOOK)
