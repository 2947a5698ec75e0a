"""`sparse-lens claims`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_lens.cli.comparing import named_folder
from sparse_lens.cli.printing import add_command, command_line, print_json, print_line, print_rich
from sparse_lens.errors import ConfigError


def add_claims(commands: Any) -> None:
    parser = add_command(
        commands,
        "claims",
        _claims,
        "re-test the claims about weight-sparse models",
        "Measure each neighbouring claim (superposition, compositionality, predictability, fracture, binding, shift and more) on "
        "the sparse model and the dense one of equal loss, over the pair's training seeds and beside controls; say of each: "
        "supports, contradicts, indistinguishable, or not measurable.",
    )
    parser.add_argument(
        "--pair",
        action="append",
        default=None,
        metavar="PAIR",
        help="a shipped pair (with its training seeds), or a folder with a pair.json; repeated: one for each training seed "
        "(default: python)",
    )
    for role in ("sparse", "dense-matched"):
        parser.add_argument(
            f"--{role}",
            action="append",
            default=[],
            metavar="MODEL",
            help=f"another model (shipped, by name, or a folder) as the {role} one; repeated: one for each training seed",
        )
    parser.add_argument("--only", nargs="+", default=None, metavar="CLAIM", help="ids of claims, such as T1a or FRACTURE")
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="a model that takes the dense one's place in T1b, such as a pruned one; repeated with one NAME: its training seeds",
    )
    parser.add_argument(
        "--kept",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a claims.json of other models, or a table of doses or of depths: its rows of claims that need models "
        "of their own (T3a, DEPTH, BIND, arms of T1b) are put in where this run has none",
    )
    parser.add_argument("--smoke", action="store_true", help="one pair, and as little as runs everything; to try it out")
    parser.add_argument("--out", type=Path, default=Path("claims"), help="folder of the page, the JSON and the tables")
    parser.add_argument("--cache", type=Path, default=None, metavar="DIR", help="what is done is kept there (default: OUT.cells)")
    parser.add_argument("--literature", type=Path, default=None, metavar="FILE", help="a YAML of publications in place of ours")
    parser.add_argument("--workers", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--json", action="store_true", help="print the content of claims.json instead of the table")


def _claims(options: argparse.Namespace) -> None:
    from sparse_lens.report.verdicts import check_claims_folder, claims_table, scope_lines, write_claims

    check_claims_folder(options.out)
    from sparse_lens.comparisons import claims

    arms: dict[str, list[str]] = {}
    for arm in options.arm:
        name, folder = named_folder(arm)
        arms.setdefault(name, []).append(folder)
    cache = options.cache or options.out.with_name(options.out.name + ".cells")
    report = claims(
        _pairs(options),
        only=options.only,
        arms=arms,
        kept=options.kept,
        smoke=options.smoke,
        cache=cache,
        literature=options.literature,
        workers=options.workers,
        command=command_line(),
    )
    content = report.to_plain()
    page = write_claims(content, options.out)
    if options.json:
        print_json(content)
        return
    print_rich(claims_table(content))
    for line in scope_lines(content):
        print_line(line)
    print_line(f"wrote {page.parent / 'claims.json'} and {page}")


def _pairs(options: argparse.Namespace) -> Any:
    pairs = options.pair or ["python"]
    if not options.sparse and not options.dense_matched:
        return pairs
    from sparse_lens.comparisons.instrument.running import pairs_of_models

    if len(pairs) > 1:
        raise ConfigError("give one --pair, whose windows and tasks the models of --sparse and --dense-matched are measured on")
    return pairs_of_models(pairs[0], sparse=options.sparse, dense_matched=options.dense_matched)
