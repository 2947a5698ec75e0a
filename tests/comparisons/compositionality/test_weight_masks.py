"""Weight masks: the fast learner against a plain one, on a small net and on a bridge; sets of masks; the bridge left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_lens.comparisons.compositionality.mask_learning import learn_weight_masks, learned_scores
from sparse_lens.comparisons.compositionality.weight_masks import (
    REFERENCE_SIZE,
    MaskConfig,
    Masks,
    chance_overlap,
    maskable,
    n_kept,
    overlap,
    random_masks,
    under_masks,
    without,
)
from sparse_lens.errors import ConfigError, DataError, UnknownNameError
from sparse_lens.hooks import load


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Two layers of 12 inputs, 10 units and 3 outputs; a third of the weights is zero, and one row has none left."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 3)).double()
    with torch.no_grad():
        for layer in (made[0], made[2]):
            layer.weight *= torch.rand(layer.weight.shape, generator=seeded(1)) < 2 / 3
        made[0].weight[4] = 0
    return made


@pytest.fixture(scope="module")
def bridge() -> Any:
    return load("python-dense-matched")


def batch_loss(run: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    inputs = torch.randn(16, 12, generator=generator, dtype=torch.float64)
    return (run(inputs).sum(1) - inputs[:, 0]).square().mean()


def plain_scores(
    model: nn.Module, loss_of: Callable[..., Tensor], config: MaskConfig, names: list[str], seed: int
) -> dict[str, Tensor]:
    """A number for every entry (or row) of every matrix, zeros included, all by autograd, in float64."""
    generator, weights = seeded(seed), {name: dict(model.named_parameters())[name].detach() for name in names}
    shapes = {name: (w.shape[0], 1) if config.units == "rows" else w.shape for name, w in weights.items()}
    scores = {name: torch.full(shape, config.start, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    optimizer = torch.optim.Adam(scores.values(), lr=config.learning_rate)
    n = sum(int((w != 0).sum()) for w in weights.values())
    for step in range(config.steps):
        beta = config.beta_max ** (step / (config.steps - 1))
        soft = {name: torch.sigmoid(beta * score) * (weights[name] != 0) for name, score in scores.items()}
        masked = {name: weights[name] * part.to(weights[name]) for name, part in soft.items()}
        loss = loss_of(lambda inputs, masked=masked: torch.func.functional_call(model, masked, (inputs,)), generator)
        price = sum(part.sum() for part in soft.values()) * config.price * REFERENCE_SIZE / n
        optimizer.zero_grad()
        (loss + price).backward()
        optimizer.step()
    return {name: score.detach() for name, score in scores.items()}


@pytest.mark.parametrize("units", ["weights", "rows"])
def test_the_fast_learner_is_the_plain_one(net: nn.Module, units: Any) -> None:
    """Same masks and, to the precision of float32, the same numbers; zeros of the model have none."""
    config = MaskConfig(steps=80, units=units, price=1e-4)
    allowed = maskable(net, None)
    scores, flat = learned_scores(net, allowed, batch_loss, config, seed=5)
    plain = plain_scores(net, batch_loss, config, list(allowed), seed=5)
    expected = torch.cat([plain[name].expand(mask.shape)[mask] for name, mask in allowed.items()])
    torch.testing.assert_close(scores[flat.unit].double(), expected, rtol=1e-3, atol=1e-4)
    kept = flat.masks(scores > 0)
    assert 0 < n_kept(kept) < n_kept(allowed)
    assert all(torch.equal(kept[name], allowed[name] & (plain[name] > 0)) for name in allowed)
    assert len(scores) == (n_kept(allowed) if units == "weights" else 9 + 3)
    learned = learn_weight_masks(net, allowed, batch_loss, config, seed=5)
    assert all(torch.equal(learned[name], kept[name]) for name in allowed)


def test_slopes_of_a_bridge_are_those_of_its_own_weights(bridge: Any) -> None:
    """A witness that writes the masked weights into the bridge and reads the gradients off them."""
    tokens, config = torch.randint(1000, (4, 9), generator=seeded()), MaskConfig(steps=1)
    allowed = maskable(bridge)
    flat = learned_scores(bridge, allowed, lambda run, _: run(tokens).square().mean(), config, seed=0)[1]
    soft = torch.rand(len(flat.sizes), generator=seeded(2))
    loss, slopes = flat.loss_and_slopes(soft, lambda run: run(tokens).square().mean())
    parameters = {name: parameter for name, parameter in bridge.named_parameters() if name in allowed}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    parts = dict(zip(allowed, soft.split([int(mask.sum()) for mask in allowed.values()]), strict=True))
    try:
        for name, parameter in parameters.items():
            parameter.data[allowed[name]] *= parts[name]
        plain = bridge(tokens).square().mean()
        gradients = torch.autograd.grad(plain, list(parameters.values()))
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(before[name])
    expected = torch.cat([(g * before[name])[allowed[name]] for name, g in zip(parameters, gradients, strict=True)])
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slopes, expected, rtol=1e-3, atol=1e-6)


def test_masks_of_a_bridge_leave_it_as_it_was_and_a_whole_mask_changes_nothing(bridge: Any) -> None:
    tokens = torch.arange(12).view(2, 6)
    before = {name: (value.clone(), value.requires_grad) for name, value in bridge.named_parameters()}
    whole = bridge(tokens).detach()
    allowed = maskable(bridge)
    assert all("attn" in name or "mlp" in name for name in allowed)
    torch.testing.assert_close(under_masks(bridge, allowed)(tokens).detach(), whole, rtol=0, atol=0)
    empty = under_masks(bridge, {name: torch.zeros_like(mask) for name, mask in allowed.items()})(tokens)
    assert not torch.allclose(empty, whole)
    learn_weight_masks(bridge, allowed, lambda run, _: run(tokens).square().mean(), MaskConfig(steps=2), seed=0)
    for name, value in bridge.named_parameters():
        assert torch.equal(value, before[name][0]) and value.requires_grad == before[name][1]
    torch.testing.assert_close(bridge(tokens).detach(), whole, rtol=0, atol=0)


def test_a_tie_is_ablated(net: nn.Module) -> None:
    """`s` that ends at 0 exactly is not kept: nothing moves it from a start of 0 where loss and price are 0."""
    config = MaskConfig(steps=3, start=0.0, price=0)
    kept = learn_weight_masks(net, maskable(net, None), lambda run, _: 0 * run(torch.ones(1, 12).double()).sum(), config, seed=0)
    assert n_kept(kept) == 0


def test_the_price_does_not_depend_on_the_size_of_the_model() -> None:
    """Alone, it takes the same time to close a weight among 5,000 as among 50: Adam's steps have one length."""
    for width in (5, 50):
        layer = nn.Linear(width, 10)
        config = MaskConfig(steps=20, price=1e-4)
        kept = learn_weight_masks(
            layer, maskable(layer, None), lambda run, _, w=width: 0 * run(torch.ones(1, w)).sum(), config, seed=0
        )
        assert n_kept(kept) == 0


def test_only_nonzero_weights_are_masked_and_the_two_parts_complete_each_other(net: nn.Module) -> None:
    allowed = maskable(net, None)
    assert n_kept(allowed) == sum(int((p != 0).sum()) for p in net.parameters() if p.ndim == 2)
    halves = {name: mask & (torch.arange(mask.shape[1]) % 2 == 0) for name, mask in allowed.items()}
    drawn = random_masks(halves, allowed, seeded())
    assert drawn is not None and all(int(drawn[name].sum()) == int(halves[name].sum()) for name in halves)
    left = without(allowed, drawn)
    assert n_kept(drawn) + n_kept(left) == n_kept(allowed) and overlap(drawn, left) == 0 and overlap(drawn, drawn) == 1
    assert random_masks(allowed, drawn, seeded()) is None, "there are not as many weights"
    assert overlap({}, {}) == chance_overlap({}, {}, {}) == 0


def test_random_rows_are_as_many_rows(net: nn.Module) -> None:
    allowed = maskable(net, None)
    three: Masks = {name: mask & (torch.arange(len(mask)) < 3)[:, None] for name, mask in allowed.items()}
    drawn = random_masks({"0.weight": three["0.weight"]}, without(allowed, three), seeded(), "rows")
    assert drawn is not None
    rows = drawn["0.weight"].any(1)
    assert int(rows.sum()) == 3 and not rows[:3].any() and torch.equal(drawn["0.weight"], allowed["0.weight"] & rows[:, None])
    assert random_masks(three, without(allowed, three), seeded(), "rows") is None, "the last matrix has three rows"


def test_chance_overlap_is_that_of_random_masks(net: nn.Module) -> None:
    allowed = maskable(net, None)
    part = {name: mask & (torch.rand(mask.shape, generator=seeded()) < 0.4) for name, mask in allowed.items()}
    drawn = [(random_masks(part, allowed, seeded(i)), random_masks(part, allowed, seeded(1000 + i))) for i in range(100)]
    mean = sum(overlap(first, second) for first, second in drawn if first and second) / len(drawn)
    assert chance_overlap(part, part, allowed) == pytest.approx(mean, abs=0.02)


def test_masks_may_leave_early_layers_whole(bridge: Any) -> None:
    """`l0_stages` of the paper: from a block on, and nothing outside of blocks."""
    whole, upper = maskable(bridge, None), maskable(bridge, None, 1)
    assert upper.keys() == {name for name in whole if "blocks.1." in name} and upper.keys() < whole.keys()
    with pytest.raises(DataError, match="from layer 9 on"):
        maskable(bridge, from_layer=9)


def test_wrong_requests_say_what_to_do(net: nn.Module, bridge: Any) -> None:
    with pytest.raises(UnknownNameError, match="site of weights"):
        maskable(bridge, ["atn"])
    with pytest.raises(DataError, match="nonzero"):
        maskable(nn.Linear(2, 3).requires_grad_(False).apply(lambda layer: layer.weight.zero_()), None)
    with pytest.raises(ConfigError, match="lower learning_rate"):
        learn_weight_masks(net, maskable(net, None), lambda run, g: batch_loss(run, g) * math.nan, MaskConfig(steps=2), seed=0)
    with pytest.raises(ValueError, match="units"):
        MaskConfig(units="columns")  # pyright: ignore[reportArgumentType]
