"""The registry of tasks by name."""

from __future__ import annotations

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks.bracket_tasks import BRACKET_BRACE, BRACKET_COUNTING
from sparse_lens.tasks.keyword_tasks import (
    ENUMERATE_RANGE,
    FOR_WHILE,
    IF_EQUALS,
    LAMBDA_FUNC,
    WHILE_RETURN_TRUE,
    WITH_AS,
)
from sparse_lens.tasks.name_tasks import SET_OR_STRING
from sparse_lens.tasks.quote_tasks import NONSENSE_QUOTE, SINGLE_DOUBLE_QUOTE
from sparse_lens.tasks.task import Task

_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(
            SINGLE_DOUBLE_QUOTE,
            BRACKET_COUNTING,
            SET_OR_STRING,
            WHILE_RETURN_TRUE,
            IF_EQUALS,
            ENUMERATE_RANGE,
        ),
        *(WITH_AS, BRACKET_BRACE, FOR_WHILE, LAMBDA_FUNC, NONSENSE_QUOTE),
    )
}


def available_tasks(*, controls: bool = False) -> list[str]:
    """Return the names of the registered tasks in order of registration; controls only if asked."""
    return [name for name, task in _TASKS.items() if controls or not task.control]


def get_task(name: str) -> Task:
    """Return a task or control by name; raise `UnknownNameError`, which offers the nearest names."""
    if name not in _TASKS:
        raise UnknownNameError("task", name, _TASKS)
    return _TASKS[name]


def register_task(task: Task) -> None:
    """Add a task of one's own; raise `DataError` if its name is taken by a different one."""
    if _TASKS.get(task.name, task) != task:
        raise DataError(f"a task named {task.name!r} is registered already; choose another name")
    _TASKS[task.name] = task
