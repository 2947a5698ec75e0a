"""`sparse-lens patch` and `sparse-lens circuit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_lens.cli.printing import add_command, note, print_json, print_line, print_rich, print_table

_ABLATIONS = ("mean", "zero", "counterfactual", "resample")


def add_patch(commands: Any) -> None:
    parser = add_command(
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
        print_json(result)
    else:
        print_rich(patching_table(result))
    if options.out is not None:
        write_patching_page(result, options.out)
        note(options, f"wrote {options.out}")


def add_circuit(commands: Any) -> None:
    parser = add_command(
        commands,
        "circuit",
        _circuit,
        "find a task's circuit in a model",
        "Learn which nodes a task needs, and which weights between them, and print the smallest circuit found and its scores.",
    )
    parser.add_argument("model", nargs="?", help="name of a shipped model, or a model's folder")
    parser.add_argument("task", nargs="?", help="name of a task; a wrong name lists the nearest")
    parser.add_argument("--model", dest="model_option", metavar="MODEL", default=None, help="the same, as an option")
    parser.add_argument("--task", dest="task_option", metavar="TASK", default=None, help="the same, as an option")
    parser.add_argument("--pairs-file", type=Path, default=None, help="prompt pairs of one's own (.csv or .jsonl) as the task")
    parser.add_argument("--target", type=float, default=0.15, help="two-token task loss to meet, in nats")
    parser.add_argument("--ablation", default="mean", choices=_ABLATIONS, help="what stands in for nodes that are not kept")
    parser.add_argument("--frozen-norms", action="store_true", help="norms divide as they do in the whole model")
    parser.add_argument("--edges", action="store_true", help="then search the edges between the nodes as well")
    parser.add_argument("--published", action="store_true", help="search as arXiv:2511.13653 does (2,000 steps, a fixed price)")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of the mask; default: the comparison's")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--out", type=Path, default=None, help="save the circuit in this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")


def _circuit(options: argparse.Namespace) -> None:
    from sparse_lens.circuits import evaluate_circuit, find_circuit, find_edges
    from sparse_lens.circuits.circuit_files import FILES
    from sparse_lens.files import check_writable
    from sparse_lens.hooks import load

    config, task = search_config(options), _task(options)
    if options.out is not None:
        check_writable(options.out, FILES)
    bridge = load(_model(options))
    how = {"target_loss": options.target, "config": config, "seed": options.seed}
    circuit = find_circuit(bridge, task, ablation=options.ablation, frozen_norms=options.frozen_norms, **how)
    if options.edges:
        circuit = find_edges(bridge, circuit, task, **how)
    scores = evaluate_circuit(bridge, circuit, task.sample(bridge.tokenizer, 256, seed=options.seed, split="heldout"))
    if options.out is not None:
        circuit.save(options.out)
        note(options, f"saved in {options.out}")
    _show_circuit(options, circuit, _edge_counts(bridge, circuit, task), scores)


def _model(options: argparse.Namespace) -> str:
    from sparse_lens.errors import ConfigError

    if (options.model is None) == (options.model_option is None):
        raise ConfigError("name one model: `sparse-lens circuit MODEL TASK`, or --model MODEL")
    return str(options.model or options.model_option)


def _task(options: argparse.Namespace) -> Any:
    """The task, by name or from a file of pairs."""
    from sparse_lens.errors import ConfigError
    from sparse_lens.tasks import get_task, task_from_file

    if options.model_option is not None and options.model is not None and options.task is None:
        options.model, options.task = None, options.model  # with --model, the one name that is left is the task's
    given = [options.task, options.task_option, options.pairs_file]
    if sum(value is not None for value in given) != 1:
        raise ConfigError("name one task: `sparse-lens circuit MODEL TASK`, --task TASK, or --pairs-file FILE")
    return task_from_file(options.pairs_file) if options.pairs_file else get_task(options.task or options.task_option)


def _edge_counts(bridge: Any, circuit: Any, task: Any) -> dict[str, int]:
    """Edges by kind: those that a search has kept, or all weights between the nodes."""
    from sparse_lens.circuits import circuit_edges

    return circuit_edges(bridge, circuit, task) if circuit.edges is None else circuit.edges.kept.counts()


def _show_circuit(options: argparse.Namespace, circuit: Any, edges: dict[str, int], scores: Any) -> None:
    from sparse_lens.results import to_plain

    if options.json:
        facts = {"task": circuit.task, "nodes": circuit.n_nodes, "loss": circuit.loss, "reached": circuit.reached}
        facts |= {"ablation": circuit.ablation, "frozen_norms": circuit.frozen_norms, "edges_searched": circuit.edges is not None}
        print_json(facts | {"edges": edges, "scores": to_plain(scores.__dict__), "kept": circuit.kept(), "search": circuit.search})
        return
    met = "meets" if circuit.reached else "misses"
    print_line(
        f"{circuit.n_nodes} nodes and {sum(edges.values())} edges; loss {circuit.loss:.3f} {met} the target {circuit.target_loss}"
    )
    print_table("Nodes and edges", ["what", "count"], _circuit_rows(circuit, edges))
    rows = [[name.replace("_", " "), str(value)] for name, value in scores.__dict__.items()]
    print_table("Scores on held-out pairs", ["score", "value [95 % interval]"], rows)


def search_config(options: argparse.Namespace) -> Any:
    from sparse_lens.circuits import SearchConfig
    from sparse_lens.errors import ConfigError

    if options.steps is not None and options.steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {options.steps}")
    make = SearchConfig.published if getattr(options, "published", False) else SearchConfig
    return make() if options.steps is None else make(steps=options.steps)


def _circuit_rows(circuit: Any, edges: dict[str, int]) -> list[list[str]]:
    nodes = [[f"nodes at {name}", str(len(kept))] for name, kept in circuit.kept().items() if kept]
    return nodes + [[f"edges: {kind}", str(count)] for kind, count in edges.items()]
