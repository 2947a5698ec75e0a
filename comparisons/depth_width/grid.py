"""The grid of depth, width and density: which shapes are exactly equal, and which cells there cannot be.

The core is what the blocks' matrices have, `L (4 d^2 + 2 d 4d) = 12 L d^2`: four times the depth goes with half the width. There
are two matchings, never mixed: "core" gives every cell the same matrices, of which a sparse one keeps the share `density`;
"nonzeros" gives every cell as many nonzeros, so that a sparse one is wider, `d = d_dense / sqrt(density)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from sparse_lens.errors import ConfigError
from sparse_lens.training import TopK, TrainingConfig
from sparse_lens.training.recipes import sparse_recipe

Matching = Literal["core", "nonzeros"]

Place = tuple[int, float]
"""Depth and density: where a cell stands in the table."""

_MIN_ALIVE = 4

_LEAST_DENSITY = 1e-6


@dataclass(frozen=True)
class GridCell:
    """A shape and a density."""

    depth: int
    width: int
    density: float

    @property
    def core(self) -> int:
        """Entries of the blocks' matrices."""
        return 12 * self.depth * self.width**2

    @property
    def nonzeros(self) -> int:
        """Entries of the blocks' matrices that the density leaves."""
        matrices = (3 * self.width**2, self.width**2, 4 * self.width**2, 4 * self.width**2)
        return self.depth * sum(round(self.density * entries) for entries in matrices)


def make_grid(
    budget_core: int, depths: Sequence[int], densities: Sequence[float], *, matching: Matching = "core", d_head: int = 16
) -> tuple[dict[Place, GridCell], dict[Place, str]]:
    """The cells of every depth and density, and for those that no whole shape fits exactly the reason.

    `budget_core` is the core of every cell, or its nonzeros, by `matching`. Raises `ConfigError` for an axis without entries or a
    density outside (0, 1].
    """
    if not depths or not densities or min(depths) < 1 or not all(_LEAST_DENSITY <= density <= 1 for density in densities):
        raise ConfigError(
            f"a grid needs depths from 1 and densities from {_LEAST_DENSITY:g} to 1, got {list(depths)}, {list(densities)}"
        )
    if d_head < 1:
        raise ConfigError(f"a head has one channel or more, got d_head={d_head}")
    cells, missing = {}, {}
    for depth in depths:
        for density in densities:
            core = Fraction(budget_core) / (
                Fraction(density).limit_denominator(round(1 / _LEAST_DENSITY)) if matching == "nonzeros" else 1
            )
            width = math.isqrt(max(0, round(core / (12 * depth))))
            if width == 0 or 12 * depth * width**2 != core or width % d_head:
                missing[depth, density] = (
                    f"no width that is a multiple of {d_head} has a core of {float(core):,.0f} at depth {depth}"
                )
            else:
                cells[depth, density] = GridCell(depth, width, density)
    return cells, missing


def cell_recipe(
    cell: GridCell, *, tokens: int, seed: int, learning_rate: float, d_head: int = 16, batch_size: int = 8, context: int = 128
) -> TrainingConfig:
    """The family's sparse recipe in the cell's shape, without AbsTopK, bigram table and sparse embeddings: only density differs.

    Embedding and unembedding are one matrix. A neuron keeps as many weights alive as the density leaves on average, at most 4.
    Batches are half the family's, for twice the steps: of a million tokens that makes 3.99 for 4.17 nats (4 layers, 1/16).
    """
    name = f"L{cell.depth}-d{cell.width}-f{cell.density:g}-lr{learning_rate:g}"
    model: dict[str, int | float | str | bool | None] = {
        "n_layer": cell.depth,
        "d_model": cell.width,
        "n_head": cell.width // d_head,
        "d_head": d_head,
        "rms_norm": True,
        "activation_type": "gelu",
        "tied_unembed": True,
        "sink": True,
    }
    alive = min(_MIN_ALIVE, int(cell.density * cell.width))
    sparsity = TopK(density=cell.density, min_alive=alive, anneal_exponent=3, sharkfin_floor=1 / 3)
    steps = max(1, tokens // (batch_size * context))
    options = {"model": model, "sparsity": sparsity, "learning_rate": learning_rate, "batch_size": batch_size, "context": context}
    return sparse_recipe(name, cell.width, steps, density=cell.density, embedding_density=1.0, **options).with_seed(seed)
