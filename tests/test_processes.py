"""Workers have one thread each, and do not outlive the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.processes import one_thread_for_children, worker_pool

SCRIPT = """
import os, sys, time
from pathlib import Path
from sparse_lens.processes import worker_pool

def stay(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    with worker_pool(2) as pool:
        for job in [pool.submit(stay, sys.argv[1]) for _ in range(2)]:
            job.result()
"""


def test_processes_side_by_side_have_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy reads these names when it is imported; what they were before comes back, also after a failure."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with pytest.raises(ZeroDivisionError), one_thread_for_children():
        command = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1 1\n"
        raise ZeroDivisionError
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


def test_a_worker_computes_on_one_thread() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads from /proc which processes run")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Killed in a way that it cannot answer to, while they compute."""
    script, begun = tmp_path / "script.py", tmp_path / "begun"
    script.write_text(SCRIPT)
    begun.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(begun)], stderr=subprocess.DEVNULL)
    try:
        workers = _waited_for(lambda: len(found := [int(path.name) for path in begun.iterdir()]) == 2 and found)
    finally:
        process.kill()
        process.wait()
    assert _waited_for(lambda: not any(_runs(worker) for worker in workers))


def _waited_for(condition: Callable[[], Any], patience: float = 120.0) -> Any:
    """What `condition` gives as soon as it is true; how long that takes is the machine's business."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, f"still not after {patience:g} s"
        time.sleep(0.05)
    return found


def _runs(pid: int) -> bool:
    """Whether a process is there and is not only waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
