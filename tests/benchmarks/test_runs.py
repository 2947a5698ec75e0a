"""Which benchmarks run when; their figures are no test's business."""

from __future__ import annotations

import pytest

from sparse_lens.benchmarks import available_benchmarks, run_benchmarks, runs
from sparse_lens.benchmarks.timing import row
from sparse_lens.errors import UnknownNameError


def test_hours_run_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short ones by default, long ones with all, those of hours only if they are asked for."""
    for group, name in (("_SHORT", "short"), ("_LONG", "long"), ("_HOURS", "hours")):
        monkeypatch.setattr(runs, group, {name: lambda name=name: [row(name, "1 s", "2 s", 2.0)]})
    assert available_benchmarks() == ["short", "long", "hours"]

    def ran(*names: str, include_long: bool = False) -> list[str]:
        return [measured["name"] for measured in run_benchmarks(names, include_long=include_long)]

    assert ran() == ["short"] and ran(include_long=True) == ["short", "long"] and ran("hours", "short") == ["hours", "short"]
    with pytest.raises(UnknownNameError, match="hours"):
        run_benchmarks(["hour"])
