"""Collect Python source text from the standard library, folders or a dataset; nothing is ever executed."""

from __future__ import annotations

import hashlib
import logging
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sparse_lens.errors import DataError

logger = logging.getLogger(__name__)

Split = Literal["train", "valid"]

EXCLUDED_FOLDERS = frozenset(
    {
        *("test", "tests", "testing", "idlelib", "idle_test"),
        *("site-packages", "dist-packages", "__pycache__"),
        "encodings",  # character tables, which would spend a tenth of the vocabulary on names of letters
    }
)
"""Names of folders, at any depth below a source's root, whose files are left out."""

SITE_PACKAGES = "site-packages"
"""Name of the source that is the running interpreter's installed packages, wherever they lie."""


@dataclass(frozen=True)
class FileFilter:
    """Which texts enter a corpus; sizes are in characters, except `max_bytes`."""

    min_characters: int = 200
    max_line_characters: int = 2000
    max_bytes: int = 1_000_000

    def accepts(self, text: str) -> bool:
        """Say whether a decoded text is long enough and free of overlong lines (machine-made tables)."""
        if len(text) < self.min_characters:
            return False
        return max(map(len, text.split("\n"))) <= self.max_line_characters


@dataclass(frozen=True)
class Document:
    """One text of a corpus; `sha256` is the hash of its raw bytes, `path` is relative to its source."""

    source: str
    path: str
    sha256: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class StandardLibrary:
    """The running interpreter's standard library, without its tests."""

    cap_mb: float | None = None
    name: str = "stdlib"

    def root(self) -> Path:
        """Return the folder that holds the standard library."""
        return Path(sysconfig.get_paths()["stdlib"])

    def documents(self, file_filter: FileFilter) -> Iterator[Document]:
        """Yield the accepted files in path order."""
        return read_folder(self.root(), self.name, file_filter)

    def describe(self) -> dict[str, Any]:
        """Return the settings that define this source, as JSON-able values."""
        return {"kind": "stdlib", "name": self.name, "cap_mb": self.cap_mb}


@dataclass(frozen=True)
class SourceFolder:
    """The `.py` files of a folder; `name` (default: the folder's name) stands for it in the manifest."""

    path: str
    cap_mb: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name)

    def root(self) -> Path:
        """Return the folder; raise `DataError` if it does not exist."""
        folder = Path(self.path)
        if not folder.is_dir():
            raise DataError(f"source folder {self.path!r} does not exist; pass a folder that holds .py files")
        return folder

    def documents(self, file_filter: FileFilter) -> Iterator[Document]:
        """Yield the accepted files in path order."""
        return read_folder(self.root(), self.name, file_filter)

    def describe(self) -> dict[str, Any]:
        """Return the settings that define this source, as JSON-able values."""
        return {"kind": "folder", "name": self.name, "path": self.path, "cap_mb": self.cap_mb}


@dataclass(frozen=True)
class DatasetSource:
    """A Hugging Face dataset: a `Dataset` object, a folder of `save_to_disk`, or the name of a hub dataset.

    Only the last one touches the network, and only because the caller named it.
    """

    dataset: Any
    column: str = "text"
    split: str = "train"
    cap_mb: float | None = None
    name: str = "dataset"

    def documents(self, file_filter: FileFilter) -> Iterator[Document]:
        """Yield the accepted rows in order; raise `DataError` if the text column is missing."""
        rows = self._load()
        if self.column not in rows.column_names:
            raise DataError(
                f"dataset {self.name!r} has no column {self.column!r}; it has {sorted(rows.column_names)}. "
                "Pass DatasetSource(..., column=...)"
            )
        for index, text in enumerate(rows[self.column]):
            if not isinstance(text, str):
                kind = type(text).__name__
                raise DataError(f"dataset {self.name!r}: row {index} of column {self.column!r} is a {kind}, not text")
            raw = text.encode("utf-8")
            if len(raw) <= file_filter.max_bytes and file_filter.accepts(text):
                yield Document(self.name, f"row-{index}", hashlib.sha256(raw).hexdigest(), text)

    def describe(self) -> dict[str, Any]:
        """Return the settings that define this source, as JSON-able values (an object by its fingerprint)."""
        identity = self.dataset if isinstance(self.dataset, str) else getattr(self.dataset, "_fingerprint", "object")
        settings = {"column": self.column, "split": self.split, "cap_mb": self.cap_mb}
        return {"kind": "dataset", "name": self.name, "dataset": identity, **settings}

    def _load(self) -> Any:
        if not isinstance(self.dataset, str):
            return self.dataset
        import datasets

        try:
            if not Path(self.dataset).is_dir():
                return datasets.load_dataset(self.dataset, split=self.split)
            loaded = datasets.load_from_disk(self.dataset)
            return loaded[self.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise DataError(
                f"dataset {self.dataset!r} cannot be opened ({type(error).__name__}: {error}); "
                "give a folder written by save_to_disk, or the name of a dataset on the Hub and a network"
            ) from error


Source = StandardLibrary | SourceFolder | DatasetSource


def source_from_description(description: Mapping[str, Any]) -> Source:
    """Return the source that `describe` described; a dataset cannot come back from its description alone.

    Raises `DataError` for a dataset: the caller passes it, so that nothing is fetched unasked.
    """
    settings = {key: value for key, value in description.items() if key != "kind"}
    if description["kind"] == "stdlib":
        return StandardLibrary(**settings)
    if description["kind"] == "folder":
        # A published manifest names no folders of the machine that made it.
        if description["name"] == SITE_PACKAGES:
            settings["path"] = sysconfig.get_paths()["purelib"]
        if "path" not in settings:
            name = description["name"]
            raise DataError(f"source {name!r} is a folder without a path; pass sources=[SourceFolder(PATH, name={name!r})]")
        return SourceFolder(**settings)
    raise DataError(f"source {description['name']!r} is a dataset; pass sources=[DatasetSource(...)] to read it again")


def collect_documents(sources: Sequence[Source], file_filter: FileFilter | None = None) -> list[Document]:
    """Read all sources, drop exact duplicates (SHA-256), cap each source and return its texts in hash order.

    A cap keeps the files with the smallest hashes, so the choice does not depend on the order on disk.
    Raises `DataError` for no sources, for two sources of one name, and for a source that gives no text.
    """
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise DataError(f"need at least one source and distinct source names, got {names}; set `name` on each")
    seen: set[str] = set()
    documents: list[Document] = []
    for source in sources:
        kept = _cap(_unseen(source.documents(file_filter or FileFilter()), seen), source.cap_mb)
        if not kept:
            raise DataError(f"source {source.name!r} gave no text that passes the filter; check its path or column")
        logger.info("source %s: %d texts, %d characters", source.name, len(kept), sum(len(d.text) for d in kept))
        documents.extend(kept)
    return documents


def split_of(sha256: str, valid_share: float) -> Split:
    """Assign a text to a split by its hash alone, so that equal texts never fall on both sides.

    The last digits decide: caps keep the smallest hashes, so first digits are not uniform under a cap.
    """
    return "valid" if int(sha256[-12:], 16) < valid_share * 16**12 else "train"


def read_folder(root: Path, source: str, file_filter: FileFilter) -> Iterator[Document]:
    """Yield the accepted `.py` files below a folder, in path order, without test folders."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        # The finder of an editable install holds nothing but paths of this machine.
        if not _is_excluded(relative.parts[:-1]) and not relative.name.startswith("__editable__"):
            document = read_document(root, relative.as_posix(), source, file_filter)
            if document is not None:
                yield document


def read_document(root: Path, relative: str, source: str, file_filter: FileFilter) -> Document | None:
    """Read one file, or return None if it is missing, not UTF-8, or refused by the filter."""
    path = root / relative
    if not path.is_file() or path.stat().st_size > file_filter.max_bytes:
        return None
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    # Windows line ends would give every newline a second token; the hash stays that of the raw bytes.
    text = text.replace("\r\n", "\n")
    if not file_filter.accepts(text):
        return None
    return Document(source, relative, hashlib.sha256(raw).hexdigest(), text)


def _is_excluded(folders: Iterable[str]) -> bool:
    return any(name in EXCLUDED_FOLDERS or name.startswith("test_") for name in folders)


def _unseen(documents: Iterable[Document], seen: set[str]) -> Iterator[Document]:
    for document in documents:
        if document.sha256 not in seen:
            seen.add(document.sha256)
            yield document


def _cap(documents: Iterable[Document], cap_mb: float | None) -> list[Document]:
    ordered = sorted(documents, key=lambda document: document.sha256)
    if cap_mb is None:
        return ordered
    kept: list[Document] = []
    size = 0
    for document in ordered:
        size += len(document.text.encode())
        if size > cap_mb * 1e6:
            break
        kept.append(document)
    return kept
