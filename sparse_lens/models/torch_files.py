"""Reading nested plain data (numbers, strings, lists, tables, tensors) from a torch file, whatever the file.

torch's own restricted unpickler runs no code, but it does build things that take any amount of memory or time. What torch writes
for plain data is a short list of pickle instructions: anything else is refused before the unpickler sees it.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_lens.errors import CheckpointError

MOST_BYTES = 1 << 31
_MOST_PICKLE_BYTES = 1 << 26
_MOST_INSTRUCTIONS = 1 << 24
_MOST_TUPLE_STEPS = 1 << 24

_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch\.storage UntypedStorage|"
    r"torch (Size|device|b?float\d+|u?int\d+|bool)"
)
_PUSH_ONE = frozenset("NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_DICT EMPTY_LIST GLOBAL".split())
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_CONSUME = {"APPEND": 1, "SETITEM": 2, "REDUCE": 1, "BINPERSID": 0}
"""How many values each takes from the top, besides the one below that stays."""
_TO_MARK = ("APPENDS", "SETITEMS")


def read_plain(path: str | Path) -> Any:
    """The value in a torch file, its tensors mapped to the file (private pages).

    Raises `CheckpointError` for a file that is missing, larger than 2 GiB, no torch archive, truncated, compressed, or that asks
    for anything but plain data. Check a tensor with `is_plain_tensor` before anything is computed from it.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, more than the {MOST_BYTES} that are read; is it the right file?")
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is no torch zip archive ({size} bytes); it is truncated or another file, fetch it again")
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; check the path, or fetch it again") from error
    except Exception as error:  # torch, zipfile and pickle raise errors of every kind for a damaged file
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} cannot be read as plain data ({lines[0]}); it is damaged, fetch it again") from error


def is_plain_tensor(value: Any) -> bool:
    """Whether a value is a dense tensor whose entries all lie in its storage: views can promise terabytes."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path} has compressed entries, which torch never writes; refused")
        if not entry.filename.endswith(".pkl"):
            continue
        if entry.file_size > _MOST_PICKLE_BYTES:
            raise CheckpointError(f"{path}: {entry.filename} has {entry.file_size} bytes, more than any published file; refused")
        _Scan(path).run(archive.read(entry))


class _Scan:
    """A pass over a pickle that keeps, for each value on the stack, how many steps it takes to hash it.

    Tuples alone hash what they hold; one that holds another twice, and so on forty deep, hashes for years.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}
        self.spent = 0

    def run(self, pickled: bytes) -> None:
        for count, (code, argument, _) in enumerate(pickletools.genops(pickled)):
            if count > _MOST_INSTRUCTIONS:
                raise CheckpointError(f"{self.path} has more than {_MOST_INSTRUCTIONS} pickle instructions; refused")
            try:
                self._step(code.name, argument)
            except (IndexError, KeyError) as error:
                raise CheckpointError(f"{self.path}: its pickle is damaged at instruction {count}; fetch it again") from error

    def _step(self, name: str, argument: Any) -> None:
        if name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            raise CheckpointError(f"{self.path} asks for {argument!r}, which plain data does not need; refused")
        if name == "LONG1" and abs(argument) >= 1 << 64:
            raise CheckpointError(f"{self.path} holds an integer of more than 64 bits, which torch does not write; refused")
        if name in _PUSH_ONE:
            self._push(1)
        elif name in _PUTS:
            self.memo[argument] = self.stack[-1]
        elif name in _GETS:
            self._push(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            self._push(1 + sum(self._pop_to_mark()))
        elif name in _TUPLES:
            self._push(1 + sum(self._pop(_TUPLES[name])))
        elif name in _TO_MARK:
            self._pop_to_mark()
        elif name in _CONSUME:
            self._pop(_CONSUME[name])
            self.stack[-1] = 1
        elif name not in ("PROTO", "STOP"):
            raise CheckpointError(f"{self.path} uses the pickle instruction {name}, which torch does not write; refused")

    def _push(self, steps: int) -> None:
        self.spent += steps - 1
        if self.spent > _MOST_TUPLE_STEPS:
            raise CheckpointError(f"{self.path} nests tuples in tuples without end, which torch does not write; refused")
        self.stack.append(steps)

    def _pop(self, count: int) -> list[int]:
        if len(self.stack) < count:
            raise IndexError
        split = len(self.stack) - count
        taken = self.stack[split:]
        del self.stack[split:]
        return taken

    def _pop_to_mark(self) -> list[int]:
        return self._pop(len(self.stack) - self.marks.pop())
