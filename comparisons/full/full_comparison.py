"""`compare_fully`: every column and control, every row, and the curve of bits against divergence, from cells that are kept.

    sparse-lens compare --full --out report

runs it on the shipped pair. Cells are independent (`jobs`): killed and started again it goes on, over processes or over Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints, model_folder
from sparse_lens.comparisons.comparison import Comparison, compare
from sparse_lens.comparisons.curves.circuit_curve import SCHEMA, TARGETS, edge_starts
from sparse_lens.comparisons.full.cells import ROW_TOKENS, ROWS
from sparse_lens.comparisons.full.coupled import coupling_jobs, couplings_part, steering_jobs
from sparse_lens.comparisons.full.full_verdict import CAVEATS, undistinguished
from sparse_lens.comparisons.full.headline import headline
from sparse_lens.comparisons.jobs import Job, Record, run_jobs
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.dictionaries.sae_training import require_sae_lens
from sparse_lens.errors import ConfigError
from sparse_lens.hooks import load
from sparse_lens.results import from_plain
from sparse_lens.tasks import available_tasks, get_task

BASE = "sparse_neurons"
_CELLS = "sparse_lens.comparisons.full.cells"


@dataclass(frozen=True)
class FullPlan:
    """What the full comparison does; the defaults are those of `sparse-lens compare --full`.

    `seeds` are search seeds of the main columns: the neurons of the three models, and the first of the `kinds` of dictionaries, of
    which `dictionary_seeds` are trained. All others get the first seed alone, and so does each further one of the pair's
    `training_seeds`, which have the two neuron columns of matched loss. Edges are searched at the `edge_targets` with the first
    seed, in the main columns: the views that single edges of latents need cost more than all else. Dictionaries have `d_sae`
    latents, `k` active ones, and read `tokens`; the coupling of the dense twin and the sparse model reads `coupling_tokens`, a row
    `row_tokens`; circuits are measured on `curve_windows` of real files and `curve_pairs` of prompts of each kind. `arms` are
    further models by name, as folders, beside those that the pair brings.
    """

    tasks: Sequence[str] = ()
    seeds: int = 3
    training_seeds: int = 3
    targets: Sequence[float] = TARGETS
    edge_targets: Sequence[float] = (0.5,)
    functional_targets: Sequence[float] = ()
    config: SearchConfig = field(default_factory=SearchConfig)
    d_sae: int = 1024
    k: int = 16
    tokens: int = 400_000
    dictionary_seeds: int = 3
    coupling_tokens: int = 200_000
    row_tokens: int = ROW_TOKENS
    curve_windows: int = 32
    curve_pairs: int = 128
    kinds: Sequence[str] = ("topk", "batchtopk", "matryoshka", "jumprelu", "frozen", "transcoder", "skip_transcoder")
    arms: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {"seeds": self.seeds, "training_seeds": self.training_seeds, "dictionary_seeds": self.dictionary_seeds}
        if min(counts.values()) < 1:
            raise ConfigError(f"each kind of seed is needed once at least, got {counts}")


def quick_plan(tasks: Sequence[str] = (), arms: Mapping[str, str] | None = None) -> FullPlan:
    """Everything at its smallest: to see that it runs, not to learn from it."""
    config = SearchConfig(steps=20, search_pairs=64, evaluation_pairs=32, evaluations=6)
    return FullPlan(
        tasks=tasks or ("if_equals",),
        seeds=1,
        training_seeds=1,
        targets=(2.0, 0.5),
        config=config,
        **{"d_sae": 64, "k": 4, "tokens": 6000, "dictionary_seeds": 1, "kinds": ("topk", "frozen", "skip_transcoder")},
        coupling_tokens=8192,
        row_tokens=6_400,
        curve_windows=8,
        curve_pairs=32,
        arms=arms or {},
    )


def compare_fully(
    pair: ModelPair | str = "python",
    plan: FullPlan | None = None,
    *,
    cache: str | Path,
    workers: int = 2,
    ray_address: str | None = None,
    command: str = "sparse_lens.compare_fully(...)",
    progress: bool = True,
) -> Comparison:
    """The comparison of `compare`, and under `full` in its metrics everything else; cells are kept in the folder `cache`.

    Raises what `compare` and `run_jobs` raise. Dictionaries that are trained on the way are kept in `cache/dictionaries`.
    """
    plan, pair = plan or FullPlan(), ModelPair.open(pair) if isinstance(pair, str) else pair
    tasks = list(plan.tasks or pair.default_tasks or available_tasks())
    for task in tasks:
        get_task(task)
    if set(plan.kinds) - {"transcoder", "skip_transcoder"}:
        require_sae_lens()  # now, not after an hour
    cache, how = Path(cache), {"workers": workers, "ray_address": ray_address, "progress": progress}
    basic = compare(
        pair, tasks=tasks, seeds=plan.seeds, config=plan.config, command=command, progress=progress, workers=workers, cache=cache
    )
    dictionaries = training_jobs(pair, plan, cache / "dictionaries")
    couplings = coupling_jobs(pair, plan.coupling_tokens, cache, n_windows=2 * plan.curve_windows)
    records = run_jobs([*dictionaries, *couplings], cache, **how)
    trained, coupled = records[: len(dictionaries)], records[len(dictionaries) :]
    specs = column_specs(pair, plan, trained)
    curves = curve_jobs(pair, plan, specs, tasks)
    rows = [*capability_jobs(pair, plan, specs), *row_jobs(pair, plan, specs), *correspondence_jobs(pair, plan, specs)]
    again = further_jobs(pair, plan, specs, tasks)
    steering = steering_jobs(list(zip(couplings, coupled, strict=True)), tasks, n_pairs=plan.curve_pairs)
    groups = (curves, *again.values(), steering, rows)  # rows are the shortest: last, no worker waits long for another
    found = iter(run_jobs([job for jobs in groups for job in jobs], cache, **how))
    named = [[(job, next(found)) for job in jobs] for jobs in groups]
    full = assemble(plan, specs, trained, named[0], named[-1], dict(zip(again, named[1:], strict=False)))
    full |= {"couplings": from_plain(couplings_part(coupled, named[-2]))}
    return Comparison({**basic.metrics, "full": full})


def main_columns(plan: FullPlan) -> tuple[str, ...]:
    """The columns that every search seed searches, and single edges are searched in."""
    return (BASE, "dense_neurons", "dense_matched_neurons", f"dense_{plan.kinds[0]}")


def training_jobs(pair: ModelPair, plan: FullPlan, folder: Path) -> list[Job]:
    """One job for every dictionary: kinds × layers on the loss-matched model, more seeds of topk, and topk on the sparse model."""
    wanted = [("dense_matched", kind, 0) for kind in plan.kinds]
    wanted += [("dense_matched", plan.kinds[0], seed) for seed in range(1, plan.dictionary_seeds)]
    wanted += [("sparse", plan.kinds[0], 0)]
    jobs = []
    for model, kind, seed in wanted:
        spec = ColumnSpec(model, model)
        depends = fingerprints(pair, spec)
        for layer in range(int(load(model_folder(pair, spec)).cfg.n_layers)):
            settings = {"model": model, "kind": kind, "layer": layer, "seed": seed}
            settings |= {"tokens": plan.tokens, "d_sae": plan.d_sae, "k": plan.k}
            place = hashlib.sha256(repr((sorted(settings.items()), depends)).encode()).hexdigest()[:12]
            where = str((folder / f"{kind}-{model}-{layer}-{seed}-{place}").absolute())
            name = f"train {kind} {seed} of layer {layer}, {model}"
            jobs.append(Job(name, f"{_CELLS}:train_dictionary", _for(pair) | settings | {"folder": where}, depends))
    return jobs


def column_specs(pair: ModelPair, plan: FullPlan, trained: Sequence[Record]) -> list[ColumnSpec]:
    """Every column: neurons and bases of the pair's models, one for each kind of dictionary, and the controls."""
    specs = [
        ColumnSpec(BASE, "sparse"),
        ColumnSpec("dense_neurons", "dense"),
        ColumnSpec("dense_matched_neurons", "dense_matched"),
        ColumnSpec("dense_matched_components", "dense_matched", "components"),
        ColumnSpec("dense_matched_singular_vectors", "dense_matched", "singular_vectors"),
    ]
    specs += [_with_dictionaries(pair, plan, kind, trained, "dense_matched") for kind in plan.kinds]
    specs += [
        ColumnSpec("dense_matched_rotated", "dense_matched", "rotated", control=True),
        ColumnSpec("sparse_rotated", "sparse", "rotated", control=True),
        ColumnSpec("shuffled_weights", "dense_matched", shuffled=True, control=True),
        _with_dictionaries(pair, plan, plan.kinds[0], trained, "sparse"),
    ]
    arms = {name: str(folder) for name, folder in pair.arms().items()} | dict(plan.arms)
    for folder in arms.values():
        pair.check_tokens(folder)
    return specs + [ColumnSpec(name, folder, control=True) for name, folder in arms.items()]


def _with_dictionaries(pair: ModelPair, plan: FullPlan, kind: str, trained: Sequence[Record], model: str) -> ColumnSpec:
    jobs = training_jobs(pair, plan, Path())
    found: dict[int, list[str]] = {}
    for job, record in zip(jobs, trained, strict=True):
        if job.arguments["model"] == model and job.arguments["kind"] == kind:
            found.setdefault(job.arguments["seed"], []).append(record["folder"])
    name = f"sparse_{kind}" if model == "sparse" else f"dense_{kind}"
    folders = tuple(tuple(found[seed]) for seed in sorted(found))
    return ColumnSpec(name, model, "dictionaries", folders, control=model == "sparse" or kind == "frozen")


def further_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec], tasks: Sequence[str]) -> dict[str, list[Job]]:
    """Curves of the pair's further training seeds, by seed: neurons of the sparse and the loss-matched model, one search seed."""
    neurons = [spec for spec in specs if spec.name in (BASE, "dense_matched_neurons")]
    seeds = pair.training_seeds()[1 : plan.training_seeds]
    return {str(number): curve_jobs(again, replace(plan, seeds=1), neurons, tasks) for number, again in enumerate(seeds, 1)}


def curve_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec], tasks: Sequence[str]) -> list[Job]:
    """One job for every task, column and search seed (only the main columns get more than the first)."""
    settings = {
        "targets": list(plan.targets),
        "also_traced": sorted({*edge_starts(plan.edge_targets)} - {*plan.targets}),
        "n_windows": plan.curve_windows,
        "n_pairs": plan.curve_pairs,
        "functional_targets": list(plan.functional_targets),
        "config": plan.config.model_dump(mode="json"),
    }
    jobs = []
    for spec in specs:
        depends = [*fingerprints(pair, spec), f"curve schema {SCHEMA}"]
        for task in tasks:
            main = spec.name in main_columns(plan)
            for seed in range(plan.seeds if main else 1):
                edges = list(plan.edge_targets) if main and seed == 0 else []
                place = {"column": spec.to_plain(), "task": task, "seed": seed, "edge_targets": edges}
                name = f"curve {task} in {spec.name}, seed {seed}"
                jobs.append(Job(name, f"{_CELLS}:curve_cell", _for(pair) | place | settings, depends))
    return jobs


def capability_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec]) -> list[Job]:
    """One job a column."""
    jobs = []
    for spec in specs:
        where = _for(pair) | {"column": spec.to_plain(), "tokens": plan.row_tokens}
        jobs.append(Job(f"capability {spec.name}", f"{_CELLS}:capability_cell", where, fingerprints(pair, spec)))
    return jobs


def row_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec]) -> list[Job]:
    """One job for every row, layer and column whose MLP units are its own; further dictionary seeds of the main kind too."""
    jobs = []
    for spec in specs:
        if spec.basis in ("components", "singular_vectors"):
            continue  # their MLP units are the neurons
        depends = fingerprints(pair, spec)
        for layer in range(int(load(model_folder(pair, spec)).cfg.n_layers)):
            for row in ROWS:
                for seed in range(max(1, len(spec.dictionaries))):
                    place = {"column": spec.to_plain(), "row": row, "layer": layer, "seed": seed, "tokens": plan.row_tokens}
                    name = f"{row} {spec.name}, layer {layer}, seed {seed}"
                    jobs.append(Job(name, f"{_CELLS}:row_cell", _for(pair) | place, depends))
    return jobs


def correspondence_jobs(pair: ModelPair, plan: FullPlan, specs: Sequence[ColumnSpec]) -> list[Job]:
    """The sparse model's neurons matched with the units of every column that has its own, layer by layer.

    Where a column's model reads other tokens than the pair's there is nothing to match: such columns are left out, and named in
    the record's caveats by `compare`.
    """
    base = next(spec for spec in specs if spec.name == BASE)
    layers = int(load(model_folder(pair, base)).cfg.n_layers)
    jobs = []
    for spec in specs:
        own = spec.basis not in ("components", "singular_vectors") and spec is not base
        alike = spec.model not in pair.record or pair.shares_tokens(spec.model)
        depth = int(load(model_folder(pair, spec)).cfg.n_layers)
        if own and alike and depth == layers:
            depends = [*fingerprints(pair, base), *fingerprints(pair, spec)]
            for layer in range(layers):
                place = {"first": base.to_plain(), "second": spec.to_plain(), "layer": layer, "tokens": plan.row_tokens}
                name = f"correspondence {spec.name}, layer {layer}"
                jobs.append(Job(name, f"{_CELLS}:correspondence_cell", _for(pair) | place, depends))
    return jobs


def assemble(
    plan: FullPlan,
    specs: Sequence[ColumnSpec],
    trained: Sequence[Record],
    curves: Sequence[tuple[Job, Record]],
    rows: Sequence[tuple[Job, Record]],
    further: Mapping[str, Sequence[tuple[Job, Record]]] | None = None,
) -> dict[str, Any]:
    """The part `full` of the metrics from the cells' records; `further` are curves of other training seeds, by seed."""
    by_task = _by_task(curves)
    again = {seed: _by_task(found) for seed, found in (further or {}).items()}
    by_row: dict[str, dict[str, dict[str, Any]]] = {}
    maps: dict[str, dict[str, dict[str, Any]]] = {}
    for job, record in rows:
        row, column, place = _place(job)
        by_row.setdefault(row, {}).setdefault(column, {})[place] = from_plain({n: v for n, v in record.items() if n != "map"})
        if "map" in record:
            maps.setdefault(row, {}).setdefault(column, {})[place] = record["map"]
    summary = headline(by_task, specs, again)
    return {
        "schema": 1,
        "columns": {spec.name: _about(spec) for spec in specs},
        "dictionaries": [dict(record) for record in trained],
        "targets": list(plan.targets),
        "curves": by_task,
        "further_training_seeds": again,
        "rows": by_row,
        "maps": maps,
        "headline": summary,
        "undistinguished": undistinguished(summary, by_row, specs),
        "caveats": list(CAVEATS),
    }


def _by_task(curves: Sequence[tuple[Job, Record]]) -> dict[str, dict[str, list[Record]]]:
    """Records of curves by task and column, in the order of their search seeds."""
    found: dict[str, dict[str, list[Record]]] = {}
    for job, record in curves:
        found.setdefault(job.arguments["task"], {}).setdefault(job.arguments["column"]["name"], []).append(record)
    return found


def _place(job: Job) -> tuple[str, str, str]:
    """Row, column, and layer and seed, of a cell that is no curve."""
    arguments = job.arguments
    if "second" in arguments:
        return "correspondence", arguments["second"]["name"], f"layer {arguments['layer']}"
    if "row" in arguments:
        seed = f", seed {arguments['seed']}" if len(arguments["column"]["dictionaries"]) > 1 else ""
        return arguments["row"], arguments["column"]["name"], f"layer {arguments['layer']}{seed}"
    return "capability", arguments["column"]["name"], "model"


def _about(spec: ColumnSpec) -> dict[str, Any]:
    return {"model": spec.model, "basis": spec.basis, "control": spec.control, "shuffled": spec.shuffled} | {
        "dictionary_seeds": len(spec.dictionaries)
    }


def _for(pair: ModelPair) -> dict[str, Any]:
    return {"pair": pair.address}
