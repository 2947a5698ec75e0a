"""The JSON file in which a command keeps what it has measured, so that a later run adds to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.errors import ConfigError, DataError
from sparse_lens.results import from_plain


def read_kept_file(path: Path, needs: Sequence[str] = (), scope: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What an earlier run has kept, with its results as `Result`; nothing without a file.

    Raises `DataError` for a file that cannot be read, or lacks one of the keys that the command `needs`; `ConfigError` for one of
    another `scope`: numbers of a smoke run, or of other tasks, are not mixed with those of this one.
    """
    if not path.is_file():
        return {}
    try:
        content = from_plain(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not an object")
        for key in (*needs, *(["scope"] if scope is not None else [])):
            content[key]
        if scope is not None and not isinstance(content["scope"], dict):
            raise TypeError("its scope is no object")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else f"{error}"
        raise DataError(f"{path} is no file of this command ({why}); move it away, or name another folder with --out") from error
    if scope is not None and content["scope"] != scope:
        told = ", ".join(f"{name} {value}" for name, value in content["scope"].items())
        raise ConfigError(f"{path} is of a run with {told}; name another folder with --out, or move it away")
    return content
