"""Tables are put between their own markers, or nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.errors import DataError


def test_tables_stand_between_their_own_markers(tmp_path: Path) -> None:
    """What is outside stays; a table without its own end, an unknown one, and a page that is not there change nothing."""
    page = tmp_path / "page.md"
    whole = "one\n<!-- table: a -->\nold\n<!-- end -->\ntwo\n<!-- table: b -->\n<!-- end -->\nthree\n"
    page.write_text(whole)
    write_tables(page, {"a": "new", "b": "also"})
    written = page.read_text()
    assert written == whole.replace("old", "new").replace("b -->\n", "b -->\nalso\n")
    page.write_text(broken := written.replace("<!-- end -->\ntwo", "two"))
    for tables in ({"b": "x", "a": "y"}, {"b": "x", "c": "y"}):
        with pytest.raises(DataError, match="followed by its own"):
            write_tables(page, tables)
        assert page.read_text() == broken
    with pytest.raises(DataError, match="cannot be read"):
        write_tables(tmp_path / "none.md", {"a": "x"})
