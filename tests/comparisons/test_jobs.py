"""Jobs run here, in processes and over Ray: same records, kept ones read, errors named, killed runs resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.full.full_jobs import curve_jobs, row_jobs
from sparse_lens.comparisons.full.plan import quick_plan
from sparse_lens.comparisons.jobs import Job, missing_jobs, run_jobs
from sparse_lens.errors import ConfigError, DataError, OutputError

CARDS = "sparse_lens.comparisons.pair:facts_of_role"


def _facts(role: str) -> Job:
    """A real cell: the loss and size of a shipped model."""
    return Job(f"facts of {role}", CARDS, {"pair": "python", "role": role, "windows": 4})


def _parsed(text: str, depends: Sequence[str] = ()) -> Job:
    return Job("parse", "json:loads", {"s": text}, depends)


def test_records_come_back_in_the_order_of_the_jobs() -> None:
    jobs = [_parsed(json.dumps({"n": n})) for n in (3, 1, 2)]
    assert [record["n"] for record in run_jobs(jobs, workers=1, progress=False)] == [3, 1, 2]


def test_processes_give_the_same_records_as_running_here() -> None:
    jobs = [_facts("sparse"), _facts("dense_matched")]
    here, apart = (run_jobs(jobs, workers=workers, progress=False) for workers in (1, 2))
    assert here == apart
    assert here[0]["loss"]["measurable"] and here[0]["loss"]["n"] == 4


@pytest.mark.slow
def test_ray_gives_the_same_records(tmp_path: Path) -> None:
    """Losses, a real curve with its searches, and a real row, number by number."""
    pytest.importorskip("ray", reason="needs the extra [ray]")
    pair, plan = ModelPair.open(), replace(quick_plan(), targets=(2.0,), edge_targets=(), functional_targets=())
    spec = ColumnSpec("sparse_neurons", "sparse")
    jobs = [*curve_jobs(pair, plan, [spec], plan.tasks), *row_jobs(pair, plan, [spec], ["superposition"]), _facts("dense_matched")]
    assert len(jobs) == 3
    assert run_jobs(jobs, tmp_path, ray_address="local", progress=False) == run_jobs(jobs, workers=2, progress=False)
    assert not missing_jobs(jobs, tmp_path)


def test_a_run_that_failed_goes_on_where_it_was(tmp_path: Path) -> None:
    good, bad = _parsed('{"n": 1}'), _parsed("no json")
    with pytest.raises(ValueError) as failed:
        run_jobs([good, bad], tmp_path, workers=1, progress=False)
    assert "in the cell 'parse' (json:loads)" in failed.value.__notes__
    assert missing_jobs([good, bad], tmp_path) == [bad]
    (kept,) = tmp_path.iterdir()
    content = json.loads(kept.read_text())
    assert content["name"] == "parse" and content["seconds"] >= 0
    kept.write_text(json.dumps(content | {"record": {"n": "from the cache"}}))
    assert run_jobs([good], tmp_path, workers=1, progress=False) == [{"n": "from the cache"}]


def test_what_runs_beside_a_failing_job_is_kept_and_nothing_is_begun_after_it(tmp_path: Path) -> None:
    later = [_parsed(json.dumps(n)) for n in range(8)]
    with pytest.raises(ValueError) as failed:
        run_jobs([_parsed("no json"), _facts("sparse"), *later], tmp_path, workers=2, progress=False)
    assert "in the cell 'parse' (json:loads)" in failed.value.__notes__
    assert not missing_jobs([_facts("sparse")], tmp_path)
    assert len(missing_jobs(later, tmp_path)) >= 7  # at most one, if the other process was the first to be ready


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path, workers: int) -> None:
    """Real cells, a real kill in their midst: what was kept is read, the rest computed, and all is as in a run without it."""
    jobs = [Job(f"{n} windows", CARDS, {"pair": "python", "role": "sparse", "windows": n}) for n in range(1, 13)]
    cells = tmp_path / "cells"
    script = tmp_path / "script.py"
    script.write_text(
        "from sparse_lens.comparisons.jobs import Job, run_jobs\n"
        f"jobs = [Job(f'{{n}} windows', {CARDS!r}, {{'pair': 'python', 'role': 'sparse', 'windows': n}}) for n in range(1, 13)]\n"
        "if __name__ == '__main__':\n"
        f"    run_jobs(jobs, {str(cells)!r}, workers={workers})\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(cells.glob("*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 3 <= len(kept) < len(jobs) and len(missing_jobs(jobs, cells)) == len(jobs) - len(kept)
    assert run_jobs(jobs, cells, workers=1, progress=False) == run_jobs(jobs, workers=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and not missing_jobs(jobs, cells)


def test_the_fingerprint_knows_arguments_and_what_else_the_record_depends_on() -> None:
    jobs = [_parsed("{}"), _parsed('{"a": 1}'), _parsed("{}", depends=["weights"]), Job("other name", "json:loads", {"s": "{}"})]
    prints = [job.fingerprint for job in jobs]
    assert len(set(prints)) == 3 and prints[0] == prints[3]


def test_equal_jobs_are_computed_once(tmp_path: Path) -> None:
    assert run_jobs([_parsed("{}")] * 3, tmp_path, workers=1, progress=False) == [{}] * 3
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers"):
        run_jobs([], workers=0)
    (tmp_path / f"{_parsed('{}').fingerprint}.json").write_text("half a rec")
    with pytest.raises(DataError, match="delete it"):
        run_jobs([_parsed("{}")], tmp_path, workers=1, progress=False)
    (tmp_path / f"{_parsed('{}').fingerprint}.json").write_text('{"record": []}')
    with pytest.raises(DataError, match="holds a list"):
        run_jobs([_parsed("{}")], tmp_path, workers=1, progress=False)
    with pytest.raises(OutputError, match="in the way"):
        run_jobs([_parsed("{}")], next(tmp_path.iterdir()), workers=1, progress=False)
    with pytest.raises(TypeError, match="a job gives a dict"):
        run_jobs([_parsed("[1]")], workers=1, progress=False)
