"""`sparse-lens patch` and `sparse-lens circuit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_lens.cli.printing import add_command, note, print_json, print_line, print_rich, print_table


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
    from sparse_lens.circuits.circuit_files import FILES
    from sparse_lens.files import check_writable
    from sparse_lens.hooks import load
    from sparse_lens.results import to_plain
    from sparse_lens.tasks import get_task

    config, task = search_config(options), get_task(options.task)
    if options.out is not None:
        check_writable(options.out, FILES)
    bridge = load(options.model)
    circuit = find_circuit(bridge, task, target_loss=options.target, config=config, seed=options.seed)
    scores = evaluate_circuit(bridge, circuit, task.sample(bridge.tokenizer, 256, seed=options.seed, split="heldout"))
    edges = circuit_edges(bridge, circuit, task)
    if options.out is not None:
        circuit.save(options.out)
        note(options, f"saved in {options.out}")
    if options.json:
        facts = {"task": circuit.task, "nodes": circuit.n_nodes, "loss": circuit.loss, "reached": circuit.reached}
        print_json(facts | {"edges": edges, "scores": to_plain(scores.__dict__), "kept": circuit.kept(), "search": circuit.search})
        return
    met = "meets" if circuit.reached else "misses"
    print_line(
        f"{circuit.n_nodes} nodes and {sum(edges.values())} edges; loss {circuit.loss:.3f} {met} the target {circuit.target_loss}"
    )
    print_table("Nodes and edges", ["what", "count"], _circuit_rows(circuit, edges))
    rows = [[name.replace("_", " "), str(value)] for name, value in scores.__dict__.items()]
    print_table("Scores on 256 held-out pairs", ["score", "value [95 % interval]"], rows)


def search_config(options: argparse.Namespace) -> Any:
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
