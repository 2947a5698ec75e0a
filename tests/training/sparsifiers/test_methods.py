"""Every method on a real, tiny run: the final nonzeros are equal for all, and each does what its source says on the way."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_lens.errors import ConfigError
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.training import (
    LearnedMask,
    LotteryTicket,
    MagnitudePruning,
    RandomMask,
    RigL,
    SparsityConfig,
    TopK,
    TrainingConfig,
)
from sparse_lens.training.run import TrainingRun
from sparse_lens.training.schedules import check_schedule
from sparse_lens.training.sparsifiers import sparse_matrices
from sparse_lens.training.sparsifiers.top_k import shared_budget_mask
from sparse_lens.training.state import load_state, run_state

STEPS, VOCAB, LENGTH = 40, 50, 10
BUDGET: dict[str, Any] = {"density": 0.2, "embedding_density": 0.5, "min_alive": 2}
METHODS: dict[str, SparsityConfig] = {
    "top_k": TopK(**BUDGET),
    "fan_in": TopK(**BUDGET, budget="fan_in"),
    "fan_out": TopK(**BUDGET, budget="fan_out"),
    "random": RandomMask(**BUDGET),
    "rigl": RigL(**BUDGET, update_every=5),
    "one-shot": MagnitudePruning(**BUDGET),
    "iterative": MagnitudePruning(**BUDGET, rounds=3),
    "lottery": LotteryTicket(**BUDGET, rounds=2, rewind_to=0.1),
    "sigmoid": LearnedMask(**BUDGET, multiplier_rate=5.0),
    "hard_concrete": LearnedMask(**BUDGET, gate="hard_concrete", multiplier_rate=5.0),
}


def make_run(sparsity: SparsityConfig, **model: Any) -> TrainingRun:
    shape = {"n_layer": 2, "n_head": 2, "d_model": 16, "d_head": 8, "rms_norm": True, "tied_unembed": False}
    config = TrainingConfig(
        name="x",
        model=shape | model,
        steps=STEPS,
        learning_rate=0.02,
        precision="float32",
        sparsity=sparsity,  # pyright: ignore
    )
    fields = config.model | {"vocab_size": VOCAB, "block_size": LENGTH, "tokenizer_name": None}
    gpt = CircuitGPTForCausalLM(CircuitGPTConfig(**fields))  # pyright: ignore[reportArgumentType]
    gpt.core.initialize(torch.Generator().manual_seed(0))
    return TrainingRun(config, gpt.train())


def batch(step: int) -> Tensor:
    return torch.randint(0, VOCAB, (4, LENGTH + 1), generator=torch.Generator().manual_seed(step))


def go(run: TrainingRun, until: int = STEPS) -> TrainingRun:
    while run.step < until:
        run.optimize(batch(run.step))
    return run


def nonzeros(run: TrainingRun) -> dict[str, int]:
    """By matrix of the recipe, read from the weights themselves."""
    matrices = sparse_matrices(run.model.core, SparsityConfig(**BUDGET))
    return {matrix.name: int((matrix.stack() != 0).sum()) for matrix in matrices}


STOPS = (13, 33)


@cache
def whole(method: str) -> tuple[TrainingRun, dict[int, dict[str, Tensor]]]:
    """A finished run, and its state at the stops on the way."""
    run, states = make_run(METHODS[method]), {}
    for stop in STOPS:
        states[stop] = {name: tensor.clone() for name, tensor in run_state(go(run, stop)).items()}
    return go(run), states


@pytest.mark.parametrize("method", METHODS)
def test_all_end_with_equal_nonzeros(method: str) -> None:
    """Exactly int(density * entries) in every matrix, whatever the method."""
    run, _ = whole(method)
    expected = {m.name: m.kept(m.density) for m in sparse_matrices(run.model.core, SparsityConfig(**BUDGET))}
    found = nonzeros(run)
    assert len(expected) == 2 * 4 + 3
    # a kept weight that is exactly zero can only be one that never had a gradient: positions and tokens all have one here
    assert found == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [STOPS[0], pytest.param(STOPS[1], marks=pytest.mark.slow)])
def test_all_resume_bit_for_bit(method: str, stop: int) -> None:
    """State saved at any time and put into a fresh run ends in the same weights."""
    unbroken, states = whole(method)
    second = make_run(METHODS[method])
    load_state(second, states[stop])
    second.step = stop
    go(second)
    ended = dict(unbroken.model.core.named_parameters())
    assert ended.keys() == dict(second.model.core.named_parameters()).keys()
    for name, parameter in second.model.core.named_parameters():
        assert torch.equal(parameter, ended[name]), name


@pytest.mark.parametrize("method", ["one-shot", "iterative", "lottery", "sigmoid", "hard_concrete"])
def test_the_model_ends_plain(method: str) -> None:
    """No gate or mask stays behind: the core has the parameters of an untouched one."""
    run, _ = whole(method)
    untouched = CircuitGPTForCausalLM(run.model.config)  # pyright: ignore[reportArgumentType]
    assert set(run.model.core.state_dict()) == set(untouched.core.state_dict())


def masks(run: TrainingRun) -> dict[str, Tensor]:
    return {m.name: m.stack() != 0 for m in sparse_matrices(run.model.core, SparsityConfig(**BUDGET))}


def test_a_random_mask_never_changes() -> None:
    """Another seed is another mask; the weights inside move."""
    run = make_run(METHODS["random"])
    before, weights = masks(run), run.model.core.wte.weight.detach().clone()
    go(run)
    assert all(torch.equal(mask, before[name]) for name, mask in masks(run).items())
    assert not torch.equal(run.model.core.wte.weight, weights)
    other = masks(make_run(RandomMask(**BUDGET, mask_seed=1)))
    assert not torch.equal(other["wte.weight"], before["wte.weight"])


def test_rigl_drops_the_smallest_and_grows_by_gradient() -> None:
    """At an update: what goes was smaller than what stays, what comes had the larger gradient, and starts at zero."""
    run = go(make_run(METHODS["rigl"]), 5)
    name = "blocks.0.mlp.fc_in.weight"
    parameter = run.model.core.get_parameter(name)
    before = parameter.detach().clone()
    seen: list[Tensor] = []
    handle = parameter.register_hook(lambda gradient: seen.append(gradient.clone()))
    run.optimize(batch(5))
    handle.remove()
    mask = run.sparsifier.state()[f"mask.{name}"]
    old = before != 0
    dropped, grown = old & ~mask, mask & ~old
    assert int(dropped.sum()) == int(grown.sum()) > 0
    assert bool((parameter.detach()[grown] == 0).all())
    gradient = seen[0].abs()
    assert gradient[grown].min() >= gradient[~old & ~grown].max()
    assert before.abs()[dropped].mean() < before.abs()[old & mask].mean()


def test_rigl_stops_moving() -> None:
    """After its last update the mask stays."""
    run = go(make_run(METHODS["rigl"]), 31)
    before = run.sparsifier.state()
    go(run)
    assert all(torch.equal(mask, before[name]) for name, mask in run.sparsifier.state().items())


def test_pruning_keeps_the_largest_of_the_dense_model() -> None:
    """One-shot: dense until the middle, then the mask of the largest magnitudes, kept to the end."""
    run = go(make_run(METHODS["one-shot"]), 19)
    assert all(bool(mask.all()) for mask in masks(run).values())
    run.optimize(batch(19))
    weight = run.model.core.lm_head.weight.detach()
    pruned = masks(run)
    assert int((weight != 0).sum()) == int(0.5 * weight.numel())
    go(run)
    assert all(torch.equal(mask, pruned[name]) for name, mask in masks(run).items())


def test_iterative_pruning_goes_in_equal_ratios() -> None:
    """Three rounds to 0.2: 0.2^(1/3), 0.2^(2/3), 0.2."""
    run, found = make_run(METHODS["iterative"]), []
    for until in (20, 26, 33):
        go(run, until)
        found.append(nonzeros(run)["blocks.0.mlp.fc_in.weight"] / (64 * 16))
    assert found == pytest.approx([0.2 ** (1 / 3), 0.2 ** (2 / 3), 0.2], abs=1 / 1024)


def test_a_ticket_takes_up_its_early_weights() -> None:
    """Right after a pruning the kept weights are those of the remembered step, and the moments are gone."""
    early = go(make_run(METHODS["lottery"]), 2).model.core.lm_head.weight.detach().clone()
    run = go(make_run(METHODS["lottery"]), 20)
    weight = run.model.core.lm_head.weight.detach()
    kept = weight != 0
    assert 0 < int(kept.sum()) < kept.numel()
    # weight decay acts after the winding back, once, at the last and smallest rate of the cycle
    assert torch.allclose(weight[kept], early[kept], rtol=1e-3)
    assert not run.optimizer.state
    go(run)


@pytest.mark.parametrize("method", ["sigmoid", "hard_concrete"])
def test_weights_train_on_after_the_gates_are_gone(method: str) -> None:
    """The optimizer goes on with the very parameters that are left."""
    run = go(make_run(METHODS[method]), 21)
    name = "blocks.0.attn.q.weight"
    before = run.model.core.get_parameter(name).detach().clone()
    assert 0 < int((before != 0).sum()) < before.numel()
    go(run)
    after = run.model.core.get_parameter(name).detach()
    assert torch.equal(before != 0, after != 0) and bool((before[before != 0] != after[before != 0]).all())


@pytest.mark.parametrize(("method", "gate_rate"), [("sigmoid", 5.0), ("hard_concrete", 20.0)])
def test_the_multipliers_push_the_gates_towards_the_density(method: str, gate_rate: float) -> None:
    """The measured density falls with the annealed one, and gates decide before they are frozen."""
    sparsity = METHODS[method].model_copy(update={"gate_rate": gate_rate, "multiplier_rate": 50.0})
    run, found = make_run(sparsity), []
    for until in range(1, 20):
        masks: Any = go(run, until).sparsifier
        found.append(torch.stack([density.detach() for density in masks._densities()]))
    assert bool((found[-1] < torch.stack(found).max(0).values - 0.05).all())  # embeddings have less far to go


def test_a_learned_mask_needs_an_unembedding_of_its_own() -> None:
    with pytest.raises(ConfigError, match="tied_unembed"):
        make_run(METHODS["sigmoid"], tied_unembed=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shared_budget(axis: int) -> None:
    """Lines differ by at most one entry, sum to k, and hold their own largest."""
    weight = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    for k in (0, 5, 20, 31, 62):
        mask = shared_budget_mask(weight, k, axis=axis)
        per_line = mask.sum(axis)
        assert int(mask.sum()) == k and int(per_line.max() - per_line.min()) <= 1
        for line, kept in zip(weight.unbind(1 - axis), mask.unbind(1 - axis), strict=True):
            if 0 < int(kept.sum()) < len(kept):
                assert line.abs()[kept].min() >= line.abs()[~kept].max()


@pytest.mark.parametrize(
    ("sparsity", "steps"),
    [
        (LearnedMask(**BUDGET, anneal_end=1.0), 40),
        (MagnitudePruning(**BUDGET, rounds=3, dense_share=0.9), 10),
        (MagnitudePruning(**BUDGET), 1),
        (LotteryTicket(**BUDGET, rewind_to=0.99), 40),
    ],
)
def test_a_run_too_short_for_its_schedule(sparsity: SparsityConfig, steps: int) -> None:
    """It would end before it is sparse: refused at once."""
    config = make_run(METHODS["top_k"]).config.model_copy(update={"sparsity": sparsity, "steps": steps})
    with pytest.raises(ConfigError, match=r"lower|raise steps"):
        check_schedule(config)


def test_an_anneal_to_the_very_end_is_sparse_all_the_same() -> None:
    run = go(make_run(TopK(**BUDGET, anneal_end=1.0)))
    assert nonzeros(run) == {m.name: m.kept(m.density) for m in sparse_matrices(run.model.core, SparsityConfig(**BUDGET))}
