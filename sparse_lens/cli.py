"""The command line: each subcommand calls one public function with one configuration, then shows what it returned.

Heavy packages are imported inside the subcommands, so that `sparse-lens --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_lens.errors import SparseLensError

_EPILOG = """examples:
  sparse-lens models                                   what ships with the package
  sparse-lens compare --out report                     the whole comparison, as a page that opens offline
  sparse-lens patch python-sparse if_equals            TransformerLens' activation patching on one task
  sparse-lens circuit python-sparse if_equals          the smallest circuit found for one task
  sparse-lens train --recipe smoke-sparse --out tiny   a small model in a few minutes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; 0 done, 1 a `SparseLensError` (printed without a traceback), 2 wrong usage."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    if not options.verbose:
        warnings.simplefilter("ignore")
    try:
        options.run(options)
    except SparseLensError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130  # as a shell reports a program that SIGINT has ended
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparse-lens",
        description="Weight-sparse transformers in TransformerLens: load, patch, find circuits, compare with SAE features.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is being done, and show warnings of other packages")
    commands = parser.add_subparsers(title="subcommands", required=True, metavar="COMMAND")
    for add in (_add_models, _add_check, _add_train, _add_patch, _add_circuit, _add_compare, _add_report, _add_bench):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str, description: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_models(commands: Any) -> None:
    parser = _command(
        commands,
        "models",
        _models,
        "list the models that load by name",
        "List the shipped models, and the released ones, which are fetched when first loaded (SPARSE_LENS_CACHE says where to).",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list for programs")


def _models(options: argparse.Namespace) -> None:
    from sparse_lens.models.downloads import describe_released
    from sparse_lens.models_shipped import describe_models

    shipped, released = describe_models(), describe_released()
    if options.json:
        _print_json(shipped + released)
        return
    rows = [[m["name"], f"{m['parameters']:,}", f"{m['nonzeros']:,}", f"{m['loss']:.3f}", m["about"]] for m in shipped]
    _print_table("Shipped models", ["name", "parameters", "nonzeros", "loss (nats/token)", "what it is"], rows)
    rows = [
        [m["name"], _number(m["parameters"]), f"{_number(m['cached'])} bytes" if m["cached"] else "", m["about"]] for m in released
    ]
    _print_table("Released models", ["name", "parameters", "fetched", "what it is"], rows)


def _add_check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        _check,
        "load a model and look for problems",
        "Load a model, compare its bridge with the bare forward pass, and print configuration, densities, dead parts, edges and "
        "hook points; with --published, compare a released model with what is published of it.",
    )
    parser.add_argument("model", help="name of a shipped or released model, a model's folder, or an id on the Hugging Face hub")
    parser.add_argument("--published", action="store_true", help="a released model against its published figures (needs a network)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")


def _check(options: argparse.Namespace) -> None:
    from sparse_lens.hooks import check_model, check_published

    if options.published:
        figures = check_published(options.model)
        if options.json:
            _print_json([figure.__dict__ for figure in figures])
            return
        verdict = {True: "agrees", False: "DIFFERS", None: ""}
        rows = [[figure.what, figure.published, figure.found, verdict[figure.agrees]] for figure in figures]
        _print_table(f"{options.model} against what is published", ["what", "published", "found", ""], rows)
        return
    found = check_model(options.model)
    if options.json:
        _print_json(found.to_plain())
        return
    _print_table("Configuration", ["field", "value"], [[name, str(value)] for name, value in found.config.items()])
    _print_table("Density of each matrix", ["matrix", "nonzeros"], [[n, f"{d:.2%}"] for n, d in found.densities.items()])
    _print_table("Edges (nonzero weights)", ["kind", "count"], [[kind, f"{count:,}"] for kind, count in found.edges.items()])
    _print(f"{found.parameters:,} parameters, {found.nonzeros:,} of them not zero")
    _print(f"dead neurons by layer: {', '.join(map(str, found.dead_neurons))}; dead heads: {', '.join(map(str, found.dead_heads))}")
    layer_hooks = [name for name in found.hook_points if not name.startswith("blocks.") or name.startswith("blocks.0.")]
    _print(f"{len(found.hook_points)} hook points; those of layer 0 and of no layer:\n  " + "\n  ".join(layer_hooks))
    _print(f"bridge against core: largest difference of logits {found.largest_difference:.2e}")
    _print("problems: " + ("none" if not found.problems else "".join(f"\n  - {problem}" for problem in found.problems)))


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "train a model by a named recipe",
        "Train a model on real Python source (and generated programs). An interrupted run goes on where it stopped: "
        "repeat the command. The corpus is built once in --data.",
    )
    parser.add_argument("--recipe", required=True, help="name of a recipe; a wrong name lists the right ones")
    parser.add_argument("--out", type=Path, default=None, help="the model's folder; default: ./NAME-OF-RECIPE")
    parser.add_argument(
        "--data", type=Path, default=Path("sparse-lens-data"), help="folder of the tokenized corpus, built if missing"
    )
    parser.add_argument(
        "--source", type=Path, action="append", default=[], help="folder of .py files instead of the standard library; repeatable"
    )
    parser.add_argument("--dataset", default=None, help="Hugging Face dataset of source code instead (a name, or a saved folder)")
    parser.add_argument("--column", default="text", help="text column of --dataset")
    parser.add_argument(
        "--site-packages", type=float, default=0, metavar="MB", help="add this much of the installed packages' source"
    )
    parser.add_argument(
        "--corpus",
        default=None,
        metavar="NAME",
        help="rebuild exactly the corpus of a shipped pair (its name), or of a manifest file, instead of all the above",
    )
    parser.add_argument("--generated-share", type=float, default=0.5, help="share of generated programs in the training tokens")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps, instead of the recipe's")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: all")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")


def _train(options: argparse.Namespace) -> None:
    from sparse_lens.training import get_recipe

    config = get_recipe(options.recipe)
    if options.steps is not None:
        config = config.with_steps(options.steps)
    if options.dry_run:
        _print_json(config.model_dump(mode="json") | {"tokens": config.tokens})
        return
    import torch

    from sparse_lens.data import prepare_data, rebuild_data
    from sparse_lens.errors import ConfigError
    from sparse_lens.files import check_writable
    from sparse_lens.models_shipped import pair_corpus
    from sparse_lens.training import MODEL_FILES, train

    check_writable(options.out or Path(config.name), MODEL_FILES)

    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if options.corpus is None:
        data = prepare_data(_data_config(options), options.data)
    else:
        data = rebuild_data(pair_corpus(options.corpus), options.data)
    result = train(config, data, options.out or Path(config.name))
    _print(f"{result.folder}: {result.loss:.3f} nats per token on held-out real files, {result.history[-1]['seconds']:.0f} s")


def _data_config(options: argparse.Namespace) -> Any:
    import sysconfig

    from sparse_lens.data import DataConfig, DatasetSource, SourceFolder, StandardLibrary

    names = [path.name for path in options.source]
    sources: list[Any] = [
        SourceFolder(str(path), name=path.name if names.count(path.name) == 1 else path.as_posix()) for path in options.source
    ]
    if options.dataset:
        sources.append(DatasetSource(options.dataset, column=options.column))
    if not sources:
        sources.append(StandardLibrary())
    if options.site_packages:
        sources.append(SourceFolder(sysconfig.get_paths()["purelib"], cap_mb=options.site_packages, name="site-packages"))
    return DataConfig(sources=tuple(sources), generated_share=options.generated_share)


def _add_patch(commands: Any) -> None:
    parser = _command(
        commands,
        "patch",
        _patch,
        "activation patching on a task",
        "Run TransformerLens' activation patching (clean into corrupt) on a task: every head, and attention and MLP output "
        "at every position.",
    )
    parser.add_argument("model", help="name of a shipped model, or a model's folder")
    parser.add_argument("task", help="name of a task; a wrong name lists the nearest")
    parser.add_argument("--pairs", type=int, default=16, help="prompt pairs of one length")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--out", type=Path, default=None, help="write a page with the heat maps here (an .html file)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")


def _patch(options: argparse.Namespace) -> None:
    from sparse_lens.comparisons import patch_task
    from sparse_lens.hooks import load
    from sparse_lens.report import patching_table, write_patching_page

    table = patch_task(load(options.model), options.task, n_pairs=options.pairs, seed=options.seed)
    result = {"task": table.task, "models": {str(options.model): table.to_plain()}}
    if options.json:
        _print_json(result)
    else:
        _print_rich(patching_table(result))
    if options.out is not None:
        write_patching_page(result, options.out)
        _note(options, f"wrote {options.out}")


def _add_circuit(commands: Any) -> None:
    parser = _command(
        commands,
        "circuit",
        _circuit,
        "find a task's circuit in a model",
        "Learn which nodes a task needs under mean ablation, and print the smallest circuit found, its scores and its edges.",
    )
    parser.add_argument("model", help="name of a shipped model, or a model's folder")
    parser.add_argument("task", help="name of a task; a wrong name lists the nearest")
    parser.add_argument("--target", type=float, default=0.15, help="two-token task loss to meet, in nats")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of the mask; default: the comparison's")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--out", type=Path, default=None, help="save the circuit in this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")


def _circuit(options: argparse.Namespace) -> None:
    from sparse_lens.circuits import circuit_edges, evaluate_circuit, find_circuit
    from sparse_lens.circuits.circuit import FILES
    from sparse_lens.files import check_writable
    from sparse_lens.hooks import load
    from sparse_lens.results import to_plain
    from sparse_lens.tasks import get_task

    config, task = _search_config(options), get_task(options.task)
    if options.out is not None:
        check_writable(options.out, FILES)
    bridge = load(options.model)
    circuit = find_circuit(bridge, task, target_loss=options.target, config=config, seed=options.seed)
    scores = evaluate_circuit(bridge, circuit, task.sample(bridge.tokenizer, 256, seed=options.seed, split="heldout"))
    edges = circuit_edges(bridge, circuit, task)
    if options.out is not None:
        circuit.save(options.out)
        _note(options, f"saved in {options.out}")
    if options.json:
        facts = {"task": circuit.task, "nodes": circuit.n_nodes, "loss": circuit.loss, "reached": circuit.reached}
        _print_json(facts | {"edges": edges, "scores": to_plain(scores.__dict__), "kept": circuit.kept(), "search": circuit.search})
        return
    met = "meets" if circuit.reached else "misses"
    _print(
        f"{circuit.n_nodes} nodes and {sum(edges.values())} edges; loss {circuit.loss:.3f} {met} the target {circuit.target_loss}"
    )
    _print_table("Nodes and edges", ["what", "count"], _circuit_rows(circuit, edges))
    rows = [[name.replace("_", " "), str(value)] for name, value in scores.__dict__.items()]
    _print_table("Scores on 256 held-out pairs", ["score", "value [95 % interval]"], rows)


def _search_config(options: argparse.Namespace) -> Any:
    from sparse_lens.circuits import SearchConfig
    from sparse_lens.errors import ConfigError

    if options.steps is None:
        return SearchConfig()
    if options.steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {options.steps}")
    return SearchConfig(steps=options.steps)


def _circuit_rows(circuit: Any, edges: dict[str, int]) -> list[list[str]]:
    nodes = [[f"nodes at {name}", str(len(kept))] for name, kept in circuit.kept().items() if kept]
    return nodes + [[f"edges: {kind}", str(count)] for kind, count in edges.items()]


def _add_compare(commands: Any) -> None:
    parser = _command(
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
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report")
    parser.add_argument("--seeds", type=int, default=1, help="search seeds")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of each mask, for a quicker or a better search")


def _compare(options: argparse.Namespace) -> None:
    from sparse_lens.report import check_report_folder

    check_report_folder(options.out)
    from sparse_lens.comparisons import compare
    from sparse_lens.report import comparison_table, models_table, patching_table, write_report
    from sparse_lens.results import to_plain
    from sparse_lens.tasks import available_tasks

    tasks = available_tasks() if options.tasks == ["all"] else options.tasks
    config = _search_config(options)
    comparison = compare(options.pair, tasks=tasks, seeds=options.seeds, config=config, command=_command_line())
    metrics = to_plain(comparison.metrics)
    write_report(metrics, options.out)
    _show_metrics(metrics, models_table, comparison_table, patching_table)
    _print(f"wrote {options.out / 'metrics.json'} and {options.out / 'index.html'}")


def _show_metrics(metrics: dict[str, Any], models_table: Any, comparison_table: Any, patching_table: Any) -> None:
    _print_rich(models_table(metrics))
    _print_rich(comparison_table(metrics))
    if metrics.get("patching"):
        _print_rich(patching_table(metrics["patching"]))
    _print("What this run cannot tell you:\n" + "\n".join(f"  - {sentence}" for sentence in metrics["verdict"]))


def _add_report(commands: Any) -> None:
    parser = _command(
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
    _print(f"wrote {options.out / 'index.html'}")


def _add_bench(commands: Any) -> None:
    parser = _command(
        commands,
        "bench",
        _bench,
        "measure speed and memory on this machine",
        "Time this package's parts against the named alternatives, in one run on this machine.",
    )
    parser.add_argument("names", nargs="*", help="benchmarks to run; default: all but the long ones")
    parser.add_argument("--all", action="store_true", help="also those that take minutes (the whole comparison)")
    parser.add_argument("--json", action="store_true", help="print a JSON list for programs")


def _bench(options: argparse.Namespace) -> None:
    from sparse_lens.benchmarks import run_benchmarks

    rows = run_benchmarks(options.names, include_long=options.all)
    if options.json:
        _print_json(rows)
        return
    cells = [[row["name"], row["measured"], row["compared_with"], row["ratio"]] for row in rows]
    _print_table("Benchmarks on this machine", ["what", "measured", "compared with", "ratio"], cells, names=False)


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _note(options: argparse.Namespace, text: str) -> None:
    """A remark that must not get between a program and its JSON."""
    (sys.stderr if options.json else sys.stdout).write(text + "\n")


def _print_json(content: Any) -> None:
    _print(json.dumps(content, indent=1))


def _print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, names: bool = True) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, no_wrap=names and index == 0)  # names are there to be copied
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _print_rich(table)


def _print_rich(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
