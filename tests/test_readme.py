"""The README's and the tutorial's Python examples run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def examples(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_first_example_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """Load a shipped model and patch every head, in ten lines."""
    code = examples(ROOT / "README.md")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict[str, object] = {}
    exec(code, names)
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_examples_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in examples(ROOT / "docs" / "pages" / "tutorial.md"):
        exec(code, names)
    assert (tmp_path / "quote-circuit" / "circuit.json").is_file()
