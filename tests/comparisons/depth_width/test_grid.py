"""Shapes of the grid are exactly equal, counted on built models; both matchings; what does not fit is named."""

from __future__ import annotations

import pytest
import torch

from sparse_lens.comparisons.depth_width.grid import GridCell, cell_recipe, make_grid
from sparse_lens.comparisons.depth_width.training_cell import count_parameters
from sparse_lens.errors import ConfigError
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.training.run import TrainingRun


@pytest.mark.parametrize(("depth", "width"), [(1, 256), (4, 128), (16, 64)])
def test_equal_cores_are_786432(depth: int, width: int) -> None:
    """The reference's three shapes, as numbers and as built models; embeddings stand apart."""
    cells, missing = make_grid(786_432, [depth], [1.0])
    assert cells[depth, 1.0] == GridCell(depth, width, 1.0) and not missing
    recipe = cell_recipe(cells[depth, 1.0], tokens=2048, seed=0, learning_rate=0.01)
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**recipe.model, vocab_size=100, block_size=16))
    counted = count_parameters(model)
    assert counted["core"] == counted["nonzeros"] == cells[depth, 1.0].core == 786_432
    assert counted["embeddings"] == (100 + 16) * width and counted["total"] > counted["core"] + counted["embeddings"]


@pytest.mark.parametrize("density", [1.0, 1 / 4, 1 / 16, 1 / 64])
def test_nonzeros_after_a_step(density: float) -> None:
    """The share of every matrix that the density leaves, after the last of one step."""
    cell = make_grid(49_152, [4], [density])[0][4, density]
    recipe = cell_recipe(cell, tokens=2048, seed=0, learning_rate=0.01).with_steps(1)
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**recipe.model, vocab_size=50, block_size=16))
    TrainingRun(recipe, model).optimize(torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(0)))
    counted = count_parameters(model)
    assert counted["core"] == 49_152 and counted["nonzeros"] == cell.nonzeros == round(density * 49_152)


def test_the_two_matchings() -> None:
    """Equal matrices, or equal nonzeros in wider ones: half the width, a quarter of the nonzeros."""
    equal, _ = make_grid(49_152, [1, 4], [1.0, 1 / 16])
    assert {cell.core for cell in equal.values()} == {49_152} and equal[4, 1 / 16].nonzeros == 3072
    wide, missing = make_grid(3072, [1, 4], [1.0, 1 / 4, 1 / 16], matching="nonzeros", d_head=8)
    assert {cell.nonzeros for cell in wide.values()} == {3072} and not missing
    assert wide[1, 1 / 16].width == 64 and wide[4, 1.0].width == 8


def test_what_does_not_fit_is_named() -> None:
    """Three times the depth has no whole width; narrow heads do not fit; bad axes are refused."""
    cells, missing = make_grid(49_152, [1, 3, 64], [1.0])
    assert list(cells) == [(1, 1.0)] and set(missing) == {(3, 1.0), (64, 1.0)} and "49,152 at depth 3" in missing[3, 1.0]
    assert set(make_grid(786_432, [1], [0.3], matching="nonzeros")[1]) == {(1, 0.3)}
    for density in (0.0, 1e-9):
        with pytest.raises(ConfigError, match="densities from 1e-06 to 1"):
            make_grid(49_152, [1], [density], matching="nonzeros")
    with pytest.raises(ConfigError, match="d_head=0"):
        make_grid(49_152, [1], [1.0], d_head=0)
    with pytest.raises(ConfigError, match="depths from 1"):
        make_grid(49_152, [], [1.0])
