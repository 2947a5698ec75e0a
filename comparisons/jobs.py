"""Jobs: the cells of a long comparison, run in processes on one machine or over Ray, and kept so that no cell is computed twice.

A job is a function's address and plain arguments, so it can be sent anywhere and has a fingerprint; its record is plain JSON. The
record is written, by the process that called, as soon as the cell is done: a run that is killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sparse_lens.errors import ConfigError, DataError
from sparse_lens.files import made_folder, new_file
from sparse_lens.processes import worker_pool
from sparse_lens.results import to_plain

Record = dict[str, Any]

FORMAT = 2
"""Raised when what a job computes changes, so that older records are not taken for its."""


@dataclass(frozen=True)
class Job:
    """One cell: `function` as `package.module:name`, its keyword `arguments` as plain JSON, and what else its result depends on.

    `depends` holds hashes of weights, windows and dictionaries: with the arguments they make the fingerprint. `name` is for people.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    depends: Sequence[str] = ()

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of everything the record depends on but the code."""
        facts = json.dumps([FORMAT, self.function, dict(self.arguments), list(self.depends)], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def run(self) -> Record:
        """Compute the cell here."""
        module, name = self.function.split(":")
        record = to_plain(getattr(importlib.import_module(module), name)(**self.arguments))
        if not isinstance(record, dict):
            raise TypeError(f"{self.function} gave a {type(record).__name__}; a job gives a dict")
        return record

    def timed(self) -> tuple[Record, float]:
        """The same, and the seconds that it took."""
        begun = time.perf_counter()
        return self.run(), time.perf_counter() - begun


def run_jobs(
    jobs: Sequence[Job],
    cache: str | Path | None = None,
    *,
    workers: int = 2,
    ray_address: str | None = None,
    progress: bool = True,
) -> list[Record]:
    """The records of `jobs`, in their order; those in the folder `cache` are read, the others computed and kept there.

    With one worker everything runs here. With several each job runs in a process with one thread, and a script must guard its own
    start with `if __name__ == "__main__":`. With `ray_address` ("local" starts Ray on this machine, "auto" joins the cluster that
    this machine belongs to) they run over Ray, one CPU each; files named in the arguments have to be there under the same path.
    Records are the same either way, as a job computes on one thread wherever it runs beside others.

    Raises `ConfigError` for fewer than one worker or a missing Ray, `DataError` for a kept record that cannot be read. A job's own
    error ends the run, named after the job; what was done before is kept.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    folder = None if cache is None else made_folder(cache)
    found: dict[str, Record] = {}
    for job in jobs:
        if folder is not None and (kept := read_record(folder, job)) is not None:
            found[job.fingerprint] = kept
    missing = list({job.fingerprint: job for job in jobs if job.fingerprint not in found}.values())
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(found) + len(missing), initial=len(found), desc="cells", disable=not progress))
        for job, record, seconds in _computed(missing, workers, ray_address):
            found[job.fingerprint] = record
            if folder is not None:
                keep_record(folder, job, record, seconds)
            bar.update()
            bar.set_postfix_str(job.name)
    return [found[job.fingerprint] for job in jobs]


def missing_jobs(jobs: Sequence[Job], cache: str | Path) -> list[Job]:
    """The jobs that `cache` holds no record of."""
    return [job for job in jobs if read_record(Path(cache), job) is None]


def read_record(folder: Path, job: Job) -> Record | None:
    """The kept record of a job, None if there is none; raises `DataError` if it is damaged."""
    path = _place(folder, job)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))["record"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"the kept cell {path} cannot be read ({error}); delete it, and it is computed again") from error
    if not isinstance(record, dict):
        raise DataError(f"the kept cell {path} holds a {type(record).__name__}, no record; delete it, and it is computed again")
    return record


def _place(folder: Path, job: Job) -> Path:
    return folder / f"{job.fingerprint}.json"


def keep_record(folder: Path, job: Job, record: Record, seconds: float | None = None) -> None:
    """Keep a job's record, plain JSON, under its fingerprint, and how long it took where that is known."""
    made_folder(folder)
    content: dict[str, Any] = {"name": job.name, "function": job.function, "arguments": dict(job.arguments)}
    content |= {} if seconds is None else {"seconds": round(seconds, 2)}
    content["record"] = record
    with new_file(_place(folder, job)) as staging:
        staging.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _computed(jobs: Sequence[Job], workers: int, ray_address: str | None) -> Iterator[tuple[Job, Record, float]]:
    """Every job with its record and the seconds that it took, as they are done."""
    if not jobs:
        return iter(())
    if ray_address is not None:
        return _over_ray(jobs, ray_address)
    if workers == 1 or len(jobs) == 1:
        return ((job, *_run_here(job)) for job in jobs)
    return _in_processes(jobs, min(workers, len(jobs)))


def _run_here(job: Job) -> tuple[Record, float]:
    with single_threaded(), _naming(job):
        return job.timed()


def _in_processes(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Record, float]]:
    """What runs beside a job that fails is finished, and kept; nothing is begun after it, as no process has a job in waiting."""
    failed: Exception | None = None
    left = iter(jobs)
    with worker_pool(workers) as pool:
        running = {pool.submit(Job.timed, job): job for job in islice(left, workers)}
        while running:
            done: list[tuple[Job, Record, float]] = []
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    with _naming(job):
                        done.append((job, *future.result()))
                except Exception as error:
                    failed = failed or error
            if failed is None:
                running |= {pool.submit(Job.timed, job): job for job in islice(left, workers - len(running))}
            yield from done
    if failed is not None:
        raise failed


def _over_ray(jobs: Sequence[Job], address: str) -> Iterator[tuple[Job, Record, float]]:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError('running over Ray needs the extra: pip install "sparse-lens[ray]"') from error
    joined = ray.is_initialized()
    if not joined:
        ray.init(address=None if address == "local" else address, include_dashboard=False, log_to_driver=False)
    try:
        remote = ray.remote(num_cpus=1)(_run_here)
        running = {remote.remote(job): job for job in jobs}
        while running:
            (done, *_), _ = ray.wait(list(running))
            job = running.pop(done)
            with _naming(job):
                record, seconds = ray.get(done)
            yield job, record, seconds
    finally:
        if not joined:
            ray.shutdown()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Context in which torch uses one thread per operation: what runs side by side rounds alike wherever it runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _naming(job: Job) -> Iterator[None]:
    """Say which cell an error comes from, whatever its kind."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the cell {job.name!r} ({job.function})")
        raise
