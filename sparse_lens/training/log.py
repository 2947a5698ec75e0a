"""The log of a run: a JSON line every few steps, and the same numbers for whoever else wants them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from sparse_lens.errors import ConfigError, OutputError
from sparse_lens.files import new_file

Tracker = Literal["wandb", "tensorboard"]
Row = dict[str, float]


class TrainingLog:
    """Appends rows to `path` and hands them to the trackers; after an interruption, rows beyond the checkpoint are dropped."""

    def __init__(
        self, path: Path, *, resumed_at: int, history: Sequence[Row] = (), trackers: Sequence[Callable[[Row], None]] = ()
    ) -> None:
        self.path, self.trackers = path, trackers
        known = read_log(path) if path.is_file() else history  # a run that goes on in another folder has its evaluations at least
        rows = [row for row in known if row["step"] <= resumed_at]
        with new_file(path) as place:
            place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def append(self, row: Row) -> None:
        """Add a row; raises `OutputError` if it cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}; start again to resume") from error
        for tracker in self.trackers:
            tracker(row)


def read_log(path: Path) -> list[Row]:
    """The rows of a log; a last line that was cut off in writing is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def make_tracker(name: Tracker, folder: Path, run_name: str, config: dict[str, Any], resumed_at: int) -> Callable[[Row], None]:
    """A function that passes rows on to Weights & Biases, or to TensorBoard files in `folder`; raises `ConfigError` if missing."""
    try:
        if name == "wandb":
            import wandb  # pyright: ignore[reportMissingImports]

            run = wandb.init(
                project="sparse-lens", name=run_name, config=config, dir=str(folder), id=_run_id(folder), resume="allow"
            )
            return lambda row: run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))
        from torch.utils.tensorboard.writer import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)
    except ImportError as error:
        raise ConfigError(
            f"tracking with {name} needs a package that is not installed ({error.name}): pip install {name}"
        ) from error

    def write(row: Row) -> None:
        for key, value in row.items():
            writer.add_scalar(key, value, int(row["step"]))
        writer.flush()

    return write


def _run_id(folder: Path) -> str:
    """One name for all parts of a run that was interrupted: that of its folder."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:12]
