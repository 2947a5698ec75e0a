"""The tasks as a table: `python -m sparse_lens.tasks.listing` prints the one of the documentation."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable

from sparse_lens.tasks.registry import available_tasks, get_task
from sparse_lens.tasks.slots import fill, take_side
from sparse_lens.tasks.task import Task


def task_table(names: Iterable[str]) -> str:
    """A Markdown table: name, what it is, and how the prompts of the first search template end, each with its answer."""
    rows = ["| task | what decides | clean ends in | corrupt ends in |", "|---|---|---|---|"]
    for name in names:
        task = get_task(name)
        sides = _ends(task) if isinstance(task, Task) else ("", "")
        rows.append(f"| `{name}` | {task.description} | {sides[0]} | {sides[1]} |")
    return "\n".join(rows)


def _ends(task: Task) -> tuple[str, str]:
    filled = fill(task.search[0], task.search_words, random.Random(0))
    return _end(take_side(filled, 0)[0], task.answers[0]), _end(take_side(filled, 1)[0], task.answers[1])


def _end(prompt: str, answer: str) -> str:
    """The last line and the answer, as code in a table's cell."""
    line = prompt.rpartition("\n")[2]
    return f"`` {line} `` → `` {answer!r} ``".replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(task_table(available_tasks()) + "\n")
