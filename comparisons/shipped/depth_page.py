"""The tables of the grid of depth, width and density: its cells, every measure in each, and what depth does to it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.depth_width.grid import Matching
from sparse_lens.comparisons.shipped.measured_grid import MeasuredCell, MeasuredGrid
from sparse_lens.results import Result, not_measurable

_ENDING: Mapping[Matching, str] = {"core": "", "nonzeros": " at equal nonzeros"}
EQUAL: Mapping[Matching, str] = {
    "core": "all models have as many entries in the matrices of their blocks, so that sparser ones have fewer nonzeros",
    "nonzeros": "all models have as many nonzeros in the matrices of their blocks, so that sparser ones are larger",
}
"""What each matching holds equal."""


def depth_page(grid: MeasuredGrid) -> dict[str, str]:
    """Markdown by marker; the markers of the second matching end in `at equal nonzeros`."""
    found = {"depth grid": _grid_table(grid), "depth measures": _measure_table(grid), "depth": _slope_table(grid)}
    found["density by depth"] = _density_table(grid)
    return {f"{marker}{_ENDING[grid.matching]}": table for marker, table in found.items()}


def _grid_table(grid: MeasuredGrid) -> str:
    head = ["layers", "width", "density", "nonzeros", "embeddings", "parameters in all", "learning rate"]
    head += ["loss (deviation over seeds)", "minutes a run"]
    rows = [_grid_row(cell) for _, cell in sorted(grid.cells.items())]
    told = f"Matched by {grid.matching}: {EQUAL[grid.matching]}."
    if any(cell.at_edge for cell in grid.cells.values()):
        told += " At an “edge” the best learning rate is the least or the largest of those tried, and a better one may lie beyond."
    missing = [f"{depth} layers at {100 * density:g} %: {why}" for (depth, density), why in sorted(grid.missing.items())]
    if missing:
        told += f"\n\nMissing: {'; '.join(missing)}"
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---:|" * len(head), *rows]) + f"\n\n{told}"


def _grid_row(cell: MeasuredCell) -> str:
    losses = [run["loss"].value or 0.0 for run in cell.runs]
    spread = f" ({statistics.stdev(losses):.3f})" if len(losses) > 1 else ""
    edge = " (edge)" if cell.at_edge else ""
    minutes = "—" if cell.seconds is None else f"{cell.seconds / 60:.1f}"
    return (
        f"| {cell.depth} | {cell.width} | {100 * cell.density:g} % | {cell.nonzeros:,} | {cell.embeddings:,} | {cell.parameters:,} "
        f"| {cell.learning_rate:g}{edge} | {statistics.fmean(losses):.3f}{spread} | {minutes} |"
    )


def _measure_table(grid: MeasuredGrid) -> str:
    places = sorted(grid.cells, key=lambda place: (-place[1], place[0]))
    names = [f"{depth} layer{'s' if depth > 1 else ''}, {100 * density:g} %" for depth, density in places]
    rows = ["| measure | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for measure in grid.measures:
        means = [_mean([run[measure] for run in grid.cells[place].runs]) for place in places]
        rows.append("| " + " | ".join([measure, *("—" if mean.value is None else f"{mean.value:.3g}" for mean in means)]) + " |")
    if grid.fracture_tasks:
        rows += ["", f"Fracture and entanglement are those on the tasks that all models do: {', '.join(grid.fracture_tasks)}."]
    return "\n".join(rows)


def _slope_table(grid: MeasuredGrid) -> str:
    densities = grid.densities[::-1]
    head = ["slope of", *(f"at {100 * density:g} %" for density in densities), "sparsest less dense"]
    rows = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    found = {measure: grid.slopes_of(measure) for measure in grid.measures}
    found |= {told: grid.slopes_beyond(measure, control) for told, (measure, control) in _beyond(grid).items()}
    for told, slopes in found.items():
        cells = [str(slopes.get(f"slope_at_{density:g}", "—")) for density in densities]
        rows.append("| " + " | ".join([told, *cells, str(slopes.get("interaction", "—"))]) + " |")
    return "\n".join(rows)


def _density_table(grid: MeasuredGrid) -> str:
    depths = sorted({depth for depth, _ in grid.cells})
    names = [f"{depth} layer{'s' if depth > 1 else ''}" for depth in depths]
    rows = ["| sparsest less dense | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    found = {measure: grid.density_differences(measure) for measure in grid.measures}
    found |= {told: grid.density_differences(*both) for told, both in _beyond(grid).items()}
    for told, differences in found.items():
        cells = [str(differences[depth]) if differences[depth].measurable else "—" for depth in depths]
        rows.append("| " + " | ".join([told, *cells]) + " |")
    return "\n".join(rows)


def _beyond(grid: MeasuredGrid) -> dict[str, tuple[str, str]]:
    """Every measure with each of its controls, by what is told of the two."""
    found: dict[str, tuple[str, str]] = {}
    for control in grid.measures:
        measure, _, how = control.rpartition(", ")
        if measure in grid.measures:
            found[f"{measure}, beyond {how}"] = (measure, control)
    return found


def _mean(results: Sequence[Result]) -> Result:
    values = [result.value for result in results if result.value is not None]
    return over_seeds(values, n=len(values)) if len(values) == len(results) else not_measurable("not in every run")
