"""Tables of a page that are written anew: each between `<!-- table: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparse_lens.errors import DataError
from sparse_lens.files import new_file


def write_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between its markers; raises `DataError`, and changes nothing, if they are not there, or the page is not."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"the page {page} cannot be read ({error}); name one that has the tables' markers") from error
    for name, table in tables.items():
        before, found, rest = text.partition(f"<!-- table: {name} -->\n")
        old, end, after = rest.partition("<!-- end -->")
        if not found or not end or "<!-- table: " in old:
            raise DataError(f"{page} has no marker <!-- table: {name} --> followed by its own <!-- end -->")
        text = before + found + table + "\n" + end + after
    with new_file(page) as path:
        path.write_text(text, encoding="utf-8")
