"""Depth against width at equal weights: the grid, trained and measured, with the row of the claim DEPTH.

    python -m sparse_lens.comparisons.shipped.depth_table GRID --data DATA --out docs/depth --page docs/pages/claims-details.md

trains every cell into the folder GRID from the token data in DATA (`depth_width_sparsity_sweep`), measures each run as the claims
do, and writes the page's tables anew. Models, and what was measured in `--cells`, are kept: the command goes on where it stopped.
The file it writes holds the row of the claim DEPTH (`sparse-lens claims --kept`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.depth_width.grid import Matching, Place
from sparse_lens.comparisons.depth_width.sweeping import (
    LEARNING_RATES,
    DepthWidthSweep,
    depth_slopes,
    depth_width_sparsity_sweep,
)
from sparse_lens.comparisons.instrument.claim import CLAIMS
from sparse_lens.comparisons.instrument.rows import ClaimRow
from sparse_lens.comparisons.instrument.verdicts import judge
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.measuring_family import ENTANGLEMENT, MEASURES, MIXED, UNTRAINED, measure_family
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.data import TokenData
from sparse_lens.errors import DataError
from sparse_lens.files import new_file
from sparse_lens.results import Result, from_plain, not_measurable, to_plain

KEPT: Mapping[Matching, str] = {"core": "depth.json", "nonzeros": "depth-nonzeros.json"}
"""The file of each matching, which are never mixed; the markers of the second's tables end in `at equal nonzeros`."""

_ENDING: Mapping[Matching, str] = {"core": "", "nonzeros": " at equal nonzeros"}
_EQUAL: Mapping[Matching, str] = {
    "core": "all models have as many entries in the matrices of their blocks, so that sparser ones have fewer nonzeros",
    "nonzeros": "all models have as many nonzeros in the matrices of their blocks, so that sparser ones are larger",
}

Measured = Mapping[Place, Sequence[Mapping[str, Result]]]
"""By depth and density the measures of the runs, one a training seed, by their name in the table."""


def measured_grid(pair: ModelPair, sweep: DepthWidthSweep, grid: Path, *, tasks: Sequence[str], **how: Any) -> Measured:
    """Measure the runs of a sweep that trained into the folder `grid`; `how` is that of `measure_family`."""
    names = {place: [run["name"] for run in cell.runs] for place, cell in sweep.cells.items()}
    folders = {name: (grid / "models" / name).absolute() for of in names.values() for name in of}
    models = measure_family(pair, folders, tasks=tasks, **how)
    return {place: [{"loss": models[name]["loss"]} | models[name]["values"] for name in of] for place, of in names.items()}


def slopes_of(measured: Measured, measure: str) -> dict[str, Result]:
    """`depth_slopes` of a measure, over the places where it is measurable in all runs."""
    values = {
        place: [run[measure].value for run in runs]
        for place, runs in measured.items()
        if all(run[measure].measurable for run in runs)
    }
    return depth_slopes({place: [value for value in of if value is not None] for place, of in values.items()})


def depth_page(sweep: DepthWidthSweep, measured: Measured) -> dict[str, str]:
    """Markdown by marker: the grid with its losses, every measure in each cell, and what depth does to it."""
    found = {
        "depth grid": _grid_table(sweep, measured),
        "depth measures": _measure_table(measured),
        "depth": _slope_table(measured),
    }
    return {f"{marker}{_ENDING[sweep.matching]}": table for marker, table in found.items()}


def _grid_table(sweep: DepthWidthSweep, measured: Measured) -> str:
    head = ["layers", "width", "density", "nonzeros", "embeddings", "learning rate", "loss (deviation over seeds)", "minutes a run"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for (depth, density), cell in sorted(sweep.cells.items()):
        runs, found = cell.runs, cell.results
        losses = [run["loss"].value or 0.0 for run in measured[depth, density]]
        mean = sum(losses) / len(losses)
        spread = (sum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1)) ** 0.5
        edge = " (edge)" if cell.at_edge else ""
        rows.append(
            f"| {depth} | {cell.cell.width} | {100 * density:g} % | {runs[0]['nonzeros']:,} | {runs[0]['embeddings']:,} "
            f"| {found['learning_rate'].value:g}{edge} | {mean:.3f} ({spread:.3f}) | {_minutes(found['seconds'])} |"
        )
    missing = [f"{depth} layers at {100 * density:g} %: {why}" for (depth, density), why in sorted(sweep.missing.items())]
    told = f"Matched by {sweep.matching}: {_EQUAL[sweep.matching]}."
    if any(cell.at_edge for cell in sweep.cells.values()):
        told += " At an “edge” the best learning rate is the least or the largest of those tried, and a better one may lie beyond."
    return "\n".join(rows) + f"\n\n{told}" + ("\n\nMissing: " + "; ".join(missing) if missing else "")


def _minutes(seconds: Result) -> str:
    return "—" if seconds.value is None else f"{seconds.value / 60:.1f}"


def _measure_table(measured: Measured) -> str:
    places = sorted(measured, key=lambda place: (-place[1], place[0]))
    names = [f"{depth} layer{'s' if depth > 1 else ''}, {100 * density:g} %" for depth, density in places]
    rows = ["| measure | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for measure in _measures(measured):
        means = [_mean([run[measure] for run in measured[place]]) for place in places]
        rows.append("| " + " | ".join([measure, *("—" if mean.value is None else f"{mean.value:.3g}" for mean in means)]) + " |")
    return "\n".join(rows)


def _slope_table(measured: Measured) -> str:
    densities = sorted({density for _, density in measured}, reverse=True)
    head = ["slope of", *(f"at {100 * density:g} %" for density in densities), "sparsest less dense"]
    rows = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for measure in _measures(measured):
        slopes = slopes_of(measured, measure)
        cells = [str(slopes.get(f"slope_at_{density:g}", "—")) for density in densities]
        rows.append("| " + " | ".join([measure, *cells, str(slopes.get("interaction", "—"))]) + " |")
    return "\n".join(rows)


def _measures(measured: Measured) -> list[str]:
    return list(next(iter(measured.values()))[0])


def _mean(results: Sequence[Result]) -> Result:
    values = [result.value for result in results if result.value is not None]
    return over_seeds(values, n=len(values)) if len(values) == len(results) else not_measurable("not in every run")


def depth_row(measured: Measured, matching: Matching, *, at_edge: Sequence[Place] = ()) -> ClaimRow:
    """The claim DEPTH by the rule of all claims: slopes of entanglement on the logarithm of depth, at the greatest density.

    One slope a training seed, against 0, shuffled weights and mixed neurons. Models are compared at equal weights, as the claim
    says, not at equal loss: its slope stands beside, and how many cells are `at_edge` of the learning rates. In the places of the
    sparse and the dense model stand the slopes at the least and the greatest density.
    """
    claim = next(claim for claim in CLAIMS if claim.id == "DEPTH")
    densities = sorted({density for _, density in measured})
    if ENTANGLEMENT not in _measures(measured):
        return ClaimRow(claim, judge([None], [None], loss_gaps=[0.0], larger="dense"))
    slopes = {measure: _by_seed(measured, measure, densities[-1]) for measure in (ENTANGLEMENT, UNTRAINED, MIXED)}
    nothing = [0.0] * len(slopes[ENTANGLEMENT])
    controls = {"random_weights": slopes[UNTRAINED], "rotated": slopes[MIXED]}
    judgement = judge(slopes[ENTANGLEMENT], nothing, loss_gaps=nothing, larger="dense", controls=controls)
    own, loss = slopes_of(measured, ENTANGLEMENT), slopes_of(measured, "loss")
    found = ["the difference is the slope of entanglement on the logarithm of depth at the greatest density"]
    found += ["models are compared at equal weights, as the claim says, not at equal loss: the slope of the loss stands beside"]
    found += [f"matched by {matching}: {_EQUAL[matching]}"]
    found += [f"{len(at_edge)} of {len(measured)} cells do best at the least or the largest learning rate tried"] if at_edge else []
    found += [f"interaction (slope at the least density less that): {own['interaction']}"] if "interaction" in own else []
    found += [f"slope of the loss at {100 * density:g} %: {loss[f'slope_at_{density:g}']}" for density in densities]
    sides = [
        own.get(f"slope_at_{density:g}", not_measurable("no two depths have a value")) for density in (densities[0], densities[-1])
    ]
    shown = {name: slopes_of(measured, measure) for name, measure in (("random_weights", UNTRAINED), ("rotated", MIXED))}
    at_dense = {name: of[f"slope_at_{densities[-1]:g}"] for name, of in shown.items() if f"slope_at_{densities[-1]:g}" in of}
    return ClaimRow(claim, judgement, sides[0], sides[1], at_dense, tuple(found))


def _by_seed(measured: Measured, measure: str, density: float) -> list[float | None]:
    """The slope on the logarithm of depth at one density, seed by seed; None where fewer than two depths have a value."""
    runs = {place: of for place, of in measured.items() if place[1] == density}
    found: list[float | None] = []
    for seed in range(min(len(of) for of in runs.values())):
        values = {place: of[seed][measure].value for place, of in runs.items()}
        there = {place: [value] for place, value in values.items() if value is not None}
        found.append(depth_slopes(there).get(f"slope_at_{density:g}", not_measurable("no depth has a value")).value)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, keep the numbers, and write the page's tables anew."""
    options = _parser().parse_args(arguments)
    data = TokenData(options.data)
    axes = ("budget_core", "matching", "depths", "densities", "seeds", "tokens")
    shape: dict[str, Any] = {name: getattr(options, name) for name in axes}
    sweep = depth_width_sparsity_sweep(data, options.grid, **shape, learning_rates=options.rates, workers=options.workers)
    if not sweep.cells:
        raise DataError(f"no cell of the grid can be trained: {'; '.join(sweep.missing.values())}")
    how = {"cache": options.cells, "workers": options.workers, "measures": options.only, "smoke": options.smoke}
    measured = measured_grid(ModelPair.open(), sweep, options.grid, tasks=options.tasks, **how)
    row = depth_row(measured, options.matching, at_edge=[place for place, cell in sweep.cells.items() if cell.at_edge])
    cells = [
        {"depth": place[0], "density": place[1], "learning_rate": sweep.cells[place].learning_rate, "runs": runs}
        for place, runs in measured.items()
    ]
    content: dict[str, Any] = {"shape": shape | {"learning_rates": list(options.rates)}, "scope": {"smoke": options.smoke}}
    content |= {"cells": cells, "claims": [row.to_plain()]}
    options.out.mkdir(parents=True, exist_ok=True)
    with new_file(options.out / KEPT[options.matching]) as path:
        path.write_text(json.dumps(to_plain(content), indent=1) + "\n", encoding="utf-8")
    if options.page is not None:
        write_tables(options.page, depth_page(sweep, measured))


def read_measured(folder: Path, matching: Matching = "core") -> Measured:
    """What `main` has kept in a folder for a matching."""
    content = json.loads((folder / KEPT[matching]).read_text(encoding="utf-8"))
    return {(cell["depth"], cell["density"]): [from_plain(run) for run in cell["runs"]] for cell in content["cells"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train models of equal weights, deep and wide, sparse and dense, and measure them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("grid", type=Path, help="folder of the models and the records of their training")
    parser.add_argument(
        "--data", type=Path, required=True, help="corpus folder of `sparse-lens train`, in the shipped pair's tokens"
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {' or '.join(KEPT.values())}")
    parser.add_argument("--page", type=Path, default=None, help="page whose tables, between their markers, are written anew")
    parser.add_argument("--cells", type=Path, default=Path("depth.cells"), help="folder of what was measured")
    parser.add_argument("--budget-core", type=int, default=786_432, help="entries of each model's matrices in blocks, or nonzeros")
    parser.add_argument(
        "--matching", choices=get_args(Matching), default="core", help="what every model has as much of: entries, or nonzeros"
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 4, 16], help="layers")
    parser.add_argument("--densities", type=float, nargs="+", default=[1.0, 1 / 4, 1 / 16], help="shares of nonzero weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="tokens that each model reads")
    parser.add_argument("--rates", type=float, nargs="+", default=LEARNING_RATES, help="learning rates tried first, then beyond")
    parser.add_argument("--tasks", nargs="*", default=["if_equals", "with_as"], help="tasks of the circuit curves")
    parser.add_argument("--only", nargs="*", default=MEASURES, choices=MEASURES, metavar="MEASURE", help="of the claims' measures")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--smoke", action="store_true", help="measure the least that runs everything")
    return parser


if __name__ == "__main__":
    main()
