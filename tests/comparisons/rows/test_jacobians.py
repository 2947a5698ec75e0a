"""Jacobians between latents, held to torch's own and to the weights."""

from __future__ import annotations

import pytest
import torch
from torch.func import jacrev, vmap

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.rows.jacobians import (
    JacobianSums,
    against,
    jacobian_rows,
    measure_jacobian,
    support_overlap,
    weight_sparsity,
)
from sparse_lens.dictionaries import IdentityDictionary, random_rotation
from sparse_lens.dictionaries.rotation import RotationDictionary
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.hooks import wrap
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM

SIZE = {"vocab_size": 20, "block_size": 8, "n_layer": 2, "n_head": 2, "d_head": 4, "d_model": 6, "d_mlp": 10}


@pytest.fixture(scope="module")
def bridge():
    """A small weight-sparse model with AbsTopK on MLP input and neurons."""
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**SIZE, afrac=0.5, afrac_loctypes="mlp_in,mlp_neuron"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        fc_in = model.core.blocks[1].mlp.fc_in.weight
        fc_in *= torch.rand(fc_in.shape, generator=generator) < 0.3
    return wrap(model)


TOKENS = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(1))


def collected(bridge, source, target) -> torch.Tensor:
    """All Jacobians, `[token n_out n_in]`, zeros filled in."""
    rows, n_out, n_in = jacobian_rows(bridge, source, target, TOKENS)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(TOKENS)
    latents = target.encode(cache[target.hook_in]).flatten(0, 1)
    order = (latents != 0).int().argsort(dim=1, descending=True, stable=True)
    full = torch.zeros(TOKENS.numel(), n_out, n_in)
    for place, row in enumerate(rows):
        full[torch.arange(len(full)), order[:, place]] += row
    return full


def witness(bridge, encode_out, decode_in, latents_in) -> torch.Tensor:
    """The MLP from its (selected) input to its neurons, differentiated by `torch.func`."""
    mlp = bridge.original_model.core.blocks[1].mlp.original_component
    mlp.topk_neuron.fast = False
    weight, bias = (getattr(mlp.fc_in.original_component, name).detach() for name in ("weight", "bias"))

    def function(latents):
        neurons = torch.nn.functional.gelu(decode_in(latents) @ weight.T + bias)
        kept = torch.zeros_like(neurons).scatter(0, neurons.abs().topk(5).indices, 1.0)
        return encode_out(neurons * kept.detach())

    return vmap(jacrev(function))(latents_in)


def test_rows_are_those_of_torch(bridge) -> None:
    source, target = IdentityDictionary(6, "blocks.1.mlp.hook_act_in"), IdentityDictionary(10, "blocks.1.mlp.hook_post")
    with torch.no_grad():
        _, cache = bridge.run_with_cache(TOKENS)
    inputs = cache[source.hook_in].flatten(0, 1)
    expected = witness(bridge, lambda x: x, lambda f: f, inputs)
    found = collected(bridge, source, target)
    assert torch.allclose(found, expected, atol=1e-5) and (found != 0).any()


def test_rotated_latents_on_both_sides(bridge) -> None:
    turn_in, turn_out = random_rotation(6, 1), random_rotation(10, 2)
    source = RotationDictionary(turn_in, "blocks.1.mlp.hook_act_in")
    target = RotationDictionary(turn_out, "blocks.1.mlp.hook_post")
    with torch.no_grad():
        _, cache = bridge.run_with_cache(TOKENS)
    latents = source.encode(cache[source.hook_in].flatten(0, 1))
    assert torch.allclose(collected(bridge, source, target), witness(bridge, target.encode, source.decode, latents), atol=1e-5)


def test_numbers_of_a_known_jacobian() -> None:
    """One token with `diag(1, 1, 0, 0)`, one with a single entry of 0.005."""
    jacobians = torch.zeros(2, 4, 4)
    jacobians[0, 0, 0] = jacobians[0, 1, 1] = 1
    jacobians[1, 2, 3] = 0.005
    sums = JacobianSums()
    sums.add_rows(iter(jacobians.transpose(0, 1)), 4, 4)
    results = sums.results()
    assert results["jacobian_above_tau"].value == pytest.approx(2 / 16 / 2)
    assert results["jacobian_entries_above_tau"].value == pytest.approx(1)
    assert results["jacobian_nonzero"].value == pytest.approx(3 / 16 / 2)
    assert results["jacobian_hoyer"].value == pytest.approx(((4 - 2**0.5) / 3 + 1) / 2)
    assert results["jacobian_effective_entries"].value == pytest.approx(1.5)
    one_by_one = JacobianSums()
    for jacobian in jacobians.flip(0):
        one_by_one.add_rows(iter(jacobian[:, None]), 4, 4)
    assert {k: v.value for k, v in one_by_one.results().items()} == pytest.approx({k: v.value for k, v in results.items()})


def test_nonzeros_are_those_of_the_weights(bridge) -> None:
    source, target = IdentityDictionary(6, "blocks.1.mlp.hook_act_in"), IdentityDictionary(10, "blocks.1.mlp.hook_post")
    weight = bridge.original_model.core.blocks[1].mlp.original_component.fc_in.original_component.weight
    assert not collected(bridge, source, target)[:, weight == 0].any()
    sparse = weight_sparsity(bridge, 1)
    assert sparse["in_nonzero"].value == pytest.approx(float((weight != 0).double().mean()))
    assert sparse["out_nonzero"].value == 1 and weight_sparsity(bridge, 0)["paths_nonzero"].value == 1
    assert sparse["in_hoyer"].value > weight_sparsity(bridge, 0)["in_hoyer"].value


def test_overlap_of_known_supports() -> None:
    disjoint = torch.block_diag(torch.ones(1, 3), torch.ones(1, 3))
    assert support_overlap(disjoint).value == 0 and support_overlap(torch.ones(4, 5)).value == 1
    some = torch.tensor([[1.0, 2, 0, 0], [0, 1, -1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    assert support_overlap(some).value == pytest.approx((1 / 3 + 1 + 1 / 3) / 3) and support_overlap(some).n == 3
    random = (torch.rand(300, 400, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    assert support_overlap(random).value == pytest.approx(support_overlap(random).null, rel=0.05)
    assert not support_overlap(some[2:3]).measurable


def test_what_is_no_function_of_the_same_token_is_refused(bridge) -> None:
    neurons, first = IdentityDictionary(10, "blocks.1.mlp.hook_post"), IdentityDictionary(10, "blocks.0.mlp.hook_post")
    with pytest.raises(DataError, match="depend on earlier tokens"):
        measure_jacobian(bridge, first, neurons, [TOKENS])
    with pytest.raises(DataError, match="do not depend"):
        measure_jacobian(bridge, neurons, first, [TOKENS])
    with pytest.raises(UnknownNameError, match=r"mlp\.hook_post"):
        measure_jacobian(bridge, neurons, IdentityDictionary(10, "blocks.1.mlp.hook_past"), [TOKENS])
    with pytest.raises(DataError, match="at least one batch"):
        measure_jacobian(bridge, neurons, neurons, [])


def test_parameters_keep_their_gradients_and_hooks_go(bridge) -> None:
    source, target = IdentityDictionary(6, "blocks.1.mlp.hook_act_in"), IdentityDictionary(10, "blocks.1.mlp.hook_post")
    measure_jacobian(bridge, source, target, [TOKENS])
    assert all(p.grad is None for p in bridge.parameters()) and any(p.requires_grad for p in bridge.parameters())
    assert not any(bridge.hook_dict[name]._forward_hooks for name in (source.hook_in, target.hook_in))


def test_the_shipped_sparse_model_against_random_weights() -> None:
    pair = ModelPair.open()
    tokens = [pair.windows["reference"][:2, :16]]
    sparse = pair.open_model("sparse")
    hooks = ("blocks.0.mlp.hook_act_in", "blocks.0.mlp.hook_post")
    source, target = (IdentityDictionary(width, hook) for width, hook in zip((256, 1024), hooks, strict=True))
    random = CircuitGPTForCausalLM(sparse.model_config)
    random.core.initialize(torch.Generator().manual_seed(0))
    results = measure_jacobian(sparse, source, target, tokens)
    compared = against(results, measure_jacobian(wrap(random), source, target, tokens))
    density = weight_sparsity(sparse, 0)["in_nonzero"].value
    assert compared["jacobian_nonzero"].value <= density
    assert compared["jacobian_hoyer"].value > compared["jacobian_hoyer"].null
    assert compared["jacobian_effective_entries"].value < compared["jacobian_effective_entries"].null
