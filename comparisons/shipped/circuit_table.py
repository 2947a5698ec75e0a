"""The table of all tasks in all shipped models: accuracy, nodes, edges before and after an edge search, ratios, verdicts.

    python -m sparse_lens.comparisons.shipped.circuit_table --out docs/circuits --page docs/pages/circuit-table.md

finds every circuit that `--out` has no record of (a few minutes each; it goes on where it was stopped), and writes the page's
tables anew. Two of them run side by side on different models (`--only`); `--quick` is one task and one seed at the single effort.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sparse_lens.circuits.trust.verdicts import HOLDS
from sparse_lens.comparisons.shipped.circuit_records import MODELS, SEEDS, Plan, Record, fill_records, read_record, record_path
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.results import Result, geometric_mean
from sparse_lens.tasks import available_tasks

QUICK_TASK = "while_return_true"

NEEDS_NOTHING = "target met with everything ablated"

SIZES = {
    "nodes": ("nodes", "reached"),
    "edges between them": ("edges_between_nodes", "reached"),
    "edges after the search": ("edges", "edges_reached"),
}
"""Sizes of a circuit, and what says that its search reached the target."""

SAID = {
    "rephrased": r"^rephrased prompts: (-?[\d.]+\d)",
    "random circuit": r"a random circuit of equal size: (-?[\d.]+)$",
    "worst mixture": r"^breaks under the worst mixture found of what it leaves out \((-?[\d.]+)\)$",
    "random mixtures": r"^breaks under random mixtures of what it leaves out \((-?[\d.]+)\)$",
    "knock-outs": r"^with parts knocked out of both, circuit and model differ \(probabilities by ([\d.]+)\)$",
    "idle nodes of 24": r"^(\d+) of 24 tested nodes do no more than random ones$",
    "follows, %": r"^the answer follows its values from prompt to prompt in (\d+)% only$",
    "worse than its model, %": r"^worse than its model on (\d+)% of the pairs$",
}
"""Columns of the verdicts, and the sentence of a card that names the number; most sentences stand only where it is an alarm."""

COUNTED = {"idle nodes of 24", "follows, %", "worse than its model, %"}

Records = Mapping[tuple[str, str], Record]


def circuit_tables(folder: Path, models: Sequence[str] = MODELS) -> dict[str, str]:
    """The tables of the page, from the records that are there."""
    found = {(task, model): read_record(record_path(folder, model, task)) for task in available_tasks() for model in models}
    records = {place: record for place, record in found.items() if record is not None}
    return {
        "progress": progress_line(records, len(found)),
        "circuits": size_table(records),
        "ratios": ratio_table(records, models),
        "verdicts": verdict_table(records),
    }


def progress_line(records: Records, n_cells: int) -> str:
    """How many cells are done, how many circuits they hold, and how many of these have no node."""
    circuits = [seed for record in records.values() for seed in record["seeds"].values()]
    empty = sum(seed["nodes"] == 0 for seed in circuits)
    cells = f"All {n_cells}" if len(records) == n_cells else f"{len(records)} of {n_cells}"
    return f"{cells} task-model cells are done; {len(circuits)} circuits" + (f", {empty} of them without a node." if empty else ".")


def size_table(records: Records) -> str:
    """One row for each task and model: means over seeds, in brackets the least and the largest."""
    names = ("nodes", "edges between them", "edges after the search", "nonsense nodes")
    rows = ["| task | model | accuracy | target | seeds | " + " | ".join(names) + " | settled |", "|---" * 10 + "|"]
    for (task, model), record in records.items():
        seeds = list(record["seeds"].values())
        cells = [task, f"`{model}`", f"{100 * record['accuracy']['value']:.1f} %", f"{record['target']:.3g}"]
        if not seeds:
            rows.append("| " + " | ".join([*cells, "", "not measurable", *[""] * 4]) + " |")
            continue
        reached = [seed for seed in seeds if seed["reached"]]
        edges = [seed for seed in seeds if seed["edges_reached"]]
        nonsense = [seed["nonsense"]["nodes"] for seed in seeds if seed["nonsense"]["reached"]]
        settled = sum(seed["convergence"][what]["settled"] for seed in seeds for what in ("nodes", "edges"))
        cells += [f"{len(reached)} of {len(seeds)}"]
        if _needs_nothing(record):
            cells += [NEEDS_NOTHING, "", ""]
        else:
            cells += [_spread([seed["nodes"] for seed in reached])]
            cells += [_spread([seed["edges_between_nodes"] for seed in reached]), _spread([seed["edges"] for seed in edges])]
        cells += [_spread(nonsense) if nonsense else "not fitted", f"{settled} of {2 * len(seeds)}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def ratio_table(records: Records, models: Sequence[str] = MODELS) -> str:
    """Each dense model over the sparse one: geometric means over tasks, with Student's 95 % intervals over tasks.

    A task's size is its mean over the seeds that reached the target. A task counts where both models have circuits with nodes.
    """
    base, *others = models
    rows = [f"| over `{base}` | tasks | " + " | ".join(SIZES) + " |", "|---" * (2 + len(SIZES)) + "|"]
    for model in others:
        tasks = [task for task, of in records if of == model and (task, base) in records]
        ratios = {name: _ratios([(records[task, model], records[task, base]) for task in tasks], *of) for name, of in SIZES.items()}
        counts = "/".join(str(count) for count in dict.fromkeys(len(found) for found in ratios.values()))
        means = [_interval(geometric_mean(np.array(found))) if len(found) > 1 else "—" for found in ratios.values()]
        rows.append(f"| `{model}` | {counts} | " + " | ".join(means) + " |")
    return "\n".join(rows)


def verdict_table(records: Records) -> str:
    """One row for each task and model with circuits: what their cards measured, and the limits that they name."""
    names = ("sufficient, necessary", "sufficiency", "necessity", "nonsense, times", *SAID)
    rows = ["| task | model | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for (task, model), record in records.items():
        if not (seeds := list(record["seeds"].values())):
            continue
        cells = [task, f"`{model}`"]
        if _needs_nothing(record):
            rows.append("| " + " | ".join([*cells, NEEDS_NOTHING, *[""] * (len(names) - 1)]) + " |")
            continue
        holding = [sum((seed[score]["lo"] or 0) >= HOLDS for seed in seeds) for score in ("sufficiency", "necessity")]
        cells += [f"{holding[0]}, {holding[1]} of {len(seeds)}"]
        cells += [_seeds([seed[score]["value"] for seed in seeds]) for score in ("sufficiency", "necessity")]
        fitted = [seed for seed in seeds if seed["nonsense"]["reached"]]
        times = _seeds([seed["nonsense"]["nodes"] / max(seed["nodes"], 1) for seed in fitted], len(seeds), digits=1)
        cells += [times if fitted else "not fitted"]
        cells += [_seeds(said(seeds, name), len(seeds), digits=2 if name not in COUNTED else 0) for name in SAID]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def said(seeds: Sequence[Record], name: str) -> list[float]:
    """What the verdicts of some circuits name under a column of `SAID`: a number for each that names one."""
    found = (re.search(SAID[name], line) for seed in seeds for line in seed["verdict"])
    return [float(match[1]) for match in found if match]


def _needs_nothing(record: Record) -> bool:
    """Whether the task's target is met with every node ablated: such a circuit has no size to compare."""
    return all(seed["reached"] and seed["nodes"] == 0 for seed in record["seeds"].values())


def _ratios(pairs: Sequence[tuple[Record, Record]], size: str, reached: str) -> list[float]:
    """The ratio of two records' mean sizes for each pair in which both have one above 0."""
    sizes = [[[seed[size] for seed in record["seeds"].values() if seed[reached]] for record in pair] for pair in pairs]
    means = [[statistics.mean(values) if values else 0 for values in pair] for pair in sizes]
    return [above / below for above, below in means if above and below]


def _interval(result: Result) -> str:
    assert result.value is not None and result.lo is not None and result.hi is not None
    value, lo, hi = (f"{number:#.2g}".rstrip(".") for number in (result.value, result.lo, result.hi))
    return f"{value} [{lo}, {hi}]"


def _seeds(values: Sequence[float], n: int | None = None, *, digits: int = 2) -> str:
    """Mean, least and largest over seeds; behind it how many of `n` have the number, if not all."""
    if not values:
        return "—"
    ends = (round(number, digits) + 0.0 for number in (statistics.mean(values), min(values), max(values)))  # no -0.00
    mean, lo, hi = (f"{number:.{digits}f}" for number in ends)
    few = f"; {len(values)} of {n}" if n is not None and len(values) < n else ""
    return (mean if lo == hi else f"{mean} ({lo} to {hi})") + few


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
