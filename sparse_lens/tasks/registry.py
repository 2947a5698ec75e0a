"""The registry of tasks by name."""

from __future__ import annotations

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks.argument_tasks import FINAL_KWARG, FSTRING_BRACE, IF_TERNARY
from sparse_lens.tasks.batch import AnyTask
from sparse_lens.tasks.block_tasks import CLASS_INIT, ELSE_ELIF, INDENT_FOR, WITH_OPEN
from sparse_lens.tasks.bracket_tasks import BRACKET_BRACE, BRACKET_COUNTING
from sparse_lens.tasks.controls import MARK, control_of
from sparse_lens.tasks.header_tasks import ENUMERATE_RANGE, FOR_WHILE, WITH_AS
from sparse_lens.tasks.keyword_tasks import IF_EQUALS, LAMBDA_FUNC, WHILE_RETURN_TRUE
from sparse_lens.tasks.name_tasks import SET_OR_STRING, SET_OR_STRING_FIXEDVARNAME, VAR_IF, VAR_SWAP
from sparse_lens.tasks.quote_tasks import NONSENSE_QUOTE, OTHER_NONSENSE, SINGLE_DOUBLE_QUOTE

_TASKS: dict[str, AnyTask] = {
    task.name: task
    for task in (
        *(SINGLE_DOUBLE_QUOTE, BRACKET_COUNTING, SET_OR_STRING, WHILE_RETURN_TRUE, IF_EQUALS),
        *(ENUMERATE_RANGE, WITH_AS, BRACKET_BRACE, FOR_WHILE, LAMBDA_FUNC),
        *(SET_OR_STRING_FIXEDVARNAME, WITH_OPEN, ELSE_ELIF, IF_TERNARY, FSTRING_BRACE),
        *(VAR_SWAP, VAR_IF, INDENT_FOR, FINAL_KWARG, CLASS_INIT),
        *(NONSENSE_QUOTE, *OTHER_NONSENSE),
    )
}


def available_tasks(*, controls: bool = False) -> list[str]:
    """Return the names of the registered tasks in order of registration; controls only if asked."""
    return [name for name, task in _TASKS.items() if controls or not task.control]


def get_task(name: str) -> AnyTask:
    """Return a task or control by name; raise `UnknownNameError`, which offers the nearest names.

    `NAME~shuffled` and `NAME~random` (`-1`, `-2` for other draws) are the controls of `sparse_lens.tasks.controls`.
    """
    base, mark, suffix = name.partition(MARK)
    if base not in _TASKS:
        raise UnknownNameError("task", base, _TASKS)
    return control_of(_TASKS[base], suffix) if mark else _TASKS[base]


def register_task(task: AnyTask) -> None:
    """Add a task of one's own; raise `DataError` if its name is taken by a different one, or cannot be one."""
    if not task.name or MARK in task.name:
        raise DataError(f"a task cannot be named {task.name!r}: {MARK!r} marks the controls")
    if _TASKS.get(task.name, task) != task:
        raise DataError(f"a task named {task.name!r} is registered already; choose another name")
    _TASKS[task.name] = task
