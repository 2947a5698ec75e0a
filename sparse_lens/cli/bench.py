"""`sparse-lens bench`."""

from __future__ import annotations

import argparse
from typing import Any

from sparse_lens.cli.printing import add_command, print_json, print_table


def add_bench(commands: Any) -> None:
    parser = add_command(
        commands,
        "bench",
        _bench,
        "measure speed and memory on this machine",
        "Time this package's parts against the named alternatives, in one run on this machine.",
    )
    parser.add_argument("names", nargs="*", help="benchmarks to run; default: all but the long ones; `full` takes hours")
    parser.add_argument("--all", action="store_true", help="also those that take minutes (the default comparison)")
    parser.add_argument("--json", action="store_true", help="print a JSON list for programs")


def _bench(options: argparse.Namespace) -> None:
    from sparse_lens.benchmarks import run_benchmarks

    rows = run_benchmarks(options.names, include_long=options.all)
    if options.json:
        print_json(rows)
        return
    cells = [[row["name"], row["measured"], row["compared_with"], row["ratio"]] for row in rows]
    print_table("Benchmarks on this machine", ["what", "measured", "compared with", "ratio"], cells, names=False)
