"""The documentation keeps up with the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"


@pytest.mark.parametrize("page", ["tools-transformerlens-3.md", "tools-transformerlens-4.md"])
def test_every_tested_tool_has_its_row(page: str) -> None:
    """Else write the pages anew: `pytest -n 0 tests/hooks -m '' --tool-page FILE`, in both environments."""
    named = set()
    for path in (ROOT / "tests" / "hooks").glob("test_*.py"):
        named |= set(re.findall(r"mark\.tool\(\s*\"([^\"]+)\"", path.read_text(encoding="utf-8")))
    rows = re.findall(r"^\| (.+?) \| (yes|no|not here) \|", (PAGES / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {tool for tool, _ in rows} == named
    assert not [tool for tool, works in rows if works == "no"]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    assert {path.name for path in PAGES.glob("*.md")} == set(re.findall(r"[\w-]+\.md", navigation))
