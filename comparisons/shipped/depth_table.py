"""Depth against width at equal weights: the grid, trained and measured, with the row of the claim DEPTH.

    python -m sparse_lens.comparisons.shipped.depth_table GRID --data DATA --out docs/depth --page docs/pages/claims-details.md

trains every cell into the folder GRID from the token data in DATA (`depth_width_sparsity_sweep`), measures each run as the claims
do, and writes the page's tables anew. Models, and what was measured in `--cells`, are kept: the command goes on where it stopped.
The file it writes holds the row of the claim DEPTH (`sparse-lens claims --kept`). What it holds already stays, so that measures can
be added (`--only`), or cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from sparse_lens.comparisons.depth_width.grid import Matching
from sparse_lens.comparisons.depth_width.sweeping import LEARNING_RATES, depth_slopes, depth_width_sparsity_sweep
from sparse_lens.comparisons.instrument.claim import CLAIMS
from sparse_lens.comparisons.instrument.rows import ClaimRow
from sparse_lens.comparisons.instrument.verdicts import judge
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.depth_page import EQUAL, depth_page
from sparse_lens.comparisons.shipped.kept_file import read_kept_file
from sparse_lens.comparisons.shipped.measured_grid import KEPT, MeasuredGrid, measure_grid
from sparse_lens.comparisons.shipped.measuring_family import ENTANGLEMENT, MEASURES, MIXED, UNTRAINED
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.data import TokenData
from sparse_lens.errors import DataError
from sparse_lens.results import Result, not_measurable, write_json

_GROWING = ("depths", "densities")
"""Axes along which a later run may add cells."""


def depth_row(grid: MeasuredGrid, tokens: int | None = None) -> ClaimRow:
    """The claim DEPTH by the rule of all claims: slopes of entanglement on the logarithm of depth, at the greatest density.

    One slope a training seed, against 0, shuffled weights and mixed neurons. Models are compared at equal weights, as the claim
    says, not at equal loss: its slope stands beside, and how many cells do best at an edge of the learning rates. In the places of
    the sparse and the dense model stand the slopes at the least and the greatest density. All of these are over the cells that
    have entanglement and its controls in every run: slopes over other depths are other numbers.
    """
    claim = next(claim for claim in CLAIMS if claim.id == "DEPTH")
    if ENTANGLEMENT not in grid.measures:
        return ClaimRow(claim, judge([None], [None], loss_gaps=[0.0], larger=claim.larger))
    least, most, measures = grid.densities[0], grid.densities[-1], (ENTANGLEMENT, UNTRAINED, MIXED)
    complete = grid.with_all(measures)
    slopes = {measure: _by_seed(complete, measure, most, grid.n_seeds) for measure in measures}
    nothing = [0.0] * len(slopes[ENTANGLEMENT])
    controls = {"random_weights": slopes[UNTRAINED], "rotated": slopes[MIXED]}
    judgement = judge(slopes[ENTANGLEMENT], nothing, loss_gaps=nothing, larger=claim.larger, controls=controls)
    own = complete.slopes_of(ENTANGLEMENT)
    sides = [own.get(f"slope_at_{density:g}", not_measurable("no two depths have a value")) for density in (least, most)]
    shown = {name: complete.slopes_of(measure) for name, measure in (("random_weights", UNTRAINED), ("rotated", MIXED))}
    at_dense = {name: of[f"slope_at_{most:g}"] for name, of in shown.items() if f"slope_at_{most:g}" in of}
    return ClaimRow(claim, judgement, sides[0], sides[1], at_dense, tuple(_beside(grid, own)), (_scope(grid, tokens),))


def _scope(grid: MeasuredGrid, tokens: int | None) -> str:
    """The models of a grid in words."""
    depths, counts = sorted({depth for depth, _ in grid.cells}), [cell.nonzeros for cell in grid.cells.values()]
    densities = ", ".join(f"{100 * density:g}" for density in grid.densities)
    trained = f", {tokens:,} tokens each" if tokens is not None else ""
    weights = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    return (
        f"{len(grid.cells) * grid.n_seeds} models of {grid.n_seeds} training seed(s) with {', '.join(map(str, depths))} layers and "
        f"{densities} % of their weights, {weights} nonzero ones in blocks{trained}"
    )


def _beside(grid: MeasuredGrid, own: Mapping[str, Result]) -> list[str]:
    """What a reader of the row has to know; `own` are the slopes of entanglement."""
    loss = grid.slopes_of("loss")
    found = ["the difference is the slope of entanglement on the logarithm of depth at the greatest density"]
    found += ["models are compared at equal weights, as the claim says, not at equal loss: the slope of the loss stands beside"]
    found += [f"matched by {grid.matching}: {EQUAL[grid.matching]}"]
    if at_edge := sum(cell.at_edge for cell in grid.cells.values()):
        found += [f"{at_edge} of {len(grid.cells)} cells do best at the least or the largest learning rate tried"]
    if "interaction" in own:
        interaction = own["interaction"]
        found += [f"interaction (slope at the least density less that): {interaction.reason or interaction}"]
    return found + [f"slope of the loss at {100 * density:g} %: {loss[f'slope_at_{density:g}']}" for density in grid.densities]


def _by_seed(grid: MeasuredGrid, measure: str, density: float, n_seeds: int) -> list[float | None]:
    """The slope on the logarithm of depth at one density, seed by seed; None where fewer than two depths are left."""
    runs = {place: cell.runs for place, cell in grid.cells.items() if place[1] == density and cell.runs}
    if len(runs) < 2:
        return [None] * n_seeds
    values = [{place: [of[seed][measure].value or 0.0] for place, of in runs.items()} for seed in range(n_seeds)]
    return [depth_slopes(of_seed)[f"slope_at_{density:g}"].value for of_seed in values]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, keep the numbers, and write the page's tables anew."""
    options = _parser().parse_args(arguments)
    data = TokenData(options.data)
    axes = ("budget_core", "matching", "depths", "densities", "seeds", "tokens")
    shape: dict[str, Any] = {name: getattr(options, name) for name in axes}
    scope = {"smoke": options.smoke} | {name: shape[name] for name in axes if name not in _GROWING}
    kept = read_kept_file(options.out / KEPT[options.matching], ["grid", "shape"], scope)
    sweep = depth_width_sparsity_sweep(data, options.grid, **shape, learning_rates=options.rates, workers=options.workers)
    if not sweep.cells:
        raise DataError(f"no cell of the grid can be trained: {'; '.join(sweep.missing.values())}")
    how = {"cache": options.cells, "workers": options.workers, "measures": options.only, "smoke": options.smoke, "kl": options.kl}
    grid = measure_grid(ModelPair.open(), sweep, options.grid, tasks=options.tasks, **how)
    if kept:
        grid = grid.joined(MeasuredGrid.from_plain(kept["grid"]))
        shape |= {name: sorted({*kept["shape"][name], *shape[name]}) for name in _GROWING}
    content = {"scope": scope, "shape": shape | {"learning_rates": list(options.rates)}}
    content |= {"grid": grid.to_plain(), "claims": [depth_row(grid, options.tokens).to_plain()]}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(content, options.out / KEPT[options.matching])
    if options.page is not None:
        write_tables(options.page, depth_page(grid))


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
    parser.add_argument("--kl", type=float, default=1.0, help="nats of divergence from its model that a circuit's size is read at")
    parser.add_argument("--only", nargs="*", default=MEASURES, choices=MEASURES, metavar="MEASURE", help="of the claims' measures")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--smoke", action="store_true", help="measure the least that runs everything")
    return parser


if __name__ == "__main__":
    main()
