"""The README's and the tutorial's Python examples run as they stand there."""

from __future__ import annotations

import re
import shutil
import textwrap
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


@pytest.mark.slow
def test_example_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On this package's own code."""
    shutil.copytree(ROOT / "sparse_lens" / "training", tmp_path / "my-code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    (code,) = examples(ROOT / "docs" / "pages" / "training.md")
    exec(code, {})
    loss, density = map(float, capsys.readouterr().out.split()[-2:])
    assert 0 < loss < 8 and 0 < density < 1


def test_example_of_a_shipped_dictionary(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = examples(ROOT / "docs" / "pages" / "tools.md")
    exec(textwrap.dedent(code), {})
    assert "1024" in capsys.readouterr().out


def test_the_readme_and_the_guide_give_the_same_sizes() -> None:
    """Nodes and edges of the shipped pair stand in both; they come from one run."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    short = [row.split(" | ") for row in re.findall(r"^\| (\w+ \|(?: [\d,]+ / [\d,—]+ \|){4})$", readme, flags=re.MULTILINE)]
    guide = (ROOT / "docs" / "pages" / "comparing.md").read_text(encoding="utf-8")
    column = r"^\| (\w*) \| \w+ \|(?:[^|]*\|){3} ([\d,]+) \| ([\d,]+|—)"
    long = [(task, f"{nodes} / {edges}") for task, nodes, edges in re.findall(column, guide, flags=re.MULTILINE)]
    assert len(short) == 5 and len(long) == 20
    order = [0, 2, 1, 3]  # the README puts the matched model before the twin
    for number, (task, *cells) in enumerate(short):
        found = long[4 * number : 4 * number + 4]
        assert found[0][0] == task and [found[place][1] for place in order] == [cell.strip(" |") for cell in cells]
