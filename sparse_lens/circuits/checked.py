"""Values of files that others wrote, checked one by one: each error says what was wrong, what was seen, and what to do."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sparse_lens.errors import CircuitError

MOST_JSON_BYTES = 1 << 28
MOST_TEXT = 1 << 16


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file of at most 256 MiB; raises `CircuitError` for anything else."""
    path = Path(path)
    try:
        if (size := path.stat().st_size) > MOST_JSON_BYTES:
            raise CircuitError(f"{path} has {size} bytes, more than the {MOST_JSON_BYTES} that are read; is it the right file?")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CircuitError(f"{path} cannot be read: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise CircuitError(f"{path} is not valid JSON ({error}); it is truncated or another file, fetch it again") from error
    return dict(mapping(content, str(path)))


def wrong(what: str, value: Any, wanted: str) -> CircuitError:
    """The error for a value that is not what its place in the file asks for."""
    return CircuitError(f"{what} is {shown(value)}, not {wanted}; the file is damaged or of another format, fetch it again")


def shown(value: Any) -> str:
    """A value for a message: short, and without computing anything from what may be hostile."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return reprlib.repr(value)


def mapping(value: Any, what: str) -> Mapping[Any, Any]:
    """`value`, if it is a table."""
    if not isinstance(value, Mapping):
        raise wrong(what, value, "a table of names and values")
    return value


def named(value: Any, what: str) -> Mapping[str, Any]:
    """`value`, if it is a table whose names are all texts of reasonable length."""
    for name in (table := mapping(value, what)):
        text(name, f"a name in {what}")
    return table


def items(value: Any, what: str, *, length: int | None = None) -> Sequence[Any]:
    """`value`, if it is a list or tuple, of `length` where that is given."""
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise wrong(what, value, "a list" if length is None else f"a list of {length}")
    return value


def field(table: Mapping[Any, Any], name: str, what: str) -> Any:
    """The field `name` of a table that has to have it."""
    if name not in table:
        some = ", ".join(shown(key) for key in list(table)[:8]) or "nothing"
        raise CircuitError(f"{what} lacks {name!r}, it holds {some}; the file is truncated or of another format, fetch it again")
    return table[name]


def text(value: Any, what: str) -> str:
    """`value`, if it is a text of reasonable length."""
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise wrong(what, value, f"a text of at most {MOST_TEXT} characters")
    return value


def number(value: Any, what: str, *, finite: bool = True) -> float:
    """`value` as a float, if it is a number and, unless `finite` is False, a finite one."""
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        found = None
    if found is None or (finite and not math.isfinite(found)):
        raise wrong(what, value, "a finite number" if finite else "a number")
    return found


def integer(value: Any, what: str, *, least: int = 0, most: int = 1 << 53) -> int:
    """`value`, if it is an integer in `[least, most]`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(what, value, f"an integer from {least} to {most}")
    return value


def truth(value: Any, what: str) -> bool:
    """`value`, if it is true or false."""
    if not isinstance(value, bool):
        raise wrong(what, value, "true or false")
    return value
