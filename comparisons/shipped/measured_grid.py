"""The grid of depth, width and density as it was trained and measured: what `depth_table` keeps, and tables are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparse_lens.comparisons.depth_width.grid import Matching, Place
from sparse_lens.comparisons.depth_width.sweeping import DepthWidthSweep, depth_slopes
from sparse_lens.comparisons.instrument.sizes import NOTHING
from sparse_lens.comparisons.instrument.verdicts import difference_over_seeds
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.measuring_family import measure_family
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.results import Result, from_plain, less, not_measurable

_LOSS = "loss"

KEPT: Mapping[Matching, str] = {"core": "depth.json", "nonzeros": "depth-nonzeros.json"}
"""The file of each matching, which are never mixed."""


@dataclass(frozen=True)
class MeasuredCell:
    """A cell at its best learning rate, with the measures of its runs by their name in the table, one run a training seed.

    `nonzeros` of the blocks' matrices, `embeddings` and `parameters` (everything) are counts, `seconds` those of a training.
    """

    depth: int
    density: float
    width: int
    learning_rate: float
    at_edge: bool
    nonzeros: int
    embeddings: int
    parameters: int
    seconds: float | None
    runs: Sequence[Mapping[str, Result]]


@dataclass(frozen=True)
class MeasuredGrid:
    """The cells of one matching; `missing` has the reason for every other. `fracture_tasks`: those that all models do."""

    matching: Matching
    cells: Mapping[Place, MeasuredCell]
    missing: Mapping[Place, str]
    fracture_tasks: Sequence[str] = ()

    @property
    def measures(self) -> list[str]:
        return list(next(iter(self.cells.values())).runs[0])

    @property
    def densities(self) -> list[float]:
        """From the least to the greatest."""
        return sorted({density for _, density in self.cells})

    @property
    def n_seeds(self) -> int:
        """Runs of a cell."""
        return min(len(cell.runs) for cell in self.cells.values())

    def with_all(self, measures: Sequence[str]) -> MeasuredGrid:
        """The grid with no run in the cells of which one lacks one of the measures."""

        def is_whole(cell: MeasuredCell) -> bool:
            return all(run[measure].value is not None for run in cell.runs for measure in measures)

        cells = {place: cell if is_whole(cell) else replace(cell, runs=()) for place, cell in self.cells.items()}
        return replace(self, cells=cells)

    def joined(self, kept: MeasuredGrid) -> MeasuredGrid:
        """With the cells and the measures that an earlier run has kept; where a number is in neither, it is not measurable.

        Raises `DataError` for a training that came to another loss there, `ConfigError` for a measure that is kept of cells beyond
        these: two runs measure on tasks, and at numbers of neurons, of their own.
        """
        both = {place: (_runs(self.cells.get(place)), _runs(kept.cells.get(place))) for place in {**kept.cells, **self.cells}}
        beyond = [runs for own, runs in both.values() if not own]
        for measure in self.measures:
            if measure != _LOSS and any(run.get(measure, NOTHING) != NOTHING for runs in beyond for run in runs):
                raise ConfigError(f"{measure!r} is kept of other cells, too; measure it in all, or leave it out (--only, --tasks)")
        for place, (own, runs) in both.items():
            if own and runs and [run[_LOSS] for run in own] != [run[_LOSS] for run in runs]:
                raise DataError(f"the runs of {place[0]} layers at density {place[1]:g} are not those that are kept: other losses")
        measures = dict.fromkeys([*kept.measures, *self.measures], NOTHING)
        cells = {}
        for place, (own, runs) in both.items():
            found = [measures | dict(old) | dict(new) for old, new in zip(runs or own, own or runs, strict=True)]
            cells[place] = replace(self.cells.get(place) or kept.cells[place], runs=found)
        missing = {place: why for place, why in {**kept.missing, **self.missing}.items() if place not in cells}
        return MeasuredGrid(self.matching, cells, missing, self.fracture_tasks or kept.fracture_tasks)

    def slopes_of(self, measure: str) -> dict[str, Result]:
        """`depth_slopes` of a measure, over the places where it is measurable in all runs."""
        values = {place: [run[measure].value for run in cell.runs] for place, cell in self.cells.items()}
        return depth_slopes({place: found if len(found := _values(of)) == len(of) else [] for place, of in values.items()})

    def slopes_beyond(self, measure: str, control: str) -> dict[str, Result]:
        """`depth_slopes` of what a measure has beyond its control, run by run, over the places where both are measurable."""
        runs = {place: cell.runs for place, cell in self.with_all((measure, control)).cells.items()}
        values = {place: [(run[measure].value or 0.0) - (run[control].value or 0.0) for run in of] for place, of in runs.items()}
        return depth_slopes(values)

    def density_differences(self, measure: str, control: str | None = None) -> dict[int, Result]:
        """By depth, a measure at the least density less that at the greatest, or what it has beyond a control; run by run."""
        names = (measure,) if control is None else (measure, control)
        cells, least, most = self.with_all(names).cells, self.densities[0], self.densities[-1]

        def values(place: Place) -> list[float]:
            numbers = [[run[name].value or 0.0 for name in names] for run in _runs(cells.get(place))]
            return [own - sum(of_control) for own, *of_control in numbers]

        found: dict[int, Result] = {}
        for depth in sorted({depth for depth, _ in cells}):
            sparse, dense = values((depth, least)), values((depth, most))
            both = [less(*pair) for pair in zip(sparse, dense, strict=True)] if len(sparse) == len(dense) else []
            found[depth] = difference_over_seeds(both) if least < most else not_measurable("all models have one density")
        return found

    def to_plain(self) -> dict[str, Any]:
        """For JSON, by `results.write_json`."""
        missing = [{"depth": depth, "density": density, "why": why} for (depth, density), why in self.missing.items()]
        cells = [asdict(cell) | {"runs": cell.runs} for cell in self.cells.values()]
        return {"matching": self.matching, "fracture_tasks": self.fracture_tasks, "cells": cells, "missing": missing}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> MeasuredGrid:
        """The inverse of `to_plain`."""
        cells = [MeasuredCell(**from_plain(cell)) for cell in content["cells"]]
        missing = {(gap["depth"], gap["density"]): gap["why"] for gap in content["missing"]}
        return cls(content["matching"], {(cell.depth, cell.density): cell for cell in cells}, missing, content["fracture_tasks"])


def _runs(cell: MeasuredCell | None) -> Sequence[Mapping[str, Result]]:
    return () if cell is None else cell.runs


def _values(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def measure_grid(pair: ModelPair, sweep: DepthWidthSweep, grid: Path, *, tasks: Sequence[str], **how: Any) -> MeasuredGrid:
    """Measure the runs of a sweep that trained into the folder `grid`; `how` is that of `measure_family`."""
    names = {place: [run["name"] for run in cell.runs] for place, cell in sweep.cells.items()}
    folders = {name: (grid / "models" / name).absolute() for of in names.values() for name in of}
    models = measure_family(pair, folders, tasks=tasks, **how)
    measured = {place: [{_LOSS: models[name]["loss"]} | models[name]["values"] for name in of] for place, of in names.items()}
    done = next(iter(models.values()))["fracture_tasks"] if models else []
    return with_measures(sweep, measured, done)


def with_measures(
    sweep: DepthWidthSweep, measured: Mapping[Place, Sequence[Mapping[str, Result]]], fracture_tasks: Sequence[str] = ()
) -> MeasuredGrid:
    """A sweep's cells with the measures of their runs."""
    cells = {}
    for (depth, density), cell in sweep.cells.items():
        cells[depth, density] = MeasuredCell(
            depth=depth,
            density=density,
            width=cell.cell.width,
            learning_rate=cell.learning_rate,
            at_edge=cell.at_edge,
            nonzeros=cell.runs[0]["nonzeros"],
            embeddings=cell.runs[0]["embeddings"],
            parameters=cell.runs[0]["total"],
            seconds=cell.results["seconds"].value,
            runs=measured[depth, density],
        )
    return MeasuredGrid(sweep.matching, cells, sweep.missing, fracture_tasks)


def read_grid(folder: Path, matching: Matching = "core") -> MeasuredGrid:
    """What `depth_table` has kept in a folder for a matching."""
    return MeasuredGrid.from_plain(json.loads((folder / KEPT[matching]).read_text(encoding="utf-8"))["grid"])
