"""What is measured of many trained models at once: the measures of the claims, two models by two, and a curve for each task.

Cells are kept by fingerprint (`run_jobs`), so that a family can grow and nothing is measured twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints
from sparse_lens.comparisons.curves.circuit_curve import SCHEMA, CircuitCurve
from sparse_lens.comparisons.curves.curve_areas import size_at
from sparse_lens.comparisons.instrument.measuring_jobs import measuring_job
from sparse_lens.comparisons.instrument.pair_superposition import RISE, SAME_TOKEN
from sparse_lens.comparisons.instrument.sizes import MOST_LAYERS, layers_read
from sparse_lens.comparisons.jobs import Job, Record, run_jobs
from sparse_lens.comparisons.pair import ModelPair, model_facts
from sparse_lens.comparisons.shipped.family_fracture import family_fracture
from sparse_lens.hooks import load, sparsity_report
from sparse_lens.models_shipped import address_of
from sparse_lens.results import Result, exact, from_plain
from sparse_lens.tasks import available_tasks

PSI = "features per neuron (psi)"
ENTANGLEMENT = "entanglement"
_SHUFFLED, _MIXED, _MASKED = "weights shuffled", "neurons mixed", "masks at random"
_PREFIXES = {_SHUFFLED: "random_weights", _MIXED: "rotated", _MASKED: "random_mask"}
CONTROLS: Mapping[str, tuple[str, ...]] = {
    PSI: (_SHUFFLED,),
    "features per neuron, token held fixed": (_SHUFFLED,),
    "log of features on renamed text over those as it is": (_SHUFFLED,),
    "features": (),
    "labels per neuron": (_SHUFFLED, _MIXED),
    "F1 of concepts beyond the token": (_SHUFFLED, _MIXED),
    "held-out R² of a neuron from the others": (_SHUFFLED, _MIXED),
    "fracture F": (_SHUFFLED, _MIXED),
    "fracture F, names renamed": (_SHUFFLED, _MIXED),
    ENTANGLEMENT: (_SHUFFLED, _MIXED),
    "D_abl": (_SHUFFLED, _MASKED),
}
"""The measures by their names in the table, each with its controls: the same number of them is `control_of`."""

_METRICS = {
    PSI: ("superposition", "psi"),
    "features per neuron, token held fixed": ("superposition", SAME_TOKEN),
    "log of features on renamed text over those as it is": ("superposition", RISE),
    "features": ("superposition", "effective_features"),
    "labels per neuron": ("concepts", "concepts_per_unit"),
    "F1 of concepts beyond the token": ("concepts", "coverage_f1_over_tokens_ambiguous"),
    "held-out R² of a neuron from the others": ("predictability", "heldout_r2_mean"),
    "fracture F": ("fracture", "mirror_fracture"),
    "fracture F, names renamed": ("fracture", "renamed_fracture"),
    ENTANGLEMENT: ("fracture", "entanglement"),
    "D_abl": ("compositionality", "d_abl"),
}


def control_of(measure: str, control: str) -> str:
    """The name of a measure's number in a control."""
    return f"{measure}, {control}"


MEASURED: Mapping[str, tuple[str, str]] = _METRICS | {
    control_of(told, control): (_METRICS[told][0], f"{_PREFIXES[control]}_{_METRICS[told][1]}")
    for told, controls in CONTROLS.items()
    for control in controls
}
"""What is printed of which measure of the claims, by its name in the table."""

SHUFFLED, UNTRAINED, MIXED = control_of(PSI, _SHUFFLED), control_of(ENTANGLEMENT, _SHUFFLED), control_of(ENTANGLEMENT, _MIXED)

_LAYER_BY_LAYER = ("superposition", "concepts", "predictability")
"""Of deep models these are read in some layers, as fracture is: each layer has dictionaries, probes or regressions of its own."""

_FRACTURE = "fracture"
_CURVE = "sparse_lens.comparisons.full.cells:curve_cell"
_TARGETS = (1.0, 0.5, 0.3)
KL = 0.5
"""Nats of divergence that circuits of models of one loss are compared at."""


def bits_at(kl: float) -> str:
    """The name of a circuit's size at a divergence from its model, in nats."""
    return f"bits of a circuit at a KL of {kl:g}"


BITS = bits_at(KL)


MEASURES = tuple(dict.fromkeys(measure for measure, _ in MEASURED.values()))
"""The measures of the claims that are made."""


def family_jobs(
    pair: ModelPair,
    folders: Mapping[str, Path],
    tasks: Sequence[str],
    *,
    measures: Sequence[str] = MEASURES,
    smoke: bool = False,
) -> dict[str, list[Job]]:
    """The cells of every model, by its name: the measures of the claims but fracture, and a curve for each task.

    A cell of the claims measures two models at once, the pair's `sparse` and its `dense_matched`: models are taken two by two, of
    as many layers each. Predictability is read from as many neurons in both: there every model stands beside the narrowest.
    """
    jobs: dict[str, list[Job]] = {name: [] for name in folders}
    config = SearchConfig(steps=20, search_pairs=64, evaluation_pairs=32, evaluations=6) if smoke else SearchConfig()
    for measure in measures:
        if measure == _FRACTURE:
            continue
        for first, second in _beside_the_narrowest(folders) if measure == "predictability" else _two_by_two(folders):
            both = pair.with_models(sparse=folders[first], dense_matched=folders[second])
            depth = min(_shape(folders[name])[0] for name in (first, second))
            layers = layers_read(depth) if measure in _LAYER_BY_LAYER and depth > MOST_LAYERS else None
            job = measuring_job(both, measure, f"{measure} of {first}, {second}", smoke=smoke, layers=layers)
            for name in {first} if measure == "predictability" else {first, second}:
                jobs[name].append(job)
    for name, folder in folders.items():
        spec = ColumnSpec(name, address_of(folder))
        for task in tasks:
            arguments = {"pair": pair.address, "column": spec.to_plain(), "task": task, "seed": 0, "targets": list(_TARGETS)}
            arguments |= {"edge_targets": [], "functional_targets": [], "config": config.model_dump(mode="json")}
            depends = [*fingerprints(pair, spec), f"curve schema {SCHEMA}"]
            jobs[name].append(Job(f"curve {task} in {name}", _CURVE, arguments, depends))
    return jobs


def _two_by_two(folders: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Models of as many layers in twos, in their order; the last of an odd number beside itself."""
    by_layers: dict[int, list[str]] = {}
    for name, folder in folders.items():
        by_layers.setdefault(_shape(folder)[0], []).append(name)
    return [both for names in by_layers.values() for both in zip(names[::2], [*names[1::2], names[-1]], strict=False)]


def _beside_the_narrowest(folders: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Every model with the narrowest, and of those as narrow the deepest: of a pair no more layers are read than both have."""
    narrowest = min(folders, key=lambda name: (_shape(folders[name])[1], -_shape(folders[name])[0]))
    return [(name, narrowest) for name in folders]


def _shape(folder: Path) -> tuple[int, int]:
    """Layers and width of a model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["n_layer"]), int(config["d_model"])


def measure_family(
    pair: ModelPair,
    folders: Mapping[str, Path],
    *,
    tasks: Sequence[str],
    measures: Sequence[str] = MEASURES,
    smoke: bool = False,
    kl: float = KL,
    **how: Any,
) -> dict[str, dict[str, Any]]:
    """By model: its recipe, its training seed, the density of its blocks' matrices, its loss, and `values` by their name here.

    The loss is in nats per token on the pair's held-out windows; `fracture_tasks` are those that all models do, on which fracture
    and entanglement are measured. Circuits are read off their curves at `kl`. `how` is that of `run_jobs`.
    """
    jobs = family_jobs(pair, folders, tasks, measures=measures, smoke=smoke)
    flat = list({job.fingerprint: job for of in jobs.values() for job in of}.values())
    records = {job.fingerprint: record for job, record in zip(flat, run_jobs(flat, **how), strict=True)}
    losses = {name: loss_of(pair, folder) for name, folder in folders.items()}
    done, fracture = [], {}
    if _FRACTURE in measures:
        done, fracture = family_fracture(folders, available_tasks(), smoke=smoke, **how)
    return {
        name: {
            **recipe_of(folder),
            "density": density_of(folder),
            "loss": losses[name],
            "fracture_tasks": done,
            "values": _values(folder, jobs[name], records, fracture.get(name), kl),
        }
        for name, folder in folders.items()
    }


def recipe_of(folder: Path) -> dict[str, Any]:
    """The name of a trained model's recipe, and its training seed."""
    config = json.loads((folder / "training.json").read_text(encoding="utf-8"))["config"]
    return {"recipe": config["name"].removesuffix(f"-seed{config['seed']}"), "seed": config["seed"]}


def density_of(folder: Path) -> float:
    """Nonzeros over entries of the matrices within blocks, to two digits: nominally equal densities are one dose."""
    matrices = [matrix for matrix in sparsity_report(load(folder)).matrices if matrix.name.startswith("blocks.")]
    return float(f"{sum(m.nonzeros for m in matrices) / sum(m.entries for m in matrices):.2g}")


def loss_of(pair: ModelPair, folder: Path) -> Result:
    """Nats per token on the pair's held-out windows."""
    return model_facts(load(folder), pair.windows["heldout"])["loss"]


def _values(
    folder: Path, jobs: Sequence[Job], records: Mapping[str, Record], fracture: Mapping[str, Result] | None, kl: float
) -> dict[str, Result]:
    found: dict[str, Mapping[str, Result]] = {} if fracture is None else {_FRACTURE: fracture}
    curves = []
    for job in jobs:
        record = records[job.fingerprint]
        if "measure" in job.arguments:
            replaced = json.loads(job.arguments["pair"])["replaced"]
            side = "sparse" if replaced["sparse"] == address_of(folder) else "dense"
            found[job.arguments["measure"]] = from_plain(record)[side]
        else:
            curves.append(CircuitCurve.from_plain(record))
    values = {told: found[measure][metric] for told, (measure, metric) in MEASURED.items() if measure in found}
    return values | ({bits_at(kl): _pooled([size_at(curve, kl) for curve in curves])} if curves else {})


def _pooled(sizes: Sequence[Result]) -> Result:
    """Geometric mean over tasks; not measurable where one is not, for another set of tasks is another measure."""
    if failed := next((size for size in sizes if size.value is None), None):
        return failed
    product = 1.0
    for size in sizes:
        product *= (size.value or 0.0) ** (1 / len(sizes))
    return exact(product, n=len(sizes))
