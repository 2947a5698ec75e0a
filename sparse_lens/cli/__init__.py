"""The command line: each subcommand calls one public function with one configuration, then shows what it returned.

Heavy packages are imported inside the subcommands, so that `sparse-lens --help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from sparse_lens.cli.bench import add_bench
from sparse_lens.cli.circuits import add_circuit, add_patch
from sparse_lens.cli.claiming import add_claims
from sparse_lens.cli.comparing import add_compare, add_report
from sparse_lens.cli.models import add_check, add_models
from sparse_lens.cli.training import add_train
from sparse_lens.errors import SparseLensError

_EPILOG = """examples:
  sparse-lens models                                   what ships with the package
  sparse-lens compare --out report                     the whole comparison, as a page that opens offline
  sparse-lens claims --out claims                      the neighbouring claims re-tested, with verdicts
  sparse-lens patch python-sparse if_equals            TransformerLens' activation patching on one task
  sparse-lens circuit python-sparse if_equals          the smallest circuit found for one task
  sparse-lens train --recipe smoke --out tiny          a small model, in about a minute
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
    for add in (add_models, add_check, add_train, add_patch, add_circuit, add_compare, add_claims, add_report, add_bench):
        add(commands)
    return parser
