"""`sparse-lens models` and `sparse-lens check`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sparse_lens.cli.printing import MODEL_HELP, add_command, number, print_json, print_line, print_table


def add_models(commands: Any) -> None:
    parser = add_command(
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
        print_json(shipped + released)
        return
    rows = [[m["name"], f"{m['matrix_nonzeros']:,}", f"{m['loss']:.3f}", _what(m)] for m in shipped]
    print_table("Shipped models", ["name", "weights", "loss", "what it is"], rows)
    print_line("Weights: nonzeros of matrices, without the bigram table, biases and gains. Loss: nats per token on held-out files.")
    rows = [[m["name"], m["about"] + (f" (fetched: {number(m['cached'])} bytes)" if m["cached"] else "")] for m in released]
    print_table("Released models", ["name", "what it is"], rows)


def _what(model: Mapping[str, Any]) -> str:
    """What a model is, in a word for one that differs from another by its training seed alone."""
    _, _, seed = model["name"].partition("-seed")
    return f"training seed {seed}" if seed else model["about"]


def add_check(commands: Any) -> None:
    parser = add_command(
        commands,
        "check",
        _check,
        "load a model and look for problems",
        "Load a model, compare its bridge with the bare forward pass, and print configuration, densities, dead parts, edges and "
        "hook points; with --published, compare a released model with what is published of it.",
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--published", action="store_true", help="a released model against its published figures (needs a network)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")


def _check(options: argparse.Namespace) -> None:
    from sparse_lens.hooks import check_model, check_published

    if options.published:
        figures = check_published(options.model)
        if options.json:
            print_json([figure.__dict__ for figure in figures])
            return
        verdict = {True: "agrees", False: "DIFFERS", None: ""}
        rows = [[figure.what, figure.published, figure.found, verdict[figure.agrees]] for figure in figures]
        print_table(f"{options.model} against what is published", ["what", "published", "found", ""], rows)
        return
    found = check_model(options.model)
    if options.json:
        print_json(found.to_plain())
        return
    print_table("Configuration", ["field", "value"], [[name, str(value)] for name, value in found.config.items()])
    print_table("Density of each matrix", ["matrix", "nonzeros"], [[n, f"{d:.2%}"] for n, d in found.densities.items()])
    print_table("Edges (nonzero weights)", ["kind", "count"], [[kind, f"{count:,}"] for kind, count in found.edges.items()])
    print_line(f"{found.parameters:,} parameters, {found.nonzeros:,} of them not zero")
    print_line(
        f"dead neurons by layer: {', '.join(map(str, found.dead_neurons))}; dead heads: {', '.join(map(str, found.dead_heads))}"
    )
    layer_hooks = [name for name in found.hook_points if not name.startswith("blocks.") or name.startswith("blocks.0.")]
    print_line(f"{len(found.hook_points)} hook points; those of layer 0 and of no layer:\n  " + "\n  ".join(layer_hooks))
    print_line(f"bridge against core: largest difference of logits {found.largest_difference:.2e}")
    print_line("problems: " + ("none" if not found.problems else "".join(f"\n  - {problem}" for problem in found.problems)))
