"""What every subcommand prints with: lines, tables, JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL_HELP = "name of a shipped or released model, a model's folder, or an id on the Hugging Face hub"


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of an option where it has one and its help does not say it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing or "default" in (action.help or "") else super()._get_help_string(action)


def add_command(commands: Any, name: str, run: Any, summary: str, description: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=DefaultsFormatter)
    parser.set_defaults(run=run)
    return parser


def command_line() -> str:
    name = Path(sys.argv[0]).name
    return shlex.join(["sparse-lens" if name == "__main__.py" else name, *sys.argv[1:]])


def number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")


def note(options: argparse.Namespace, text: str) -> None:
    """A remark that must not get between a program and its JSON."""
    (sys.stderr if options.json else sys.stdout).write(text + "\n")


def print_json(content: Any) -> None:
    print_line(json.dumps(content, indent=1))


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, names: bool = True) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, no_wrap=names and index == 0)  # names are there to be copied
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    print_rich(table)


def print_rich(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
