"""`metrics.csv`: one row a number, whatever its depth in `metrics.json`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from sparse_lens.report.contents import part
from sparse_lens.report.strings import csv_cell

FIELDS = ("section", "name", "column", "metric", "value", "lo", "hi", "null", "n", "seeds", "measurable", "reason")
_RESULT = FIELDS[4:]


def tidy_csv(metrics: Mapping[str, Any]) -> str:
    """The numbers under `models`, `tasks` and `summary`; what is not measurable has an empty value and its reason."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(FIELDS)
    for section in ("models", "tasks", "summary"):
        for path, result in _results(part(metrics, section)):
            row = (section, *_place(section, path), *(result.get(field) for field in _RESULT))
            writer.writerow([csv_cell(cell) for cell in row])
    return written.getvalue()


def _results(content: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for key, value in content.items():
        if not isinstance(value, Mapping):
            continue
        if "value" in value and "measurable" in value:
            yield (*path, key), value
        else:
            yield from _results(value, (*path, key))


def _place(section: str, path: tuple[str, ...]) -> tuple[str, str, str]:
    """Name, column and metric of a number from the keys that lead to it."""
    if section == "summary":
        return "", "", ".".join(path)
    if section == "tasks" and len(path) > 3 and path[1] == "columns":
        return path[0], path[2], ".".join(path[3:])
    return "".join(path[:1]), "", ".".join(path[1:])
