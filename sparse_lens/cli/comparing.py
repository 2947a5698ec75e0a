"""`sparse-lens compare` and `sparse-lens report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sparse_lens.cli.circuits import search_config
from sparse_lens.cli.printing import add_command, command_line, print_line, print_rich


def add_compare(commands: Any) -> None:
    parser = add_command(
        commands,
        "compare",
        _compare,
        "compare sparse circuits, dense circuits and SAE latents",
        "Find each task's circuit in the weight-sparse model, in the neurons of two dense models and in SAE latents, at one target "
        "loss and with equal effort, beside a nonsense control; print the tables and write metrics.json and index.html.",
    )
    parser.add_argument("--pair", default="python", help="a shipped pair, or a folder with a pair.json")
    parser.add_argument(
        "--tasks", nargs="+", default=None, metavar="TASK", help="task names, or `all`; default: those the pair names"
    )
    for role in ("sparse", "dense", "dense-matched"):
        parser.add_argument(f"--{role}", type=Path, default=None, metavar="FOLDER", help=f"this model as the pair's {role} one")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report")
    parser.add_argument("--seeds", type=int, default=1, help="search seeds")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of each mask, for a quicker or a better search")


def _compare(options: argparse.Namespace) -> None:
    from sparse_lens.report import check_report_folder

    check_report_folder(options.out)
    from sparse_lens.comparisons import ModelPair, compare
    from sparse_lens.report import comparison_table, models_table, patching_table, write_report
    from sparse_lens.results import to_plain
    from sparse_lens.tasks import available_tasks

    tasks = available_tasks() if options.tasks == ["all"] else options.tasks
    config = search_config(options)
    given = {"sparse": options.sparse, "dense": options.dense, "dense_matched": options.dense_matched}
    pair = ModelPair.open(options.pair).with_models(**{role: folder for role, folder in given.items() if folder is not None})
    comparison = compare(pair, tasks=tasks, seeds=options.seeds, config=config, command=command_line())
    metrics = to_plain(comparison.metrics)
    write_report(metrics, options.out)
    _show_metrics(metrics, models_table, comparison_table, patching_table)
    print_line(f"wrote {options.out / 'metrics.json'} and {options.out / 'index.html'}")


def _show_metrics(metrics: dict[str, Any], models_table: Any, comparison_table: Any, patching_table: Any) -> None:
    print_rich(models_table(metrics))
    print_rich(comparison_table(metrics))
    if metrics.get("patching"):
        print_rich(patching_table(metrics["patching"]))
    print_line("What this run cannot tell you:\n" + "\n".join(f"  - {sentence}" for sentence in metrics["verdict"]))


def add_report(commands: Any) -> None:
    parser = add_command(
        commands,
        "report",
        _report,
        "write the page of an existing metrics.json",
        "Print the tables of a metrics.json again and write its page.",
    )
    parser.add_argument("metrics", type=Path, help="a metrics.json, or the folder that holds one")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report")


def _report(options: argparse.Namespace) -> None:
    from sparse_lens.errors import DataError
    from sparse_lens.report import comparison_table, models_table, patching_table, write_report

    path = options.metrics / "metrics.json" if options.metrics.is_dir() else options.metrics
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as metrics: {error}; make one with `sparse-lens compare`") from error
    write_report(metrics, options.out)
    _show_metrics(metrics, models_table, comparison_table, patching_table)
    print_line(f"wrote {options.out / 'index.html'}")
