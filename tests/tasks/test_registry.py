import pytest

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks import Task, available_tasks, get_task, register_task
from sparse_lens.tasks.registry import _TASKS

THE_TWENTY = """
    single_double_quote bracket_counting set_or_string set_or_string_fixedvarname with_as with_open for_while else_elif if_ternary
    if_equals fstring_brace bracket_brace var_swap var_if indent_for while_return_true lambda_func enumerate_range final_kwarg
    class_init
"""
"""The names of arXiv:2511.13653."""


def test_tasks_are_listed_and_controls_only_if_asked() -> None:
    assert sorted(available_tasks()) == sorted(THE_TWENTY.split())
    assert available_tasks(controls=True) == [*available_tasks(), "nonsense_quote", "nonsense_quote_1", "nonsense_quote_2"]
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
    with pytest.raises(DataError, match="marks the controls"):
        register_task(Task("my~own", "One of my own.", (":", ")"), (template,), (template,)))
