"""Writing without half-written results: everything is made beside its place and renamed into it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparse_lens.errors import DataError, OutputError

_STAGING = re.compile(r"\.(.+)-[a-z0-9_]{8}")
"""A name with a dot before and `tempfile`'s random letters behind."""


@contextmanager
def new_directory(path: str | Path, *, also: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `path` when the block ends without an error.

    An existing directory at `path` is replaced if everything in it bears a name that is written now, or one of `also`: an older
    result of the same kind. After an error nothing at `path` has changed. Raises `OutputError` where the place cannot be written
    or holds anything else.
    """
    target = Path(path).absolute()
    if target.exists() and not target.is_dir():
        raise _in_the_way(target)
    staging = _staging_directory(target)
    try:
        yield staging
        refuse_foreign(target, [*(entry.name for entry in staging.iterdir()), *also])
        _replace_directory(staging, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` that is renamed to it when the block ends without an error; see `new_directory`."""
    target = Path(path)
    staging = _staging_directory(target)
    try:
        yield staging / target.name
        (staging / target.name).replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def replaced_files(path: str | Path, *, last: str | None = None) -> Iterator[Path]:
    """Yield an empty directory whose files are renamed into the directory `path` when the block ends without an error.

    Files of other names stay: for writers that add to a directory, where `new_directory` replaces one. The files are on the disk
    before the first is renamed, and the one called `last` comes last: where it is, all are.
    """
    target = Path(path).absolute()
    if target.exists() and not target.is_dir():
        raise _in_the_way(target)
    staging = _staging_directory(target)
    try:
        yield staging
        target.mkdir(exist_ok=True)
        files = sorted(staging.iterdir(), key=lambda file: file.name == last)
        for file in files:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file in files:
            file.replace(target / file.name)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def made_folder(path: str | Path) -> Path:
    """The folder at `path`, made if there is none; raises `OutputError` where a file is in the way or none can be made."""
    target = Path(path)
    try:
        if target.exists() and not target.is_dir():
            raise _in_the_way(target)
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def read_text(path: str | Path, most: int) -> str:
    """The text of a file of at most so many bytes; raises `DataError` for a larger one, and what `open` raises, or `ValueError`."""
    with Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{path} has more than {most:,} bytes, the most that is read here; is it the right file?")
    return content.decode("utf-8")


def check_writable(path: str | Path, names: Collection[str] | None = None) -> None:
    """Raise `OutputError` now rather than after an hour's work if nothing can be written at `path`.

    With `names`, those of the files that a folder at `path` is going to hold, also raise if a file stands there or a folder
    that holds anything else.
    """
    if names is not None:
        if Path(path).is_file():
            raise _in_the_way(Path(path))
        refuse_foreign(Path(path), names)
    shutil.rmtree(_staging_directory(Path(path)))


def refuse_foreign(folder: Path, names: Collection[str]) -> None:
    """Raise `OutputError` if `folder` holds anything that bears none of `names`: replacing the folder would lose it."""
    try:
        found = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        foreign = sorted(repr(name) for name in found if name not in names and _staged(name) not in names)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if foreign:
        some = ", ".join(foreign[:4]) + (f" and {len(foreign) - 4} more" if len(foreign) > 4 else "")
        raise OutputError(
            f"the folder {folder} holds other files ({some}), and what is written now would replace it whole; "
            "choose a new or empty folder, or move them away"
        )


def sweep_staging(path: str | Path, names: Collection[str] = ()) -> None:
    """Remove what a killed writer of `path`, or of files called `names` in it, has left; nobody else must be writing there."""
    target = Path(path).absolute()
    for folder, wanted in ((target.parent, [target.name]), (target, list(names))):
        for left in folder.glob(".*") if folder.is_dir() else ():
            if _staged(left.name) in wanted and left.is_dir():
                shutil.rmtree(left, ignore_errors=True)


def _staged(name: str) -> str | None:
    """The name whose staging directory bears `name`; None if it is something else."""
    found = _STAGING.fullmatch(name)
    return found[1] if found else None


def _in_the_way(target: Path) -> OutputError:
    return OutputError(f"cannot write the folder {target}: a file of that name is in the way; choose another place")


def _staging_directory(target: Path) -> Path:
    target = target.absolute()  # "." has no name and lies beside nothing
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error


def _replace_directory(staging: Path, target: Path) -> None:
    staging.chmod(0o755)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        target.replace(old / "old")
        staging.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staging.replace(target)


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {target}: {error.strerror or error}; choose a folder that you may write to")
