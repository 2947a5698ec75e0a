"""Penalties and the mixture of experts, against numbers worked out by hand and on a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_lens.data import TokenData
from sparse_lens.errors import CheckpointError, ConfigError
from sparse_lens.hooks import load
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM, save_reference
from sparse_lens.models.core import MLP, Router
from sparse_lens.training import PenaltyConfig, TrainingConfig, TrainingResult, train
from sparse_lens.training.log import read_log
from sparse_lens.training.penalties import Penalties, _balance, _entropy

EXPERTS = {"n_experts": 4, "experts_per_token": 1, "afrac": None}


def model(**fields: Any) -> CircuitGPTForCausalLM:
    shape = {"block_size": 8, "vocab_size": 20, "n_layer": 2, "n_head": 2, "d_model": 16, "tied_unembed": False}
    made = CircuitGPTForCausalLM(CircuitGPTConfig(**(shape | fields)))
    made.core.initialize(torch.Generator().manual_seed(0))
    return made.train()


def test_entropy_of_activations() -> None:
    """All equal is 1, one alone is 0, half of them equal is log(half) over log(all); signs do not matter."""
    equal, single = torch.full((3, 8), -2.0), torch.zeros(3, 8)
    single[:, 2] = 5.0
    half = torch.tensor([[1.0, -1.0, 1.0, -1.0, 0, 0, 0, 0]])
    for neurons, expected in ((equal, 1.0), (single, 0.0), (half, math.log(4) / math.log(8))):
        assert float(_entropy(neurons)) == pytest.approx(expected, abs=1e-5)


def test_balance() -> None:
    """1 where every expert gets as many tokens and probability; n_experts where one gets everything."""
    even = 50 * torch.eye(4).repeat(3, 1)
    one = torch.tensor([[50.0, 0, 0, 0]]).repeat(5, 1)
    assert float(_balance(even)) == pytest.approx(1)
    assert float(_balance(one)) == pytest.approx(4)


@pytest.mark.parametrize("kind", ["l1_weights", "l1_activations", "entropy_activations"])
def test_a_penalty_lowers_what_it_penalizes(tiny: TrainingConfig, data: TokenData, tmp_path: Path, kind: Any) -> None:
    """A strong one, thirty steps: the penalized quantity ends lower than without it."""
    plain = tiny.model_copy(update={"sparsity": None, "model": tiny.model | {"afrac": None}, "eps": 1e-8})
    penalized = plain.model_copy(update={"penalty": PenaltyConfig(kind=kind, coefficient=30.0)})
    ids = torch.from_numpy(data.validation_windows(16, 4))[:, :-1]
    found = []
    for name, config in (("plain", plain), ("penalized", penalized)):
        core = train(config, data, tmp_path / name, progress=False).model.core.train()
        core.lm_head.bias.requires_grad_(False)
        watched = Penalties(core, PenaltyConfig(kind=kind, coefficient=1.0), 0.0)
        core(ids)
        cost = watched.take()
        assert cost is not None
        magnitudes = torch.stack([p.abs().mean() for n, p in core.blocks.named_parameters() if p.ndim == 2]).mean()
        found.append(float((magnitudes if kind == "l1_weights" else cost).detach()))
    assert found[1] < 0.9 * found[0]


def test_no_penalty_costs_nothing() -> None:
    """Nothing is watched, nothing is added."""
    assert Penalties(model().core, None, 0.01).take() is None


def test_experts_open_a_few_groups_of_neurons() -> None:
    """At every token only the neurons of the chosen experts differ from zero, scaled by the router's softmax."""
    for each in (1, 2):
        mlp = model(n_experts=4, experts_per_token=each).core.blocks[0].mlp
        assert isinstance(mlp, MLP) and isinstance(mlp.router, Router)
        x, seen = torch.randn(2, 5, 16), {}
        mlp(x, tap=lambda name, tensor, seen=seen: seen.setdefault(name, tensor))
        alive = (seen["hook_post"] != 0).unflatten(-1, (4, 16)).any(-1)
        assert bool((alive.sum(-1) == each).all())
        shares = mlp.router.score(x).softmax(-1)
        assert torch.equal(alive, shares >= shares.topk(each).values[..., -1:])
        neurons = torch.nn.functional.gelu(seen["hook_pre"]).unflatten(-1, (4, 16))
        factors = torch.where(alive, shares, 0.0)
        factors = factors if each == 1 else factors / factors.sum(-1, keepdim=True)
        assert torch.allclose(seen["hook_post"].unflatten(-1, (4, 16)), neurons * factors[..., None])


@pytest.mark.parametrize("fields", [{"n_experts": 3}, {"n_experts": 0}, {"n_experts": 4, "experts_per_token": 5}])
def test_experts_that_cannot_be(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expert"):
        model(**fields)


@pytest.fixture(scope="module")
def mixture(tiny: TrainingConfig, data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    config = tiny.model_copy(update={"sparsity": None, "model": tiny.model | EXPERTS})
    return train(config, data, tmp_path_factory.mktemp("moe") / "moe", progress=False)


def test_a_mixture_trains_and_loads(mixture: TrainingResult, data: TokenData, tmp_path: Path) -> None:
    """The loss falls, the bridge computes what the model does, and the neurons that its hook sees are the routed ones."""
    losses = [row["training_loss"] for row in read_log(mixture.folder / "log.jsonl") if "training_loss" in row]
    assert losses[-1] < losses[0]
    bridge = load(mixture.folder)
    ids = torch.from_numpy(data.validation_windows(16, 2))[:, :-1]
    logits, cache = bridge.run_with_cache(ids)
    assert torch.allclose(logits, mixture.model.core(ids), atol=1e-5)
    alive = (cache["blocks.1.mlp.hook_post"] != 0).unflatten(-1, (4, -1)).any(-1)
    assert bool((alive.sum(-1) == 1).all())
    with pytest.raises(CheckpointError, match="mixture of experts"):
        save_reference(mixture.model, tmp_path / "reference")
