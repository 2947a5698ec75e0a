"""`compare_fully`: every column and control, every row, and the curve of bits against divergence, from cells that are kept.

    sparse-lens compare --full --out report

runs it on the shipped pair. Cells are independent (`jobs`): killed and started again it goes on, over processes or over Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparse_lens.comparisons.comparison import Comparison, compare
from sparse_lens.comparisons.full.assembly import Cells, assemble
from sparse_lens.comparisons.full.coupled import coupling_jobs, couplings_part, steering_jobs
from sparse_lens.comparisons.full.full_columns import column_specs, frontier_specs, training_jobs
from sparse_lens.comparisons.full.full_jobs import FRONTIER_ROWS, grouped_jobs, row_jobs
from sparse_lens.comparisons.full.full_verdict import absent
from sparse_lens.comparisons.full.plan import TRANSCODERS, FullPlan
from sparse_lens.comparisons.jobs import run_jobs
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.dictionaries.sae_training import require_sae_lens
from sparse_lens.results import from_plain
from sparse_lens.tasks import available_tasks, get_task


def compare_fully(
    pair: ModelPair | str = "python",
    plan: FullPlan | None = None,
    *,
    cache: str | Path,
    workers: int = 2,
    ray_address: str | None = None,
    command: str = "sparse_lens.comparisons.full.compare_fully(...)",
    progress: bool = True,
) -> Comparison:
    """The comparison of `compare`, and under `full` in its metrics everything else; cells are kept in the folder `cache`.

    Raises what `compare` and `run_jobs` raise. Dictionaries that are trained on the way are kept in `cache/dictionaries`.
    """
    plan, pair = plan or FullPlan(), ModelPair.open(pair) if isinstance(pair, str) else pair
    tasks = list(plan.tasks or pair.default_tasks or available_tasks())
    for task in tasks:
        get_task(task)
    column_specs(pair, plan, {})  # its errors now, not after an hour
    if set(plan.kinds) - {*TRANSCODERS}:
        require_sae_lens()  # now, not after an hour
    cache, how = Path(cache), {"workers": workers, "ray_address": ray_address, "progress": progress}
    basic = compare(
        pair, tasks=tasks, seeds=plan.seeds, config=plan.config, command=command, progress=progress, workers=workers, cache=cache
    )
    training = training_jobs(pair, plan, cache / "dictionaries")
    couplings = coupling_jobs(pair, plan.coupling_tokens, cache, n_windows=2 * plan.curve_windows)
    largest_first = sorted((job for jobs in training.values() for job in jobs), key=lambda job: -job.arguments["d_sae"])
    first = [*couplings, *largest_first]
    records = {job.fingerprint: record for job, record in zip(first, run_jobs(first, cache, **how), strict=True)}
    trained = {wanted: [records[job.fingerprint] for job in jobs] for wanted, jobs in training.items()}
    coupled = [records[job.fingerprint] for job in couplings]
    specs, frontier = column_specs(pair, plan, trained), frontier_specs(pair, plan, trained)
    groups = {
        **grouped_jobs(pair, plan, specs, tasks),
        "steering": steering_jobs(list(zip(couplings, coupled, strict=True)), tasks, n_pairs=plan.curve_pairs),
        "widths": row_jobs(pair, plan, frontier, FRONTIER_ROWS),
    }
    found = iter(run_jobs([job for jobs in groups.values() for job in jobs], cache, **how))
    cells = {name: [(job, next(found)) for job in jobs] for name, jobs in groups.items()}
    full = assemble(
        plan,
        specs,
        [{**record, **vars(wanted)} for wanted, records in trained.items() for record in records],
        curves=cells["curves"],
        rows=cells["rows"],
        further=_of_seeds(cells, "curves"),
        capability=_of_seeds(cells, "losses"),
        other_tokens=[spec.name for spec in specs if spec.model in pair.record and not pair.same_tokens(spec.model, "sparse")],
        frontier=(frontier, cells["widths"]),
        absent_parts=absent(pair, plan, is_coupled=bool(couplings)),
    )
    full |= {"couplings": from_plain(couplings_part(coupled, cells["steering"]))}
    return Comparison({**basic.metrics, "full": full})


def _of_seeds(cells: Mapping[str, Cells], kind: str) -> dict[str, Cells]:
    """The groups of further training seeds, by seed."""
    return {name.partition(" ")[2]: found for name, found in cells.items() if name.startswith(f"{kind} ")}
