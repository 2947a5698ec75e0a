"""Fetching published checkpoints: by name from the released store, by id from the Hugging Face hub. Only when asked.

Files lie under `SPARSE_LENS_CACHE` (default: the user's cache directory); `SPARSE_LENS_RELEASED` replaces the store's address.
The SHA-256 of a file is recorded when it is first seen, and every later copy is held to it.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pooch
import requests
from filelock import FileLock
from tqdm.auto import tqdm

from sparse_lens.errors import CheckpointError, SparseLensError
from sparse_lens.files import new_file
from sparse_lens.models.config_files import REFERENCE_CONFIG
from sparse_lens.models.released import RELEASED_MODELS, ReleasedModel
from sparse_lens.models.tokenizer_files import ENCODER, MERGES
from sparse_lens.models.weight_files import REFERENCE_WEIGHTS

RELEASED_ADDRESS = "https://openaipublic.blob.core.windows.net/circuit-sparsity"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "final_model.pt", "pytorch_model.bin", "vocab.bpe", "merges.txt"]
_ATTEMPTS = 6
_CHUNK = 1 << 16  # what is lost at most when a connection breaks
_wait = time.sleep


class DownloadError(SparseLensError):
    """A file could not be fetched, or is not the one that was fetched before."""


def cache_folder() -> Path:
    """Where fetched files lie."""
    return Path(os.environ.get("SPARSE_LENS_CACHE") or pooch.os_cache("sparse_lens")).expanduser().absolute()


def released_address() -> str:
    """Where released models are fetched from."""
    return os.environ.get("SPARSE_LENS_RELEASED", RELEASED_ADDRESS).rstrip("/")


def cached_folder(name: str) -> Path | None:
    """The folder of a released model that has been fetched whole, else None."""
    folder = cache_folder() / "models" / name
    return folder if all((folder / file).is_file() for file in (REFERENCE_CONFIG, REFERENCE_WEIGHTS)) else None


def describe_released() -> list[dict[str, Any]]:
    """One object per released model: `name`, `shipped` (False), `parameters` (null if unknown), `about`, and the size on disk.

    `cached` is null for a model that has not been fetched, else the bytes that its folder takes.
    """
    described = []
    for model in RELEASED_MODELS.values():
        folder = cached_folder(model.name)
        size = None if folder is None else sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        facts = {"parameters": model.parameters, "about": model.about, "cached": size}
        described.append({"name": model.name, "shipped": False} | facts)
    return described


def fetch_released(model: ReleasedModel, *, progress: bool = True) -> Path:
    """Folder of a released model with its tokenizer, fetched now if it is not there; an interrupted download goes on.

    Raises `DownloadError` with what to do: no network, no such file, a file that differs from the one recorded.
    """
    for file in (REFERENCE_CONFIG, REFERENCE_WEIGHTS):
        fetch(f"models/{model.name}/{file}", progress=progress)
    folder = cache_folder() / "models" / model.name
    for file in (ENCODER, MERGES):
        shared = fetch(f"tinypython/{file}", progress=progress)
        if not (folder / file).is_file():
            with new_file(folder / file) as path:
                path.write_bytes(shared.read_bytes())
    return folder


def fetch(path: str, *, progress: bool = True) -> Path:
    """One file of the released store, by its path there; cached, resumed, checked against the digest recorded before."""
    target = cache_folder() / path
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock")
        lock.acquire()
    except OSError as error:
        raise _no_place(error) from error
    with lock:
        if target.is_file():
            return target
        url, known = f"{released_address()}/{path}", _digests().get(path)
        pooch.get_logger().setLevel("WARNING")  # the bar says what it would
        try:
            pooch.retrieve(url, known, target.name, target.parent, downloader=cast(Any, _Resuming(target, progress)))
        except requests.RequestException as error:  # before the others: it is a kind of both
            advice = "check the network, then repeat the command: it goes on"
            raise DownloadError(f"{url} cannot be fetched: {error}; {advice}") from error
        except ValueError as error:  # pooch's answer to another digest
            raise DownloadError(
                f"{url} is not the file that was fetched before (SHA-256 {known}): {error}. If it was republished, delete "
                f"its line from {_digest_file()}"
            ) from error
        except OSError as error:
            raise _no_place(error) from error
        if target.stat().st_size == 0:
            target.unlink()
            raise DownloadError(f"{url} is an empty file there; this model cannot be had")
        if known is None:
            _record(path, pooch.file_hash(str(target)))
        return target


def _no_place(error: OSError) -> DownloadError:
    return DownloadError(
        f"nothing can be written below {cache_folder()}: {error.strerror or error}; free space there, or set SPARSE_LENS_CACHE"
    )


def fetch_hub(repository: str) -> Path:
    """Folder of a model on the Hugging Face hub, `owner/name` or `owner/name@revision`; weights and tables only, no code."""
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    try:
        endpoint = os.environ.get("HF_ENDPOINT")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES, endpoint=endpoint))
    except Exception as error:  # huggingface_hub raises its own, httpx's and OS errors
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(f"{repository} cannot be fetched from the Hugging Face hub: {first_line}") from error


@dataclass
class _Resuming:
    """A downloader for pooch that goes on where a broken connection left off, also in a later process."""

    target: Path
    progress: bool

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:  # noqa: ARG002 - pooch's signature
        partial, mark = self.target.with_name(f"{self.target.name}.partial"), self.target.with_name(f"{self.target.name}.etag")
        for attempt in range(_ATTEMPTS):
            try:
                self._receive(url, partial, mark)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                if attempt == _ATTEMPTS - 1 or (attempt and not partial.is_file()):  # nobody there, twice
                    raise
                _wait(min(2.0**attempt, 30.0))
        mark.unlink(missing_ok=True)
        partial.replace(output_file)

    def _receive(self, url: str, partial: Path, mark: Path) -> None:
        have = partial.stat().st_size if partial.is_file() and mark.is_file() else 0
        headers = {"Accept-Encoding": "identity"}  # lengths and ranges count the bytes that are written
        headers |= {"Range": f"bytes={have}-", "If-Range": mark.read_text()} if have else {}
        with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                partial.unlink()
                raise requests.ConnectionError("what is here already is longer than the file; starting anew")
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            if etag := answer.headers.get("ETag"):
                mark.write_text(etag)
            else:
                mark.unlink(missing_ok=True)  # without one, nobody could tell whether the rest belongs to the beginning
            left = int(answer.headers.get("Content-Length") or 0)
            total = left + (have if resumed else 0)
            bar = tqdm(
                total=total or None, initial=have if resumed else 0, unit="B", unit_scale=True, desc=partial.stem,
                disable=not self.progress,
            )  # fmt: skip
            received = 0
            with bar, partial.open("ab" if resumed else "wb") as file:
                for chunk in answer.iter_content(_CHUNK):
                    file.write(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
        if left and received != left:
            raise requests.ConnectionError(f"the connection ended after {received} of {left} bytes")


def _digest_file() -> Path:
    return cache_folder() / "digests.json"


def _digests() -> dict[str, str]:
    if not _digest_file().is_file():
        return {}
    try:
        digests = json.loads(_digest_file().read_text())
    except ValueError as error:
        raise CheckpointError(f"{_digest_file()} is not valid JSON: {error}; delete it to record digests anew") from error
    return {str(path): str(digest) for path, digest in digests.items()} if isinstance(digests, dict) else {}


def _record(path: str, digest: str) -> None:
    _digest_file().parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{_digest_file()}.lock"), new_file(_digest_file()) as file:
        file.write_text(json.dumps(_digests() | {path: digest}, indent=1) + "\n")
