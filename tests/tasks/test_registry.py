import pytest

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks import Task, available_tasks, get_task, register_task
from sparse_lens.tasks.registry import _TASKS


def test_tasks_are_listed_and_controls_only_if_asked() -> None:
    assert available_tasks() == [
        "single_double_quote",
        "bracket_counting",
        "set_or_string",
        "while_return_true",
        "if_equals",
        "enumerate_range",
        "with_as",
        "bracket_brace",
        "for_while",
        "lambda_func",
    ]
    assert available_tasks(controls=True) == [*available_tasks(), "nonsense_quote"]
    assert get_task("nonsense_quote").control


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="single_double_quote"):
        get_task("single_double_quotes")


def test_register_task(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "«a|b»<letter>"
    task = Task("mine", "One of my own.", (":", ")"), (template,), (template,))
    monkeypatch.setitem(_TASKS, "mine", task)
    register_task(task)
    assert get_task("mine") is task
    assert available_tasks()[-1] == "mine"
    with pytest.raises(DataError, match="registered already"):
        register_task(Task("mine", "Another.", (":", ")"), (template,), (template,)))
