"""The documentation's table of tasks, and its examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparse_lens.tasks import available_tasks, get_task
from sparse_lens.tasks.listing import task_table
from sparse_lens.tasks.registry import _TASKS

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "tasks.md"


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text()
    table = text.partition("<!-- table: tasks -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == task_table(name for name in available_tasks() if name != "tuple_list")


@pytest.mark.slow
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_TASKS, "tuple_list", get_task("bracket_brace"))
    monkeypatch.delitem(_TASKS, "tuple_list")
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(example, str(PAGE), "exec"), {})
