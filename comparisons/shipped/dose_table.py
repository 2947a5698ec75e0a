"""Dose and response on models of one loss: what of the measures moves with the density of weights?

    for model in 2.5-256 5-160 5-224 10-96 10-160 20-64 20-128 100-32 100-64
    do sparse-lens train --recipe dose-$model --corpus python --out doses/dose-$model; done
    python -m sparse_lens.comparisons.shipped.dose_table doses/* --target dose-2.5-256 --out docs/doses --page docs/pages/claims.md

The fewer weights a model has, the wider it is. At each density two widths lie on either side of the target's loss, and what is
measured is interpolated between them (`mechanism.doses`). Cells are kept in `--cells`, and the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints
from sparse_lens.comparisons.curves.circuit_curve import SCHEMA, CircuitCurve
from sparse_lens.comparisons.curves.curve_areas import size_at
from sparse_lens.comparisons.instrument.measuring import ROLES
from sparse_lens.comparisons.instrument.running import FORMAT
from sparse_lens.comparisons.jobs import Job, Record, run_jobs
from sparse_lens.comparisons.mechanism.doses import Dose, DoseResponse, dose_response
from sparse_lens.comparisons.pair import ModelPair, model_facts
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.errors import UnknownNameError
from sparse_lens.files import new_file
from sparse_lens.hooks import load, sparsity_report
from sparse_lens.results import Result, exact, from_plain, not_measurable, to_plain

KEPT = "doses.json"

MEASURED: Mapping[str, tuple[str, str]] = {
    "features per neuron (psi)": ("superposition", "psi"),
    "labels per neuron": ("concepts", "concepts_per_unit"),
    "F1 of concepts beyond the token": ("concepts", "coverage_f1_over_tokens_ambiguous"),
    "held-out R² of a neuron from the others": ("predictability", "heldout_r2_mean"),
    "fracture F": ("fracture", "mirror_fracture"),
    "entanglement": ("fracture", "entanglement"),
    "D_abl": ("compositionality", "d_abl"),
}
"""What is printed of which measure of the claims, by its name in the table."""

BITS = "bits of a circuit at a KL of 0.5"
_TARGETS = (1.0, 0.5, 0.3)
_KL = 0.5


MEASURES = tuple(dict.fromkeys(measure for measure, _ in MEASURED.values()))
"""The measures of the claims that are made."""


def dose_jobs(
    pair: ModelPair,
    folders: Mapping[str, Path],
    tasks: Sequence[str],
    *,
    measures: Sequence[str] = MEASURES,
    smoke: bool = False,
) -> dict[str, list[Job]]:
    """The cells of every model, by its name: the measures of the claims, and a curve for each task.

    A cell of the claims measures two models at once, the pair's `sparse` and its `dense_matched`: models are taken two by two.
    """
    names = list(folders)
    jobs: dict[str, list[Job]] = {name: [] for name in names}
    config = SearchConfig(steps=20, search_pairs=64, evaluation_pairs=32, evaluations=6) if smoke else SearchConfig()
    for first, second in zip(names[::2], [*names[1::2], names[-1]], strict=False):
        both = pair.with_models(sparse=folders[first], dense_matched=folders[second])
        depends = [FORMAT, *(part for role in ROLES.values() for part in fingerprints(both, ColumnSpec(role, role)))]
        for measure in measures:
            arguments = {"pair": both.address, "measure": measure, "smoke": smoke}
            job = Job(
                f"{measure} of {first}, {second}", "sparse_lens.comparisons.instrument.measuring:measured", arguments, depends
            )
            for name in dict.fromkeys((first, second)):
                jobs[name].append(job)
    for name, folder in folders.items():
        spec = ColumnSpec(name, str(folder))
        for task in tasks:
            arguments = {"pair": pair.address, "column": spec.to_plain(), "task": task, "seed": 0, "targets": list(_TARGETS)}
            arguments |= {"edge_targets": [], "functional_targets": [], "config": config.model_dump(mode="json")}
            depends = [*fingerprints(pair, spec), f"curve schema {SCHEMA}"]
            jobs[name].append(Job(f"curve {task} in {name}", "sparse_lens.comparisons.full.cells:curve_cell", arguments, depends))
    return jobs


def measure_family(
    pair: ModelPair,
    folders: Mapping[str, Path],
    *,
    tasks: Sequence[str],
    measures: Sequence[str] = MEASURES,
    smoke: bool = False,
    **how: Any,
) -> dict[str, dict[str, Any]]:
    """By model: density of its blocks' matrices, loss on the pair's held-out windows, and `values` by their name in the table.

    `how` is that of `run_jobs`.
    """
    jobs = dose_jobs(pair, folders, tasks, measures=measures, smoke=smoke)
    flat = list({job.fingerprint: job for of in jobs.values() for job in of}.values())
    records = {job.fingerprint: record for job, record in zip(flat, run_jobs(flat, **how), strict=True)}
    losses = {name: loss_of(pair, folder) for name, folder in folders.items()}
    return {
        name: {
            "density": density_of(folder),
            "loss": losses[name],
            "values": _values(folder, jobs[name], records),
        }
        for name, folder in folders.items()
    }


def density_of(folder: Path) -> float:
    """Nonzeros over entries of the matrices within blocks, to two digits: nominally equal densities are one dose."""
    matrices = [matrix for matrix in sparsity_report(load(folder)).matrices if matrix.name.startswith("blocks.")]
    return float(f"{sum(m.nonzeros for m in matrices) / sum(m.entries for m in matrices):.2g}")


def loss_of(pair: ModelPair, folder: Path) -> Result:
    """Nats per token on the pair's held-out windows."""
    return model_facts(load(folder), pair.windows["heldout"])["loss"]


def _values(folder: Path, jobs: Sequence[Job], records: Mapping[str, Record]) -> dict[str, Result]:
    found: dict[str, Mapping[str, Result]] = {}
    curves = []
    for job in jobs:
        record = records[job.fingerprint]
        if "measure" in job.arguments:
            replaced = json.loads(job.arguments["pair"])["replaced"]
            side = "sparse" if replaced["sparse"] == str(folder.absolute()) else "dense"
            found[job.arguments["measure"]] = from_plain(record)[side]
        else:
            curves.append(CircuitCurve.from_plain(record))
    values = {told: found[measure][metric] for told, (measure, metric) in MEASURED.items() if measure in found}
    return values | {BITS: _pooled([size_at(curve, _KL) for curve in curves])}


def _pooled(sizes: Sequence[Result]) -> Result:
    """Geometric mean over tasks; not measurable where one is not, for another set of tasks is another measure."""
    if failed := next((size for size in sizes if size.value is None), None):
        return failed
    if not sizes:
        return not_measurable("no task was searched")
    product = 1.0
    for size in sizes:
        product *= (size.value or 0.0) ** (1 / len(sizes))
    return exact(product, n=len(sizes))


def responses(models: Mapping[str, Mapping[str, Any]], target: str) -> dict[str, DoseResponse]:
    """Dose and response of every measure among the models at the target's loss."""
    if target not in models:
        raise UnknownNameError("model", target, models)
    told = list(next(iter(models.values()))["values"])
    return {
        measure: dose_response(
            {name: Dose(model["density"], model["loss"], model["values"][measure]) for name, model in models.items()}, target=target
        )
        for measure in told
    }


def dose_page(models: Mapping[str, Mapping[str, Any]], target: str) -> dict[str, str]:
    """Markdown by marker: the models, and each measure at every density with its order."""
    rows = ["| model | density | loss |", "|---|---:|---:|"]
    for name, model in sorted(models.items(), key=lambda item: (item[1]["density"], -(item[1]["loss"].value or 0))):
        rows.append(f"| `{name}` | {100 * model['density']:g} % | {model['loss'].value:.3f} |")
    densities = sorted({model["density"] for model in models.values()})
    head = [
        "measure",
        *(f"{100 * density:g} %" for density in densities),
        "rank correlation",
        "p",
        "slope for ten times the density",
    ]
    table = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for told, found in responses(models, target).items():
        at = dict(found.points)
        cells = [f"{at[density].value:.3g}" if density in at else "—" for density in densities]
        numbers = [_number(found.results[name]) for name in ("spearman", "permutation_p", "slope_per_decade")]
        table.append("| " + " | ".join([told, *cells, *numbers]) + " |")
    return {"dose models": "\n".join(rows), "doses": "\n".join(table)}


def _number(result: Result) -> str:
    if result.value is None:
        return f"not measurable: {result.reason}"
    interval = "" if result.lo is None or result.hi is None else f" [{result.lo:.2g}, {result.hi:.2g}]"
    return f"{result.value:.2g}{interval}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has not been measured, keep the numbers, and write the page's tables anew."""
    parser = argparse.ArgumentParser(description="Measures against the density of weights, at one loss.")
    parser.add_argument("folders", type=Path, nargs="+", help="model folders, several widths at each density")
    parser.add_argument("--target", required=True, help="name of the folder whose loss all are compared at")
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {KEPT}")
    parser.add_argument("--page", type=Path, default=None, help="page whose tables, between their markers, are written anew")
    parser.add_argument("--cells", type=Path, default=Path("doses.cells"), help="folder of the cells (default: %(default)s)")
    parser.add_argument("--tasks", nargs="*", default=["single_double_quote", "if_equals", "with_as"], help="tasks of the curves")
    parser.add_argument(
        "--only", nargs="*", default=MEASURES, choices=MEASURES, metavar="MEASURE", help=f"of {', '.join(MEASURES)}"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="the least that runs everything")
    options = parser.parse_args(arguments)
    folders = {folder.name: folder.absolute() for folder in options.folders}
    if options.target not in folders:
        raise UnknownNameError("model", options.target, folders)
    how = {"cache": options.cells, "workers": options.workers}
    models = measure_family(ModelPair.open(), folders, tasks=options.tasks, measures=options.only, smoke=options.smoke, **how)
    options.out.mkdir(parents=True, exist_ok=True)
    with new_file(options.out / KEPT) as path:
        path.write_text(json.dumps(to_plain({"target": options.target, "models": models}), indent=1) + "\n", encoding="utf-8")
    if options.page is not None:
        write_tables(options.page, dose_page(models, options.target))


if __name__ == "__main__":
    main()
