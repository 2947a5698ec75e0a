"""Checkpoints of a run: whole or not there, checked when read, the newest two kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparse_lens.errors import CheckpointError
from sparse_lens.files import new_file

logger = logging.getLogger(__name__)

_FORMAT = "sparse_lens-training-1"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name and a JSON-able record."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of a run's checkpoints, named `step-NUMBER.safetensors`.

    A file is written beside its place, brought to the disk and renamed, and older ones are deleted only then: whatever happens,
    a whole checkpoint remains. Tensors and record are covered by a digest, so that a damaged file is noticed.
    """

    path: Path
    keep: int = 2

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; raises `OutputError` if it cannot be written, with the ones before it in their places."""
        record = json.dumps(checkpoint.record)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        metadata = {"format": _FORMAT, "record": record, "digest": _digest(tensors, record)}
        with new_file(self.path / f"step-{step:08d}.safetensors") as place:
            try:
                save_file(tensors, place, metadata=metadata)
            except SafetensorError as error:
                raise OSError(f"{error}") from error  # a full disk, for one, is reported in words of its own
            with place.open("rb") as written:
                os.fsync(written.fileno())
        for old in self.files()[self.keep :]:
            old.unlink()

    def files(self) -> list[Path]:
        """The checkpoints, newest first."""
        found = [path for path in self.path.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None if there never was one; a damaged one is passed by with a warning.

        Raises `CheckpointError` if there are some and all are damaged: starting over is left to the user.
        """
        self._sweep()
        damaged: list[str] = []
        for path in self.files():
            try:
                found = read_checkpoint(path)
            except CheckpointError as error:
                damaged.append(path.name)
                logger.warning("%s; going on from the one before", error)
            else:
                for name in damaged:  # out of the way of those that are kept
                    (self.path / name).replace(self.path / f"{name}.damaged")
                return found
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.path} can be used ({', '.join(damaged)}: damaged, or of another version of sparse_lens); "
                "delete the folder to start over"
            )
        return None

    def _sweep(self) -> None:
        """Remove what an interrupted `save` has left."""
        for left in self.path.glob(".step-*.safetensors-*"):
            shutil.rmtree(left, ignore_errors=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one file; raises `CheckpointError` if it is cut, changed, or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(f"{path} is no training checkpoint of this version; move it away")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        if metadata.get("digest") != _digest(tensors, metadata["record"]):
            raise CheckpointError(f"{path} is damaged: its content is not what was written")
        return Checkpoint(tensors, json.loads(metadata["record"]))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _digest(tensors: Mapping[str, Tensor], record: str) -> str:
    digest = hashlib.blake2b(record.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two configurations, field by field, as "field: old, now new"."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{name}: {_shown(old, name)}, now {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ...) != new.get(name, ...)
    ]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "not there"
