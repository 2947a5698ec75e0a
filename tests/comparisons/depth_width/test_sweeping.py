"""The sweep: planted slopes, best rates, missing cells, and a tiny grid that is really trained and taken up again."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from sparse_lens.comparisons.depth_width.grid import GridCell
from sparse_lens.comparisons.depth_width.sweeping import (
    DepthWidthSweep,
    SweepCell,
    best_rate,
    depth_slopes,
    depth_width_sparsity_sweep,
    is_at_edge,
    next_rate,
)
from sparse_lens.comparisons.jobs import Record
from sparse_lens.data import DataConfig, SourceFolder, TokenData, generate_program, prepare_data
from sparse_lens.errors import ConfigError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    source = tmp_path_factory.mktemp("source")
    for number in range(60):
        (source / f"module_{number}.py").write_text(generate_program(random.Random(number)))
    sources = (SourceFolder(str(source)),)
    sizes = {"vocab_size": 600, "valid_generated_tokens": 500, "tokenizer_mb": 0.1}
    config = DataConfig(sources=sources, generated_share=0.125, valid_share=0.2, **sizes)
    return prepare_data(config, tmp_path_factory.mktemp("corpus") / "data")


def test_planted_depth_slopes_are_recovered() -> None:
    """`loss = a - b log L`, with another b at each density and a seed's own level: b, and the difference of both."""
    planted = {1.0: 0.1, 1 / 16: 0.3}
    losses = {
        (depth, density): [4 + seed - b * math.log(depth) for seed in range(3)]
        for density, b in planted.items()
        for depth in (1, 4, 16)
    }
    found = depth_slopes(losses)
    assert found["slope_at_1"].value == pytest.approx(-0.1) and found["slope_at_0.0625"].value == pytest.approx(-0.3)
    assert found["interaction"].value == pytest.approx(-0.2) and found["interaction"].seeds == 3
    noisy = {place: [v + 0.05 * random.Random(f"{place}{i}").gauss(0, 1) for i, v in enumerate(vs)] for place, vs in losses.items()}
    slope = depth_slopes(noisy)["slope_at_0.0625"]
    assert (slope.lo or 0) < -0.3 < (slope.hi or 0)
    few = depth_slopes({(1, 1.0): [3.0], (4, 1.0): [2.0], (1, 0.25): [3.0]})
    assert not few["slope_at_0.25"].measurable and not few["interaction"].measurable and few["slope_at_1"].lo is None


def test_an_interaction_is_of_the_extreme_densities_over_the_same_depths() -> None:
    """Not of the next density where the least has no values, nor of slopes over other depths."""
    losses: dict[tuple[int, float], list[float]] = {
        (depth, density): [4 - density * depth] for density in (1.0, 1 / 4, 1 / 16) for depth in (1, 4, 16)
    }
    assert depth_slopes(losses)["interaction"].measurable
    gone = depth_slopes(losses | {(depth, 1 / 16): [] for depth in (1, 4, 16)})
    assert gone["slope_at_0.25"].measurable and not gone["interaction"].measurable
    other = depth_slopes(losses | {(16, 1 / 16): []})
    assert other["slope_at_0.0625"].measurable and "1, 4 and 1, 4, 16" in str(other["interaction"].reason)


def run(loss: float) -> Record:
    return {"loss": loss, "measures": {"half": loss / 2}, "core": 12, "nonzeros": 6, "embeddings": 3, "total": 20, "seconds": 1.0}


def test_best_rate_table_and_missing_cells() -> None:
    """The rate with the least loss; a row for every cell, also for one that is missing."""
    diverged = {"name": "far", "loss": None}
    assert best_rate({0.1: run(3.0), 0.2: run(2.9), 0.4: run(3.4), 0.8: diverged}) == 0.2
    assert best_rate({0.8: diverged}) is None
    assert [is_at_edge(rate, (0.2, 0.1, 0.4)) for rate in (0.1, 0.2, 0.4)] == [True, False, True] and is_at_edge(0.1, (0.1,))
    assert next_rate({0.9: run(2.9), 0.3: run(3.0)}) == 2.7 and next_rate({0.9: run(3.1), 0.3: run(3.0)}) == 0.1
    assert next_rate({0.1: run(3.1), 0.3: run(3.0), 0.9: run(3.2)}) is None and next_rate({0.1: run(3.1)}) is None
    assert next_rate({0.3: diverged, 0.9: diverged}) == 0.1
    cell = SweepCell(GridCell(1, 1, 0.5), 0.2, (run(3.2), run(3.4)))
    assert cell.results["loss"].value == pytest.approx(3.3)
    assert cell.results["half"].value == pytest.approx(1.65) and cell.results["half"].seeds == 2
    frame = DepthWidthSweep("core", {(1, 0.5): cell}, {(3, 0.5): "no width"}).to_frame()
    assert frame["depth"].tolist() == [1, 3] and frame["missing"].tolist() == ["", "no width"]
    assert frame["loss_deviation"].iloc[0] == pytest.approx(0.2 / math.sqrt(2))


def test_nothing_trained_yet_is_all_missing(data: TokenData, tmp_path: Path) -> None:
    """Without training every cell is named, with how many runs it lacks."""
    sweep = depth_width_sparsity_sweep(data, tmp_path, budget_core=49_152, depths=(1, 3), densities=(1.0,), train=False)
    assert not sweep.cells and sweep.missing[1, 1.0] == "4 of 4 runs are not trained yet" and "no width" in sweep.missing[3, 1.0]
    with pytest.raises(ConfigError, match="one seed"):
        depth_width_sparsity_sweep(data, tmp_path, seeds=())


@pytest.mark.slow
def test_a_tiny_grid(data: TokenData, tmp_path: Path) -> None:
    """Two depths and two densities, 60 steps: equal cores, a loss and a measure in every cell, and nothing computed twice."""
    options = {"budget_core": 49_152, "depths": (1, 4), "densities": (1.0, 1 / 16), "seeds": (0,), "tokens": 60 * 8 * 128}
    options |= {"learning_rates": (9e-3, 1.8e-2), "widenings": 1, "progress": False}
    sweep = depth_width_sparsity_sweep(data, tmp_path, **options)
    assert set(sweep.cells) == {(1, 1.0), (1, 1 / 16), (4, 1.0), (4, 1 / 16)} and not sweep.missing
    for (_, density), cell in sweep.cells.items():
        found = cell.results
        assert found["core"].value == 49_152 and found["nonzeros"].value == round(density * 49_152)
        assert 1 < (found["loss"].value or 0) < math.log(600) and found["loss"].seeds == 1
        assert found["learning_rate"].value in (4.5e-3, 9e-3, 1.8e-2, 3.6e-2)
    assert sweep.results["interaction"].value is not None and sweep.results["interaction"].lo is None
    again = depth_width_sparsity_sweep(data, tmp_path, train=False, **options)
    assert again.to_frame().equals(sweep.to_frame())
    records = sorted((tmp_path / "records").iterdir())
    assert len(records) == 4 * 3  # of two rates each is at an edge: a third in every cell
    records[0].unlink()
    assert len(depth_width_sparsity_sweep(data, tmp_path, train=False, **options).missing) == 1
    assert depth_width_sparsity_sweep(data, tmp_path, **options).to_frame().equals(sweep.to_frame())
