"""The table of depth: planted slopes decide the claim, gaps are named, and a tiny grid goes all the way."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.comparisons.depth_width.grid import GridCell, Matching
from sparse_lens.comparisons.depth_width.sweeping import DepthWidthSweep, SweepCell
from sparse_lens.comparisons.instrument.kept_rows import read_kept
from sparse_lens.comparisons.shipped.depth_page import depth_page
from sparse_lens.comparisons.shipped.depth_table import depth_row, main
from sparse_lens.comparisons.shipped.measured_grid import KEPT, MeasuredGrid, read_grid, with_measures
from sparse_lens.comparisons.shipped.measuring_family import ENTANGLEMENT, MIXED, UNTRAINED
from sparse_lens.data import DataConfig, SourceFolder, generate_program, prepare_data
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.results import Result, exact, not_measurable, to_plain, write_json

DEPTHS, DENSITIES = (1, 4, 16), (1.0, 1 / 16)

Measured = dict[tuple[int, float], list[dict[str, Result]]]


def planted(seeds: int = 3, *, untrained: float = 0.0) -> Measured:
    """Entanglement falls by 0.1 with each unit of the logarithm of depth in dense models, by 0.02 in sparse ones."""

    def run(depth: int, density: float, seed: int) -> dict[str, Result]:
        slope = (0.1 if density == 1 else 0.02) + 0.001 * seed
        log = math.log(depth)
        controls = {UNTRAINED: exact(0.5 - untrained * log), MIXED: exact(0.9 + 0.001 * log * seed)}
        return {"loss": exact(4 - 0.01 * log * (1 + seed)), ENTANGLEMENT: exact(0.8 - slope * log + 0.01 * seed)} | controls

    return {(depth, density): [run(depth, density, seed) for seed in range(seeds)] for depth in DEPTHS for density in DENSITIES}


def grid_of(measured: Measured, matching: Matching = "core", **changes: Any) -> MeasuredGrid:
    counts = {"core": 10, "nonzeros": 5_000, "embeddings": 3, "total": 20, "loss": 4.0, "measures": {}, "seconds": 90.0}
    cells = {place: SweepCell(GridCell(place[0], 64, place[1]), 0.01, (counts,) * len(of)) for place, of in measured.items()}
    sweep = DepthWidthSweep(matching, {place: replace(cell, **changes) for place, cell in cells.items()}, {(3, 1.0): "no width"})
    return with_measures(sweep, measured, ["with_as"])


def test_planted_slopes_decide_the_claim(tmp_path: Path) -> None:
    row = depth_row(grid_of(planted()))
    assert row.verdict == "supports" and row.judgement.difference.value == pytest.approx(-0.101)
    assert row.sparse.value == pytest.approx(-0.021) and any("interaction" in line and "0.08" in line for line in row.found)
    (tmp_path / KEPT["core"]).write_text(json.dumps(to_plain({"claims": [row.to_plain()]})))
    assert read_kept(tmp_path / KEPT["core"])[0].judgement == row.judgement


def test_the_row_and_its_slopes_are_over_the_same_cells() -> None:
    """A number that one run lacks takes its cell out of entanglement and of its controls, in verdict and numbers shown; the row
    says the direction by which it was judged."""
    measured = planted()
    measured[16, 1.0][0][UNTRAINED] = not_measurable("gate")
    row = depth_row(grid_of(measured))
    assert row.claim.larger == "dense" and row.judgement.difference == row.dense and row.verdict == "supports"
    without = {place: runs for place, runs in planted().items() if place != (16, 1.0)}
    assert row.judgement == depth_row(grid_of(without)).judgement and row.controls == depth_row(grid_of(without)).controls
    at_other_depths = "the least and the greatest density have values at other depths: 1, 4, 16 and 1, 4"
    assert f"interaction (slope at the least density less that): {at_other_depths}" in row.found
    for depth in (1, 4):
        measured[depth, 1.0][1][MIXED] = not_measurable("gate")
    assert depth_row(grid_of(measured)).verdict == "not measurable"


def test_cells_without_a_tuned_rate_are_told() -> None:
    assert not any("learning rate" in line for line in depth_row(grid_of(planted())).found)
    told = depth_row(grid_of(planted(), at_edge=True)).found
    assert any(line.startswith("6 of 6 cells do best at the least or the largest learning rate") for line in told)


def test_a_control_or_too_few_seeds_leave_it_open() -> None:
    assert depth_row(grid_of(planted(untrained=0.1))).verdict == "indistinguishable"
    assert depth_row(grid_of(planted(2))).verdict == "not measurable"


def test_the_page_has_every_cell_and_names_gaps() -> None:
    measured = planted()
    for run in measured[16, 1 / 16]:
        run[ENTANGLEMENT] = not_measurable("4 of 5 tasks are done")
    page = depth_page(grid_of(measured))
    assert "| 16 | 64 | 6.25 % | 5,000 | 3 | 20 | 0.01 | 3.945 (0.028) | 1.5 |" in page["depth grid"]
    assert "3 layers at 100 %: no width" in page["depth grid"]
    (entanglement,) = (line for line in page["depth measures"].splitlines() if line.startswith(f"| {ENTANGLEMENT} |"))
    assert entanglement.endswith("| — |") and entanglement.count("|") == 8 and "all models do: with_as" in page["depth measures"]
    assert grid_of(measured).slopes_of(ENTANGLEMENT)["slope_at_0.0625"].value == pytest.approx(-0.021)
    assert f"| {ENTANGLEMENT} | -0.101 [" in page["depth"] and "Matched by core: all models" in page["depth grid"]
    assert "edge" not in page["depth grid"]
    told = depth_page(grid_of(measured, at_edge=True))["depth grid"]
    assert "| 0.01 (edge) |" in told and "a better one may lie beyond" in told
    others = grid_of(measured, "nonzeros")
    assert set(depth_page(others)) == {f"{marker} at equal nonzeros" for marker in page}
    assert any("matched by nonzeros" in line for line in depth_row(others).found)


def test_what_density_does_at_each_depth() -> None:
    """Planted: 0.08 of entanglement for each unit of the logarithm, of which the controls have nothing."""
    measured = planted(untrained=0.05)
    measured[16, 1 / 16][1][UNTRAINED] = not_measurable("gate")
    grid = grid_of(measured)
    differences, beyond = grid.density_differences(ENTANGLEMENT), grid.density_differences(ENTANGLEMENT, UNTRAINED)
    assert [result.value for result in differences.values()] == pytest.approx([0.08 * math.log(depth) for depth in DEPTHS])
    assert differences[4].n == 3 and differences[4].lo is not None and differences[4].lo == pytest.approx(0.08 * math.log(4))
    assert beyond[4].value == pytest.approx(0.08 * math.log(4)) and not beyond[16].measurable
    (told,) = (line for line in depth_page(grid)["density by depth"].splitlines() if "beyond weights shuffled" in line)
    assert told.startswith(f"| {ENTANGLEMENT}, beyond weights shuffled | 0 [0, 0] | 0.111 [0.111, 0.111] | — |")
    dense = grid_of({place: runs for place, runs in planted().items() if place[1] == 1})
    assert dense.density_differences(ENTANGLEMENT)[4].reason == "all models have one density"


def test_a_kept_grid_is_read_again(tmp_path: Path) -> None:
    grid = grid_of(planted())
    write_json({"grid": grid.to_plain()}, tmp_path / KEPT["core"])
    assert read_grid(tmp_path) == grid and depth_page(read_grid(tmp_path)) == depth_page(grid)


def test_measures_and_cells_are_added_to_a_kept_grid() -> None:
    """What is kept stays, a number of neither run is not measurable, and no measure is mixed of two runs."""
    kept, measured = grid_of(planted()), planted()
    dense = {place: [{"loss": run["loss"], "R²": exact(0.5)} for run in runs] for place, runs in measured.items() if place[1] == 1}
    joined = grid_of(dense).joined(kept)
    assert joined.measures == [*kept.measures, "R²"] and joined.fracture_tasks == kept.fracture_tasks
    assert depth_row(joined) == depth_row(kept) and joined.missing == kept.missing
    assert joined.slopes_of("R²")["slope_at_1"].value == pytest.approx(0)
    assert not joined.cells[4, 1 / 16].runs[2]["R²"].measurable and joined.cells[4, 1 / 16].runs[2].keys() == {*joined.measures}
    assert joined.joined(joined) == joined
    fewer = {place: runs for place, runs in measured.items() if place[1] == 1}
    with pytest.raises(ConfigError, match="'entanglement' is kept of other cells, too"):
        grid_of(fewer).joined(kept)
    dense[4, 1.0][0]["loss"] = exact(1.0)
    with pytest.raises(DataError, match="the runs of 4 layers at density 1 are not those that are kept"):
        grid_of(dense).joined(kept)


def test_the_docs_hold_the_kept_tables() -> None:
    """Tables and the claim's row are what the kept grid gives."""
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "pages" / "claims-details.md").read_text()
    kept = [matching for matching, name in KEPT.items() if (docs / "depth" / name).is_file()]
    assert "core" in kept
    for matching in kept:
        grid, content = read_grid(docs / "depth", matching), json.loads((docs / "depth" / KEPT[matching]).read_text())
        for marker, table in depth_page(grid).items():
            assert f"<!-- table: {marker} -->\n{table}\n<!-- end -->" in page
        assert (
            to_plain(depth_row(grid, content["shape"]["tokens"]).to_plain()) == content["claims"][0]
            and not content["scope"]["smoke"]
        )


@pytest.mark.slow
def test_a_tiny_grid_is_trained_measured_and_taken_up_again(tmp_path: Path) -> None:
    source, data = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    for number in range(40):
        (source / f"module_{number}.py").write_text(generate_program(random.Random(number)))
    sizes = {"valid_share": 0.3, "valid_generated_tokens": 500, "tokenizer_directory": "python"}
    prepare_data(DataConfig((SourceFolder(str(source)),), 0.1, **sizes), data)
    options = [
        "--data",
        str(data),
        "--out",
        str(tmp_path / "kept"),
        "--cells",
        str(tmp_path / "cells"),
        "--smoke",
        "--workers",
        "1",
    ]
    options += ["--budget-core", "49152", "--depths", "1", "4", "--densities", "1", "--seeds", "0", "--tokens", "40960"]
    options += ["--rates", "0.018", "--tasks", "--only", "predictability"]
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in depth_page(grid_of(planted()))))
    main([str(tmp_path / "grid"), *options, "--page", str(page)])
    measured = {place: cell.runs for place, cell in read_grid(tmp_path / "kept").cells.items()}
    assert (
        set(measured) == {(1, 1.0), (4, 1.0)} and page.read_text().count("held-out R²") == 3 + 5 + 5
    )  # two controls, and beyond them
    assert all(run["held-out R² of a neuron from the others"].measurable for of in measured.values() for run in of)
    before = {
        path: path.stat().st_mtime_ns for path in (*(tmp_path / "cells").iterdir(), *(tmp_path / "grid" / "records").iterdir())
    }
    main([str(tmp_path / "grid"), *options])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(ConfigError, match="tokens 40960"):
        main([str(tmp_path / "grid"), *options, "--tokens", "20480"])
