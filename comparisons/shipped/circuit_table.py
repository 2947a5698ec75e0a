"""The table of all tasks in all shipped models: accuracy, nodes, edges before and after an edge search, verdicts.

    python -m sparse_lens.comparisons.shipped.circuit_table --out docs/circuits --page docs/pages/circuit-table.md

finds every circuit that `--out` has no record of (a few minutes each; it goes on where it was stopped), and writes the page's
tables anew. Two of them run side by side on different models (`--only`); `--quick` is one task and one seed at the single effort.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from sparse_lens.comparisons.shipped.circuit_records import MODELS, SEEDS, Plan, Record, fill_records, read_record, record_path
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.tasks import available_tasks

QUICK_TASK = "while_return_true"


def circuit_tables(folder: Path, models: Sequence[str] = MODELS) -> dict[str, str]:
    """The tables of the page, from the records that are there."""
    found = {(task, model): read_record(record_path(folder, model, task)) for task in available_tasks() for model in models}
    records = {place: record for place, record in found.items() if record is not None}
    circuits = sum(len(record["seeds"]) for record in records.values())
    progress = f"So far: {len(records)} of {len(found)} tasks in models have been looked at, and {circuits} circuits found."
    return {"progress": progress, "circuits": size_table(records), "verdicts": verdict_table(records)}


def size_table(records: dict[tuple[str, str], Record]) -> str:
    """One row for each task and model: means over seeds, in brackets the least and the largest."""
    names = ("nodes", "edges between them", "edges after the search", "nonsense nodes")
    rows = ["| task | model | accuracy | target | seeds | " + " | ".join(names) + " | settled |", "|---" * 10 + "|"]
    for (task, model), record in records.items():
        seeds = list(record["seeds"].values())
        cells = [task, f"`{model}`", f"{100 * record['accuracy']['value']:.1f} %", f"{record['target']:.3g}"]
        if not seeds:
            rows.append("| " + " | ".join([*cells, "", *[""] * 4, "not measurable"]) + " |")
            continue
        reached = [seed for seed in seeds if seed["reached"]]
        edges = [seed for seed in seeds if seed["edges_reached"]]
        nonsense = [seed["nonsense"]["nodes"] for seed in seeds if seed["nonsense"]["reached"]]
        settled = sum(seed["convergence"][what]["settled"] for seed in seeds for what in ("nodes", "edges"))
        cells += [f"{len(reached)} of {len(seeds)}", _spread([seed["nodes"] for seed in reached])]
        cells += [_spread([seed["edges_between_nodes"] for seed in reached]), _spread([seed["edges"] for seed in edges])]
        cells += [_spread(nonsense) if nonsense else "not fitted", f"{settled} of {2 * len(seeds)}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def verdict_table(records: dict[tuple[str, str], Record]) -> str:
    """One row for each circuit: what its card says of it, limits included."""
    rows = ["| task | model | seed | verdict |", "|---|---|---|---|"]
    for (task, model), record in records.items():
        for seed, found in record["seeds"].items():
            rows.append(f"| {task} | `{model}` | {seed} | {'; '.join(found['verdict'])} |")
    return "\n".join(rows)


def _spread(values: Sequence[int]) -> str:
    if not values:
        return "—"
    mean = statistics.mean(values)
    return f"{mean:,.0f}" if len(values) == 1 else f"{mean:,.0f} ({min(values):,} to {max(values):,})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Find what is missing, and tabulate."""
    parser = argparse.ArgumentParser(description="Circuits of all tasks in the shipped models, at converged effort.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records, a JSON file for each model and task")
    parser.add_argument("--only", nargs="*", default=None, metavar="MODEL", help="search in these models; targets are those of all")
    parser.add_argument("--tasks", nargs="*", default=None, metavar="TASK", help="these tasks only")
    parser.add_argument("--seeds", nargs="*", type=int, default=None, metavar="N", help="these search seeds (default: 0 1 2)")
    parser.add_argument("--page", type=Path, default=None, help="page whose tables, between their markers, are written anew")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TASK}, one seed, without doubling the effort more than once")
    options = parser.parse_args(arguments)
    tasks = options.tasks or ([QUICK_TASK] if options.quick else available_tasks())
    seeds = options.seeds or ([0] if options.quick else SEEDS)
    plan = Plan(tasks=tasks, seeds=seeds, max_doublings=1 if options.quick else 3)
    fill_records(options.out, plan, options.only)
    if options.page is not None:
        write_tables(options.page, circuit_tables(options.out))


if __name__ == "__main__":
    main()
