"""Tables of a page that are written anew: each between `<!-- table: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparse_lens.errors import DataError
from sparse_lens.files import new_file


def write_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between its markers; raises `DataError`, and changes nothing, if they are not there."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, found, rest = text.partition(f"<!-- table: {name} -->\n")
        if not found or "<!-- end -->" not in rest:
            raise DataError(f"{page} has no marker <!-- table: {name} --> followed by <!-- end -->")
        text = before + found + table + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    with new_file(page) as path:
        path.write_text(text, encoding="utf-8")
