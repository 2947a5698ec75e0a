"""The sweep over the grid: every run a kept job, the best learning rate of each cell, and what depth does at each density."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_lens.comparisons.depth_width.grid import GridCell, Matching, Place, cell_recipe, make_grid
from sparse_lens.comparisons.instrument.verdicts import difference_over_seeds
from sparse_lens.comparisons.jobs import Job, Record, read_record, run_jobs
from sparse_lens.data import TokenData
from sparse_lens.errors import ConfigError
from sparse_lens.results import Result, exact, from_plain, not_measurable

if TYPE_CHECKING:
    import pandas as pd

LEARNING_RATES = (3e-3, 9e-3)
"""Tried in every cell, then what lies beyond the better one: dense models need smaller rates than sparse ones."""


@dataclass(frozen=True, eq=False)
class SweepCell:
    """The runs of a cell at its best learning rate, one a seed: their losses in nats a token, counts, and measures.

    `at_edge`: no smaller rate was tried, or no larger one, so that a better one may lie beyond.
    """

    cell: GridCell
    learning_rate: float
    runs: tuple[Record, ...]
    at_edge: bool = False

    @property
    def results(self) -> dict[str, Result]:
        """`loss`, every measure and the `seconds` of a training as means over seeds with Student's interval, and exact counts."""
        found = {"loss": _over_seeds([exact(run["loss"]) for run in self.runs])}
        for name in self.runs[0]["measures"]:
            found[name] = _over_seeds([_result(run["measures"][name]) for run in self.runs])
        found["seconds"] = _over_seeds([_seconds(run) for run in self.runs])
        counts = {name: exact(self.runs[0][name]) for name in ("core", "nonzeros", "embeddings", "total")}
        return found | counts | {"learning_rate": exact(self.learning_rate)}


@dataclass(frozen=True, eq=False)
class DepthWidthSweep:
    """The table of a sweep under one matching; `missing` names every cell of the grid that is not in `cells`, with the reason."""

    matching: Matching
    cells: Mapping[Place, SweepCell]
    missing: Mapping[Place, str]

    @property
    def results(self) -> dict[str, Result]:
        """`depth_slopes` of the losses."""
        losses: dict[Place, list[float]] = {place: [] for place in self.missing}
        return depth_slopes(losses | {place: [run["loss"] for run in cell.runs] for place, cell in self.cells.items()})

    def to_frame(self) -> pd.DataFrame:
        """One row a cell, missing ones too: its shape, every result's value, and the loss's deviation over seeds."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for place in sorted({*self.cells, *self.missing}):
            row: dict[str, Any] = {"matching": self.matching, "depth": place[0], "density": place[1], "missing": ""}
            if place in self.missing:
                rows.append(row | {"missing": self.missing[place]})
                continue
            cell = self.cells[place]
            losses = [run["loss"] for run in cell.runs]
            deviation = float(np.std(losses, ddof=1)) if len(losses) > 1 else None
            values = {name: result.value for name, result in cell.results.items()}
            facts = {"width": cell.cell.width, "seeds": len(losses), "loss_deviation": deviation, "rate_at_edge": cell.at_edge}
            rows.append(row | facts | values)
        return pd.DataFrame(rows)


def depth_width_sparsity_sweep(
    data: TokenData,
    folder: str | Path,
    *,
    budget_core: int = 786_432,
    depths: Sequence[int] = (1, 4, 16),
    densities: Sequence[float] = (1.0, 1 / 4, 1 / 16),
    seeds: Sequence[int] = (0, 1, 2),
    tokens: int = 5_000_000,
    matching: Matching = "core",
    learning_rates: Sequence[float] = LEARNING_RATES,
    widenings: int = 2,
    measures: Mapping[str, str] | None = None,
    d_head: int = 16,
    workers: int = 1,
    train: bool = True,
    progress: bool = True,
) -> DepthWidthSweep:
    """Train every depth and density on as many tokens, each cell at its best learning rate, and tabulate them.

    The `learning_rates` are tried with the first of the `seeds`; where the best of them is the least or the largest, the next one
    beyond is tried, too, up to `widenings` times; the other seeds are trained at the rate that did best. Models and records are
    kept in `folder`: begun anew the sweep goes on where it was, and `train=False` tabulates what is there. `measures` are addresses
    `package.module:name` of functions from a bridge to a `Result`. A default cell takes 10 to 20 minutes a run by estimate; the
    whole default sweep is about 45 runs. Raises what `make_grid`, `train` and `run_jobs` raise, and `ConfigError` without seeds or
    learning rates.
    """
    if not seeds or not learning_rates:
        raise ConfigError("a sweep needs at least one seed and one learning rate")
    seeds, learning_rates = list(dict.fromkeys(seeds)), list(dict.fromkeys(learning_rates))
    grid, missing = make_grid(budget_core, depths, densities, matching=matching, d_head=d_head)
    cache = Path(folder) / "records"

    def records(wanted: Collection[tuple[Place, float, int]]) -> dict[tuple[Place, float, int], Record | None]:
        jobs = {}
        for place, rate, seed in wanted:
            recipe = cell_recipe(grid[place], tokens=tokens, seed=seed, learning_rate=rate, d_head=d_head)
            jobs[place, rate, seed] = _job(recipe, data, Path(folder), measures or {})
        if train:
            run_jobs(list(jobs.values()), cache, workers=workers, progress=progress)
        return {key: read_record(cache, job) for key, job in jobs.items()}

    rates: dict[Place, tuple[float, ...]] = {place: tuple(learning_rates) for place in grid}
    tried = records([(place, rate, seeds[0]) for place, of in rates.items() for rate in of])
    for _ in range(widenings):
        beyond = {place: next_rate(_by_rate(tried, place)) for place in grid}
        if not (wider := {place: rate for place, rate in beyond.items() if rate is not None}):
            break
        tried |= records([(place, rate, seeds[0]) for place, rate in wider.items()])
        rates |= {place: tuple(dict.fromkeys((*rates[place], rate))) for place, rate in wider.items()}
    best = {place: best_rate(_by_rate(tried, place)) for place in grid}
    runs = records([(place, rate, seed) for place, rate in best.items() if rate is not None for seed in seeds])
    cells = {}
    for place, rate in best.items():
        of = _by_rate(tried, place)
        lacking = [seed for seed in seeds if rate is not None and runs[place, rate, seed] is None]
        done = [run for (at, *_), run in runs.items() if at == place and run is not None]
        if len(of) < len(rates[place]) or lacking:
            n_lacking = len(rates[place]) - len(of) + (len(lacking) if rate is not None else len(seeds) - 1)
            missing[place] = f"{n_lacking} of {len(rates[place]) + len(seeds) - 1} runs are not trained yet"
        elif rate is None:
            missing[place] = f"the training diverges at all learning rates tried ({', '.join(f'{rate:g}' for rate in sorted(of))})"
        elif lost := [str(seed) for seed, run in zip(seeds, done, strict=True) if run["loss"] is None]:
            missing[place] = f"the training of seed {', '.join(lost)} diverges at the learning rate {rate:g}"
        else:
            cells[place] = SweepCell(grid[place], rate, tuple(done), is_at_edge(rate, list(of)))
    return DepthWidthSweep(matching, cells, missing)


def _by_rate(tried: Mapping[tuple[Place, float, int], Record | None], place: Place) -> dict[float, Record]:
    return {rate: run for (at, rate, _), run in tried.items() if at == place and run is not None}


def _job(recipe: Any, data: TokenData, folder: Path, measures: Mapping[str, str]) -> Job:
    arguments = {
        "data": str(data.directory),
        "folder": str(folder / "models"),
        "config": recipe.model_dump(mode="json"),
        "measures": dict(measures),
    }
    address = "sparse_lens.comparisons.depth_width.training_cell:train_cell"
    return Job(recipe.name, address, arguments, depends=[str(data.manifest["config_hash"])])


def best_rate(runs: Mapping[float, Record]) -> float | None:
    """The learning rate with the least loss; None where the training diverges at all of them."""
    finite = {rate: run["loss"] for rate, run in runs.items() if run["loss"] is not None}
    return min(finite, key=lambda rate: finite[rate]) if finite else None


def next_rate(runs: Mapping[float, Record]) -> float | None:
    """The next learning rate to try: as far beyond the best as its neighbour is on the other side, below all that diverge.

    None where the best has a neighbour on either side, or where a single rate says nothing of a distance.
    """
    tried, best = sorted(runs), best_rate(runs)
    if len(tried) < 2 or not (best is None or is_at_edge(best, tried)):
        return None
    edge, inner = (tried[-1], tried[-2]) if best == tried[-1] else (tried[0], tried[1])
    return float(f"{edge * edge / inner:.6g}")


def is_at_edge(rate: float, tried: Sequence[float]) -> bool:
    """Whether nothing smaller was tried, or nothing larger."""
    return rate in (min(tried), max(tried))


def depth_slopes(losses: Mapping[Place, Sequence[float]]) -> dict[str, Result]:
    """What depth does to a number, by density, from its values `[seed]` at every depth and density, none where it has no value.

    `slope_at_<density>`: least-squares slope on the natural logarithm of the depth, each seed its own, mean with Student's 95 %
    interval over seeds; below 0, depth lowers it. `interaction`: the slope at the least density less that at the greatest, over
    the same depths. Not measurable where fewer than two depths have values.
    """
    slopes: dict[float, list[float]] = {}
    depths: dict[float, set[int]] = {}
    found: dict[str, Result] = {}
    densities = sorted({density for _, density in losses}, reverse=True)
    for density in densities:
        rows = {depth: values for (depth, at), values in losses.items() if at == density and values}
        if len(rows) < 2:
            found[f"slope_at_{density:g}"] = not_measurable(f"{len(rows)} depth has values at density {density:g}, two are needed")
            continue
        n_seeds = min(len(values) for values in rows.values())
        x = np.log(list(rows))
        depths[density] = set(rows)
        slopes[density] = [float(np.polyfit(x, [values[seed] for values in rows.values()], 1)[0]) for seed in range(n_seeds)]
        found[f"slope_at_{density:g}"] = difference_over_seeds(slopes[density])
    if len(densities) < 2 or (least := densities[-1]) not in slopes or (most := densities[0]) not in slopes:
        return found | {"interaction": not_measurable("the least and the greatest density need a slope, and to be two")}
    if depths[least] != depths[most]:
        told = " and ".join(", ".join(map(str, sorted(depths[at]))) for at in (least, most))
        return found | {"interaction": not_measurable(f"the least and the greatest density have values at other depths: {told}")}
    return found | {"interaction": difference_over_seeds([s - d for s, d in zip(slopes[least], slopes[most], strict=False)])}


def _over_seeds(results: Sequence[Result]) -> Result:
    values = [result.value for result in results if result.value is not None and math.isfinite(result.value)]
    if not values:
        return not_measurable(results[0].reason or "no seed has a value", seeds=len(results))
    mean = difference_over_seeds(values)
    return Result(mean.value, mean.lo, mean.hi, results[0].null, len(values), len(values))


def _seconds(run: Record) -> Result:
    seconds = run.get("seconds")
    return not_measurable("its time was not kept") if seconds is None else exact(seconds)


def _result(value: Any) -> Result:
    found = from_plain(value)
    return found if isinstance(found, Result) else exact(float(found))
