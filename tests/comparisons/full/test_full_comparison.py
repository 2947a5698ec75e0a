"""`compare_fully` as a whole, each cell standing for itself: every part is assembled from its own cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparse_lens.comparisons.comparison import Comparison
from sparse_lens.comparisons.full import compare_fully, full_comparison, full_jobs, quick_plan
from sparse_lens.comparisons.jobs import Job
from sparse_lens.errors import UnknownNameError


def test_every_part_gets_its_own_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records carry their job's name; the plan has a further training seed, so that all groups are there."""

    def echo(jobs: list[Job], *_: Any, **__: Any) -> list[dict[str, Any]]:
        return [{"job": job.name, "folder": job.arguments.get("folder", ""), "boundaries": [], "losses": {}} for job in jobs]

    seen: dict[str, Any] = {}

    def recorded(*positional: Any, **named: Any) -> dict[str, Any]:
        seen.update(named, trained=positional[2])
        return {}

    monkeypatch.setattr(full_comparison, "run_jobs", echo)
    monkeypatch.setattr(full_comparison, "assemble", recorded)
    monkeypatch.setattr(full_comparison, "compare", lambda *_, **__: Comparison({"tasks": {}}))
    monkeypatch.setattr(full_jobs, "fingerprints", lambda *_: [])
    plan = quick_plan()
    object.__setattr__(plan, "training_seeds", 2)
    metrics = compare_fully("python", plan, cache=tmp_path, progress=False).metrics
    (widths, width_cells), groups = seen["frontier"], {name: seen[name] for name in ("curves", "rows")}
    groups |= {"again": seen["further"]["1"], "losses": seen["capability"]["1"], "widths": width_cells}
    assert all(job.name == record["job"] for cells in groups.values() for job, record in cells)
    kinds = {name: {job.function.partition(":")[2] for job, _ in cells} for name, cells in groups.items()}
    assert kinds == {
        "curves": {"curve_cell"},
        "rows": {"correspondence_cell", "row_cell", "capability_cell", "stability_cell"},
        "again": {"curve_cell"},
        "losses": {"capability_cell"},
        "widths": {"row_cell"},
    }
    assert {job.arguments["column"]["name"] for job, _ in width_cells} == {spec.name for spec in widths}
    assert all("seed1" in job.arguments["pair"] for job, _ in [*groups["again"], *groups["losses"]])
    assert [record["job"].split()[1] for record in seen["trained"]] == [record["kind"] for record in seen["trained"]]
    steered = metrics["full"]["couplings"]["steering"]
    assert {task: record["job"] for task, record in steered.items()} == {"if_equals": "steering on if_equals"}
    with pytest.raises(UnknownNameError, match="if_equals"):
        compare_fully("python", quick_plan(["if_equal"]), cache=tmp_path)
