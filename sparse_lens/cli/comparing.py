"""`sparse-lens compare` and `sparse-lens report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sparse_lens.cli.circuit_pages import DEFAULT_PAGE, is_circuit, report_circuits
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
        parser.add_argument(
            f"--{role}",
            type=Path,
            default=None,
            metavar="MODEL",
            help=f"this model (shipped, by name, or a folder) as the pair's {role} one",
        )
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report")
    parser.add_argument("--seeds", type=int, default=None, help="search seeds (default: 1, with --full 3)")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of each mask, for a quicker or a better search")
    parser.add_argument(
        "--cache",
        type=Path,
        default=None,
        metavar="DIR",
        help="keep what is done there, so that a stopped run goes on (default: with --full OUT.cells, else nothing is kept)",
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="columns side by side, in threads; with --full also processes, of one thread each"
    )
    _add_full(parser)


def _add_full(parser: argparse.ArgumentParser) -> None:
    full = parser.add_argument_group(
        "the full comparison",
        "SAEs of four kinds, transcoders, other bases, upper lines and the controls as further columns; the curve of bits against "
        "divergence, with edges at three levels; SAEs over widths and active latents; rows of reconstruction, concepts, probes, "
        "superposition, stability and more. It takes hours, and goes on where it was stopped. FullPlan, in Python, says more.",
    )
    full.add_argument("--full", action="store_true", help="do all that; needs the extra [sae] to train SAEs")
    full.add_argument(
        "--quick", action="store_true", help="with --full: tiny dictionaries, one seed, a short search; to try it out"
    )
    full.add_argument("--ray", default=None, metavar="ADDRESS", help="run over Ray instead: local, auto, or a cluster's address")
    full.add_argument(
        "--arm", action="append", default=[], metavar="NAME=MODEL", help="a further dense model as a control column; repeatable"
    )
    full.add_argument(
        "--dictionary",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an SAE or a transcoder of yours, on the loss-matched model, as a column; SAELens' folder; repeat NAME for each layer",
    )


def _compare(options: argparse.Namespace) -> None:
    from sparse_lens.report import check_report_folder

    check_report_folder(options.out)
    from sparse_lens.comparisons import ModelPair, compare
    from sparse_lens.errors import ConfigError
    from sparse_lens.report import comparison_table, models_table, patching_table, write_report
    from sparse_lens.results import to_plain
    from sparse_lens.tasks import available_tasks

    tasks = available_tasks() if options.tasks == ["all"] else options.tasks
    config = search_config(options)
    given = {"sparse": options.sparse, "dense": options.dense, "dense_matched": options.dense_matched}
    pair = ModelPair.open(options.pair).with_models(**{role: folder for role, folder in given.items() if folder is not None})
    alone = [f"--{name}" for name in ("arm", "dictionary", "quick", "ray") if getattr(options, name)]
    if alone and not options.full:
        raise ConfigError(f"{', '.join(alone)}: of the full comparison alone; give --full, too")
    if options.full:
        comparison = _compare_fully(options, pair, tasks, config)
    else:
        kept = {"workers": options.workers, "cache": options.cache}
        comparison = compare(
            pair, tasks=tasks, seeds=1 if options.seeds is None else options.seeds, config=config, command=command_line(), **kept
        )
    metrics = to_plain(comparison.metrics)
    write_report(metrics, options.out)
    _show_metrics(metrics, models_table, comparison_table, patching_table)
    print_line(f"wrote {options.out / 'metrics.json'} and {options.out / 'index.html'}")


def _compare_fully(options: argparse.Namespace, pair: Any, tasks: Any, config: Any) -> Any:
    from sparse_lens.comparisons.full import FullPlan, compare_fully, quick_plan

    arms, own = dict(named_folder(arm) for arm in options.arm), _dictionaries(options.dictionary)
    if options.quick:
        plan = quick_plan(tuple(tasks or ()), arms, own)
    else:
        seeds = 3 if options.seeds is None else options.seeds
        plan = FullPlan(tasks=tuple(tasks or ()), seeds=seeds, config=config, arms=arms, dictionaries=own)
    cache = options.cache or options.out.with_name(options.out.name + ".cells")
    how = {"workers": options.workers, "ray_address": options.ray}
    return compare_fully(pair, plan, cache=cache, command=command_line(), **how)


def _dictionaries(given: list[str]) -> dict[str, list[str]]:
    """Folders by name, from NAME=FOLDER once for each layer."""
    from sparse_lens.errors import ConfigError

    found: dict[str, list[str]] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not (equals and name and folder):
            raise ConfigError(f"a dictionary is NAME=FOLDER, got {each!r}")
        found.setdefault(name, []).append(folder)
    return found


def named_folder(arm: str) -> tuple[str, str]:
    """The name and the folder of NAME=MODEL; raises `ConfigError` where the model is no shipped one and no trained one's folder."""
    from sparse_lens.errors import ConfigError
    from sparse_lens.models_shipped import shipped_models

    name, equals, model = arm.partition("=")
    folder = shipped_models().get(model, Path(model))
    if not (equals and name and (folder / "config.json").is_file()):
        raise ConfigError(f"an arm is NAME=MODEL with a shipped model or the folder of a trained one, got {arm!r}")
    return name, str(folder.absolute())


def _show_metrics(metrics: dict[str, Any], models_table: Any, comparison_table: Any, patching_table: Any) -> None:
    from sparse_lens.report.full.tables import headline_table
    from sparse_lens.report.full.words import said_in

    print_rich(models_table(metrics))
    print_rich(comparison_table(metrics))
    if metrics.get("patching"):
        print_rich(patching_table(metrics["patching"]))
    if full := metrics.get("full"):
        print_rich(headline_table(full))
        for title, sentences in said_in(full):
            print_line(f"{title}:\n" + "\n".join(f"  - {sentence}" for sentence in sentences))
    print_line("What this run cannot tell you:\n" + "\n".join(f"  - {sentence}" for sentence in metrics["verdict"]))


def add_report(commands: Any) -> None:
    parser = add_command(
        commands,
        "report",
        _report,
        "write the page of a comparison or of circuits",
        "Write one page that opens offline. Of a comparison: its tables, which are printed, too. Of one or several circuits, side "
        "by side: each drawn, with a card for every node.",
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a metrics.json or the folder that holds one; or folders of circuits"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help=f"folder of a comparison's report (`report`), or page of circuits (`{DEFAULT_PAGE}`)"
    )
    parser.add_argument("--model", action="append", default=None, metavar="MODEL", help="of circuits: their model, if not shipped")
    parser.add_argument(
        "--dictionary",
        action="append",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="of circuits: an SAE whose latents are nodes",
    )
    parser.add_argument(
        "--pairs-file", type=Path, default=None, help="of circuits: prompt pairs (.csv or .jsonl) for a task of your own"
    )
    parser.add_argument("--pairs", type=int, default=16, help="of circuits: prompt pairs that ablations are measured on")


def _report(options: argparse.Namespace) -> None:
    from sparse_lens.errors import ConfigError

    circuits = [path for path in options.paths if is_circuit(path)]
    if options.pairs < 1:
        raise ConfigError(f"--pairs must be at least 1, got {options.pairs}")
    if circuits and len(circuits) < len(options.paths):
        other = next(path for path in options.paths if path not in circuits)
        raise ConfigError(
            f"{other} is no folder of a circuit (it has no circuit.json), the others are; report on one kind at a time"
        )
    if circuits:
        report_circuits(options, circuits)
    elif len(options.paths) > 1:
        raise ConfigError(f"a report is of one comparison, got {len(options.paths)}; or name folders that each hold a circuit.json")
    else:
        _report_comparison(options.paths[0], Path("report") if options.out is None else options.out)


def _report_comparison(path: Path, out: Path) -> None:
    from sparse_lens.errors import DataError
    from sparse_lens.report import comparison_table, models_table, patching_table, write_report

    path = path / "metrics.json" if path.is_dir() else path
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as metrics: {error}; make one with `sparse-lens compare`, or name the folder of a circuit that "
            "`sparse-lens circuit --out` has saved"
        ) from error
    write_report(metrics, out)
    _show_metrics(metrics, models_table, comparison_table, patching_table)
    print_line(f"wrote {out / 'index.html'}")
