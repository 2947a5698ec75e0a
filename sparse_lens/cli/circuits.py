"""`sparse-lens patch` and `sparse-lens circuit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_lens.cli.printing import MODEL_HELP, add_command, command_line, note, print_json, print_line, print_rich, print_table

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
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("task", help="name of a task; a wrong name lists the nearest")
    parser.add_argument("--pairs", type=int, default=16, help="prompt pairs of one length")
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing prompts")
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
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    parser.add_argument("task", nargs="?", help="name of a task; a wrong name lists the nearest")
    parser.add_argument("--model", dest="model_option", metavar="MODEL", default=None, help="the same, as an option")
    parser.add_argument("--task", dest="task_option", metavar="TASK", default=None, help="the same, as an option")
    parser.add_argument("--pairs-file", type=Path, default=None, help="prompt pairs of one's own (.csv or .jsonl) as the task")
    parser.add_argument("--target", type=float, default=0.15, help="loss to meet, in nats")
    parser.add_argument(
        "--target-kind",
        default="task",
        choices=("task", "kl"),
        help="two-token task loss, or KL divergence from the whole model's own output",
    )
    parser.add_argument("--calibrate", action="store_true", help="fit scale and shift of the logits, of circuit and model, first")
    parser.add_argument("--ablation", default="mean", choices=_ABLATIONS, help="what stands in for nodes that are not kept")
    parser.add_argument("--frozen-norms", action="store_true", help="norms divide as they do in the whole model")
    parser.add_argument("--edges", action="store_true", help="then search the edges between the nodes as well")
    parser.add_argument("--published", action="store_true", help="search as arXiv:2511.13653 does (2,000 steps, a fixed price)")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of the mask; default: the comparison's")
    parser.add_argument(
        "--effort",
        type=_effort,
        default=None,
        metavar="N|converged",
        help="restarts x penalties x (steps + candidates), spent on restarts; or doubled until the size changes by less than 5 %%",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the search, and for drawing prompts")
    parser.add_argument(
        "--trust",
        default=None,
        choices=("quick", "full"),
        help="test how far the circuit can be trusted: without new searches (a minute), or with some fifteen of them",
    )
    parser.add_argument("--out", type=Path, default=None, help="save the circuit in this folder, and its card")
    parser.add_argument("--page", type=Path, default=None, help="draw the circuit, with a card for every node, in this .html file")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")


def _effort(text: str) -> int | str:
    if text == "converged":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number or 'converged', not {text!r}") from None


def _circuit(options: argparse.Namespace) -> None:
    from sparse_lens.circuits import score_circuit
    from sparse_lens.circuits.circuit_files import FILES
    from sparse_lens.files import check_writable
    from sparse_lens.hooks import load

    config, task = search_config(options), _task(options)
    if options.out is not None:
        check_writable(options.out, FILES)
    if options.page is not None:
        check_writable(options.page)
    name = _model(options)
    bridge = load(name)
    circuit = _search(options, bridge, task, config)
    if options.out is not None:
        circuit.save(options.out)
        note(options, f"saved in {options.out}")
    if circuit.search["interrupted"]:
        _show_circuit(options, circuit, _edge_counts(bridge, circuit, task), None, None)
        raise KeyboardInterrupt  # for the exit status
    scores = score_circuit(bridge, circuit, task.sample(bridge.tokenizer, 256, seed=options.seed, split="heldout"))
    card = _card(options, bridge, circuit, task)
    _show_circuit(options, circuit, _edge_counts(bridge, circuit, task), scores, card)
    if options.page is not None:
        _write_page(options, bridge, circuit, task, name, card)


def _card(options: argparse.Namespace, bridge: Any, circuit: Any, task: Any) -> Any:
    """The circuit's card, also saved beside it; None if none was asked for."""
    from sparse_lens.circuits import evaluate_circuit
    from sparse_lens.circuits.circuit_files import CARD_FILE
    from sparse_lens.files import new_file

    if options.trust is None:
        return None
    card = evaluate_circuit(bridge, circuit, task, effort=options.trust, seed=options.seed)
    if options.out is not None:
        with new_file(options.out / CARD_FILE) as path:
            path.write_text(card.to_json(), encoding="utf-8")
    return card


def _write_page(options: argparse.Namespace, bridge: Any, circuit: Any, task: Any, name: str, card: Any) -> None:
    from sparse_lens.report.circuit.page import look_at, write_circuit_page

    prompts = task.sample(bridge.tokenizer, 16, seed=options.seed, split="heldout")
    evaluation = None if card is None else card.to_plain()
    shown = look_at(
        bridge, circuit, prompts, name=f"{Path(name).name}, {task.name}", model=name, evaluation=evaluation, progress=True
    )
    write_circuit_page([shown], options.page, command=command_line())
    note(options, f"wrote {options.page}")


def _search(options: argparse.Namespace, bridge: Any, task: Any, config: Any) -> Any:
    """The circuit, of nodes or of edges, at one effort or a converged one."""
    from dataclasses import replace

    from sparse_lens.circuits import find_edges
    from sparse_lens.circuits.edges.search import edge_problem
    from sparse_lens.circuits.search.effort import converge
    from sparse_lens.circuits.search.growing import growing_edge_search, growing_search
    from sparse_lens.circuits.search.nodes import prepare_search, search_circuit
    from sparse_lens.circuits.search.objectives import Objective

    converged, how = options.effort == "converged", {"seed": options.seed, "progress": True}
    setup = {"ablation": options.ablation, "frozen_norms": options.frozen_norms}
    setup["objective"] = Objective(options.target_kind, options.calibrate)
    problem = prepare_search(bridge, task, config, **setup, **how)
    if converged:
        circuit = converge(growing_search(problem, options.target, **how), config).circuits[0]
    else:
        circuit = search_circuit(problem, options.target, config, keep_interrupted=True, **how)
    if not options.edges or circuit.search["interrupted"]:
        return circuit
    try:
        if not converged:
            return find_edges(bridge, circuit, task, config=config, seed=options.seed)
        edges = edge_problem(bridge, circuit, task, config, seed=options.seed)
        return converge(growing_edge_search(edges, circuit, circuit.target_loss, **how), config).circuits[0]
    except KeyboardInterrupt:  # before any edge was learned: the nodes are what there is
        return replace(circuit, search=circuit.search | {"interrupted": True})


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


_SHOWN = ("effort", "target_kind", "task_loss", "model_loss", "beats_model", "calibration", "interrupted", "convergence")
"""What a program reads of the record of a search, beside the record itself."""


def _show_circuit(options: argparse.Namespace, circuit: Any, edges: dict[str, int], scores: Any, card: Any) -> None:
    from sparse_lens.results import to_plain

    if options.json:
        facts = {"task": circuit.task, "nodes": circuit.n_nodes, "loss": circuit.loss, "reached": circuit.reached}
        facts |= {"ablation": circuit.ablation, "frozen_norms": circuit.frozen_norms, "edges_searched": circuit.edges is not None}
        facts |= {name: circuit.search.get(name) for name in _SHOWN}
        plain = None if scores is None else to_plain(scores.__dict__)
        facts |= {"edges": edges, "scores": plain, "kept": circuit.kept(), "search": circuit.search}
        print_json(facts if card is None else facts | {"card": card.to_plain()})
        return
    for line in _verdict(circuit, sum(edges.values())):
        print_line(line)
    print_table("Nodes and edges", ["what", "count"], _circuit_rows(circuit, edges))
    if scores is not None:
        rows = [[name.replace("_", " "), str(value)] for name, value in scores.__dict__.items()]
        print_table("Scores on held-out pairs", ["score", "value [95 % interval]"], rows)
    if card is not None:
        for title, rows in card_tables(card):
            print_table(title[:1].upper() + title[1:], ["what", "value, interval", "n"], rows, names=False)
        for line in card.verdict_lines:
            print_line(line)


def _verdict(circuit: Any, n_edges: int) -> list[str]:
    """The size, whether the target is met, how the circuit compares with its model, and what was spent."""
    search, size = circuit.search, f"{circuit.n_nodes} nodes and {n_edges} edges"
    kind = "loss" if search["target_kind"] == "task" else "KL divergence from the model"
    if circuit.reached:
        lines = [f"{size}; {kind} {circuit.loss:.3f} meets the target {circuit.target_loss}"]
    else:
        least = f"the best has {size} and a {kind} of {circuit.loss:.3f}"
        lines = [f"no circuit at the target {circuit.target_loss} was found; {least}"]
    own = f"task loss {search['task_loss']:.3f}, the whole model's on the same prompts {search['model_loss']:.3f}"
    lines.append(own + (": the circuit beats its own model" if search["beats_model"] else ""))
    if (fitted := search["calibration"]) is not None:
        without = f"{fitted['uncalibrated_loss']:.3f} without it"
        lines.append(f"logits calibrated, {fitted['scale']:.3g} * d + {fitted['shift']:.3g}; task loss {without}")
    lines.append(f"effort {search['effort']} model runs{_convergence(search)}")
    if search["interrupted"]:
        lines.append("interrupted: this is the best found by then")
    return lines


def _convergence(search: dict[str, Any]) -> str:
    if (record := search.get("convergence")) is None:
        return ""
    sizes = ", ".join(str(entry["nodes"] if entry["edges"] is None else entry["edges"]) for entry in record["history"])
    return f", {'settled' if record['settled'] else 'not settled'} (sizes {sizes})"


def search_config(options: argparse.Namespace) -> Any:
    from sparse_lens.circuits import SearchConfig
    from sparse_lens.errors import ConfigError

    if options.steps is not None and options.steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {options.steps}")
    make = SearchConfig.published if getattr(options, "published", False) else SearchConfig
    config = make() if options.steps is None else make(steps=options.steps)
    effort = getattr(options, "effort", None)
    return config.at_effort(effort) if isinstance(effort, int) else config


def _circuit_rows(circuit: Any, edges: dict[str, int]) -> list[list[str]]:
    nodes = [[f"nodes at {name}", str(len(kept))] for name, kept in circuit.kept().items() if kept]
    return nodes + [[f"edges: {kind}", str(count)] for kind, count in edges.items()]


def card_tables(card: Any) -> list[tuple[str, list[list[str]]]]:
    """What a card measured, section by section with their titles, the held-out scores apart."""
    from sparse_lens.circuits.trust.rows import ROWS

    tables, measured = [], card.sections()
    for section, (title, names) in ROWS.items():
        found = measured.get(section, {}) if section != "heldout" else {}
        rows = [
            [label, str(found[name]), str(found[name].n)]
            for name, label in names.items()
            if name in found and found[name].measurable
        ]
        tables += [(title, rows)] if rows else []
    return tables
