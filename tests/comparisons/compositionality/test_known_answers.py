"""Structural compositionality: known answers of nets with and without separate towers, the controls, and the formulas by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_lens.comparisons.compositionality.cells import Cell, Compositionality
from sparse_lens.comparisons.compositionality.measuring import measure_masks
from sparse_lens.comparisons.compositionality.scoring import accuracies
from sparse_lens.comparisons.compositionality.shared_prompts import SharedPrompts
from sparse_lens.comparisons.compositionality.weight_masks import (
    MaskConfig,
    maskable,
    n_kept,
    random_masks,
    under_masks,
    without,
)
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.results import Result

CONFIG = MaskConfig(steps=300, batch_size=64)


class Net(nn.Module):
    """A 3-layer ReLU net on `[row, 1, bit]`; logits 0 and 1 answer the first task, 2 and 3 the second."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second, self.last = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def parities(*, same: bool = False) -> SharedPrompts:
    """The parity of the bits 0, 1, 2 and that of 3, 4, 5 (`same`: of 0, 1, 2 again), on all strings of 8 bits."""
    bits = torch.cartesian_prod(*[torch.arange(2)] * 8)
    first = bits[:, :3].sum(1) % 2
    second = first if same else bits[:, 3:6].sum(1) % 2
    answers, wrong = torch.stack([first, second + 2]), torch.stack([1 - first, 3 - second])
    return SharedPrompts(("a", "b"), (2.0 * bits - 1)[:, None], torch.zeros(2, len(bits), dtype=torch.long), answers, wrong)


def trained(net: Net, prompts: SharedPrompts, mask: dict[str, Tensor] | None = None, steps: int = 400) -> Net:
    """Train both tasks; the weights outside `mask` are zero."""
    optimizer, row = torch.optim.Adam(net.parameters(), lr=0.01), torch.arange(len(prompts))
    for _ in range(steps):
        logits = net(prompts.inputs)[row, 0]
        margin = logits.gather(1, prompts.right.T) - logits.gather(1, prompts.wrong.T)
        optimizer.zero_grad()
        F.softplus(-margin).mean().backward()
        optimizer.step()
        for name, parameter in net.named_parameters():
            if mask and name in mask:
                parameter.data *= mask[name]
    return net


def towers(width: int) -> dict[str, Tensor]:
    """Two blocks: bits 0, 1, 2 to the first half of the units to logits 0, 1; the rest to the rest."""
    half, bit, logit = torch.arange(width) < width // 2, torch.arange(8) < 3, torch.arange(4) < 2
    pairs = {"first.weight": (half, bit), "second.weight": (half, half), "last.weight": (logit, half)}
    return {name: out[:, None] == into[None] for name, (out, into) in pairs.items()}


@contextmanager
def untrained(net: Net) -> Iterator[Net]:
    """Inside the block the net has the weights that it could have begun with."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(Net(net.first.out_features, seed=99).state_dict())
    try:
        yield net
    finally:
        net.load_state_dict(before)


def measure(net: Net, *, same: bool = False, config: MaskConfig = CONFIG, **options: Any) -> Compositionality:
    prompts = parities(same=same)
    return measure_masks(net, prompts, prompts, config, **{"sites": None, "seeds": (0,), "progress": False, **options})


@pytest.fixture(scope="module")
def two_towers() -> Net:
    return trained(Net(64, 0), parities(), towers(64))


def test_two_towers_are_compositional_and_each_mask_lies_in_its_tower(two_towers: Net) -> None:
    """Known answer of the reference: 1.00 / .49 kept alone, .51 / 1.00 ablated, score .99, 5.5 % of weights (and zeros) kept."""
    found = measure(two_towers, seeds=(0, 1))
    for cell in found.cells:
        assert cell.accuracies["sub_own"] > 0.99 and cell.accuracies["abl_other"] > 0.99
        assert cell.d_sub == pytest.approx(0.5, abs=0.02) and cell.d_abl == pytest.approx(-0.5, abs=0.02)
        assert cell.score > 0.97 and cell.compositional
        assert cell.kept / sum(weight.numel() for weight in found.allowed.values()) == pytest.approx(0.055, abs=0.015)
        assert (cell.random["complement_d_abl"] or 0) > 0.1, "random weights outside the mask are the other tower's"
        assert cell.kept_share == pytest.approx(cell.kept / n_kept(found.allowed))
    first, units = towers(64), torch.arange(64) < 32
    for seed in (0, 1):
        assert not any(bool((found.masks["a", seed][name] & ~mask).any()) for name, mask in first.items())
        assert (
            not found.masks["a", seed]["second.weight"][~units].any() and not found.masks["b", seed]["second.weight"][units].any()
        )
    results = found.results
    assert results["overlap"].value == 0 and results["compositional"].value == 1 and results["score"].value > 0.97
    for name in ("a", "b"):
        seeds = results[f"{name}_seed_overlap"]
        assert seeds.value > 3 * seeds.null, "masks of one tower's subroutine overlap more than chance"
        assert results[f"{name}_d_abl"].seeds == 2 and results[f"{name}_d_abl"].lo <= results[f"{name}_d_abl"].value
    assert results["maskable"].value == n_kept(found.allowed)


def test_random_masks_of_equal_size_give_nothing(two_towers: Net) -> None:
    """Known answer of the reference: both differences of random masks are within .03; here means over 48 draws of 5.5 %."""
    allowed, prompts, generator = maskable(two_towers, None), parities(), torch.Generator().manual_seed(0)
    part = {name: mask & (torch.rand(mask.shape, generator=generator) < 0.055) for name, mask in allowed.items()}
    drawn = [one for _ in range(48) if (one := random_masks(part, allowed, generator)) is not None]
    for kept in (drawn, [without(allowed, one) for one in drawn]):
        values = torch.stack([accuracies(under_masks(two_towers, one), prompts) for one in kept]).clamp(min=0.5).mean(0)
        assert float(values[0] - values[1]) == pytest.approx(0, abs=0.03)


def test_whole_units_show_the_towers_too(two_towers: Net) -> None:
    """The cheap form: rows are kept or left whole, and the answer is the same."""
    found = measure(two_towers, config=MaskConfig(units="rows", steps=150, batch_size=64))
    for cell in found.cells:
        assert cell.score > 0.97 and cell.compositional
    for mask in found.masks.values():
        for name, allowed in found.allowed.items():
            rows = mask[name].any(1)
            assert torch.equal(mask[name], allowed & rows[:, None])


def test_a_shared_trunk_is_not_compositional() -> None:
    """Known answer of the reference: +.50 and -.01. A mask that kills the other output is easily found; the trunk is not spared."""
    net = trained(Net(8, 1), parities(same=True), steps=600)
    for cell in measure(net, same=True).cells:
        assert cell.accuracies["sub_own"] > 0.99 and cell.d_sub == pytest.approx(0.5, abs=0.02)
        assert abs(cell.d_abl) <= 0.03 and not cell.compositional


def test_a_dense_net_with_disjoint_inputs_passes() -> None:
    """Known answer of the reference: +.49 and -.48, which is why prompts have to be shared: disjoint inputs separate nothing."""
    for cell in measure(trained(Net(64, 2), parities())).cells:
        assert cell.d_sub == pytest.approx(0.49, abs=0.03) and cell.d_abl == pytest.approx(-0.48, abs=0.03) and cell.compositional


def test_a_mask_makes_a_circuit_out_of_random_weights() -> None:
    """Known answer of the reference: 1.00 / .48 kept alone, but ablating it changes nothing: `d_sub` alone proves nothing.

    The reference's mask kept 12 %; at the default price masks of these weights find nothing, so that it is a tenth here.
    """
    config = MaskConfig(steps=400, batch_size=256, price=1e-5)
    found = measure(Net(64, 7), gate=0, config=config)
    for cell in found.cells:
        assert cell.accuracies["sub_own"] > 0.95 and cell.d_sub > 0.4
        assert abs(cell.d_abl) <= 0.06 and not cell.compositional and 0.1 < cell.kept_share < 0.3
    assert all(result.value < 0.6 for result in found.accuracies.values())


def test_controls_stand_beside_the_real_cells_and_leave_the_model(two_towers: Net) -> None:
    before = {name: value.clone() for name, value in two_towers.state_dict().items()}
    config, missing = MaskConfig(steps=20, batch_size=32), {"rotated": "it has neurons"}
    found = measure(two_towers, seeds=(3, 4), controls={"random_weights": untrained}, missing=missing, config=config)
    assert all(torch.equal(value, before[name]) for name, value in two_towers.state_dict().items())
    assert [(cell.weights, cell.seed) for cell in found.cells[::2]] == [("real", 3), ("real", 4), ("random_weights", 3)]
    assert found.results["a_random_weights_d_abl"].measurable and found.results["random_weights_d_abl"].seeds == 1
    assert found.results["a_rotated_d_abl"].reason == found.results["rotated_score"].reason == "it has neurons"
    assert set(found.masks) == {(name, seed) for name in "ab" for seed in (3, 4)}, "masks of random weights are not kept"


def test_equal_seeds_give_equal_results(two_towers: Net) -> None:
    """Whatever was measured before: a caller may take the cells one by one, and go on where it stopped."""
    config = MaskConfig(steps=10, batch_size=16)
    together, alone = measure(two_towers, seeds=(0, 1), config=config), measure(two_towers, seeds=(1,), config=config)
    assert together.cells[2:] == alone.cells


def test_the_gate_refuses_a_model_that_cannot_do_the_tasks() -> None:
    found = measure(Net(64, 3), controls={"random_weights": untrained})
    assert not found.cells and found.results["a_model_accuracy"].measurable
    for name in ("a_d_abl", "b_d_sub", "d_abl", "overlap", "a_seed_overlap", "random_weights_d_abl"):
        assert found.results[name].value is None and "below 0.9" in str(found.results[name].reason)


def test_masks_of_more_than_half_have_no_random_one_outside(two_towers: Net) -> None:
    config = MaskConfig(steps=1, price=0, start=0.1)  # everything is kept
    found = measure(two_towers, config=config).results
    assert found["a_kept_share"].value == 1 and "more than half" in str(found["a_complement_d_abl"].reason)
    assert found["a_random_d_abl"].measurable


@pytest.mark.parametrize(
    ("scores", "d_sub", "d_abl"),
    [
        ((1.0, 0.5, 0.5, 1.0), 0.5, -0.5),
        ((0.9, 0.2, 0.1, 0.45), 0.4, 0.0),
        ((0.5, 0.8, 1.0, 0.6), -0.3, 0.4),
        ((1.0, 0.26, 0.35, 0.75), 0.5, -0.25),
    ],
)
def test_the_formulas_by_hand(scores: tuple[float, ...], d_sub: float, d_abl: float) -> None:
    """Accuracies are floored at one half before they are subtracted; the score lies in [-1, 1]; both signs are needed."""
    names = ("sub_own", "sub_other", "abl_own", "abl_other")
    cell = Cell("a", 0, "real", 10, 0.1, dict(zip(names, scores, strict=True)), {})
    assert cell.d_sub == pytest.approx(d_sub) and cell.d_abl == pytest.approx(d_abl) and cell.score == pytest.approx(d_sub - d_abl)
    assert cell.compositional == (d_sub > 0.1 and d_abl < -0.1)


def test_means_and_extremes_over_seeds_by_hand() -> None:
    """Two seeds with hand numbers; the null of `d_abl` is the random mask's."""
    rows = ((1.0, 0.6, 0.5, 0.9, 0.02), (0.9, 0.5, 0.7, 0.8, -0.04))
    names = ("sub_own", "sub_other", "abl_own", "abl_other")
    cells = tuple(
        Cell("a", seed, "real", 10, 0.1, dict(zip(names, row[:4], strict=True)), {"random_d_abl": row[4], "random_d_sub": 0.0})
        for seed, row in enumerate(rows)
    )
    found = Compositionality(("a", "b"), {}, {}, 8, cells)._over(("a",), "real", "d_abl")
    expected = Result(-0.25, -0.4, -0.1, -0.01, 8, 2)
    for part in ("value", "lo", "hi", "null", "n", "seeds"):
        assert getattr(found, part) == pytest.approx(getattr(expected, part))


def test_wrong_requests_say_what_to_do(two_towers: Net) -> None:
    with pytest.raises(ConfigError, match="at least one seed"):
        measure(two_towers, seeds=())
    prompts = parities()
    with pytest.raises(DataError, match="two subroutines"):
        SharedPrompts(prompts.names, prompts.inputs[:4], prompts.position, prompts.right, prompts.wrong)
