"""The manifest of a corpus: what went in, hash by hash, so that it can be checked and read again later."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from sparse_lens.data.corpus import (
    Document,
    FileFilter,
    Source,
    SourceFolder,
    Split,
    source_from_description,
    split_of,
)
from sparse_lens.errors import DataError

MANIFEST_FORMAT = 1

Manifest = dict[str, Any]


@dataclass(frozen=True)
class ManifestReport:
    """How today's files compare with a manifest; `missing` and `changed` hold "source:path"."""

    unchanged: int
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def matches(self) -> bool:
        """Whether every file is there and hashes to its entry."""
        return not self.missing and not self.changed


def build_manifest(
    documents: Sequence[Document], sources: Sequence[Source], file_filter: FileFilter, valid_share: float
) -> Manifest:
    """Return the JSON-able part of a manifest that describes real files, interpreter and packages."""
    return {
        "format": MANIFEST_FORMAT,
        "python": platform.python_version(),
        "filter": asdict(file_filter),
        "valid_share": valid_share,
        "sources": [source.describe() | {"packages": installed_packages(source)} for source in sources],
        "files": [
            {
                "source": document.source,
                "path": document.path,
                "sha256": document.sha256,
                "split": split_of(document.sha256, valid_share),
            }
            for document in documents
        ],
    }


def installed_packages(source: Source) -> dict[str, str]:
    """Return the names and versions of the packages in a folder source; nothing for other sources."""
    if not isinstance(source, SourceFolder):
        return {}
    found = metadata.distributions(path=[str(source.root())])
    return dict(sorted((distribution.name, distribution.version) for distribution in found))


def verify_manifest(manifest: Manifest, sources: Sequence[Source] | None = None) -> ManifestReport:
    """Compare the files of today with a manifest.

    `sources` stand in for those of the manifest by name: for another folder, or a dataset.
    A file that the filter now refuses counts as missing. Raises `DataError` as `rebuild_documents` does.
    """
    return _compare(manifest, _documents_today(manifest, sources))


def rebuild_documents(manifest: Manifest, sources: Sequence[Source] | None = None) -> dict[Split, list[Document]]:
    """Read the texts of a manifest again, in its order, by split.

    Raises `DataError` if a file is missing or changed, or if the manifest has an unknown format.
    """
    today = _documents_today(manifest, sources)
    report = _compare(manifest, today)
    if not report.matches:
        examples = ", ".join((*report.missing, *report.changed)[:3])
        others = "; ".join(_other_packages(manifest, sources)) or "none of the packages it lists differs in its version"
        raise DataError(
            f"{len(report.missing)} files missing and {len(report.changed)} changed (such as {examples}); it is of Python "
            f"{manifest['python']}, this is {platform.python_version()}; {others}; install what it lists, or build a new corpus"
        )
    splits: dict[Split, list[Document]] = {"train": [], "valid": []}
    for entry in manifest["files"]:
        splits[entry["split"]].append(today[entry["source"], entry["path"]])
    return splits


def _documents_today(manifest: Manifest, sources: Sequence[Source] | None) -> dict[tuple[str, str], Document]:
    if manifest.get("format") != MANIFEST_FORMAT:
        raise DataError(f"manifest format is {manifest.get('format')!r}, this version reads {MANIFEST_FORMAT}")
    given = {source.name: source for source in sources or ()}
    wanted = {(entry["source"], entry["path"]) for entry in manifest["files"]}
    found: dict[tuple[str, str], Document] = {}
    for description in manifest["sources"]:
        source = given.get(description["name"]) or source_from_description(_without_packages(description))
        for document in source.documents(FileFilter(**manifest["filter"])):
            if (document.source, document.path) in wanted:
                found[document.source, document.path] = document
    return found


def _other_packages(manifest: Manifest, sources: Sequence[Source] | None, most: int = 5) -> list[str]:
    """Say which packages of a manifest are absent today or of another version, as pip would be asked for them."""
    given = {source.name: source for source in sources or ()}
    others: list[str] = []
    for description in manifest["sources"]:
        listed = description.get("packages") or {}
        source = given.get(description["name"]) or source_from_description(_without_packages(description))
        installed = installed_packages(source) if listed else {}
        different = (f"{name}=={version}" for name, version in listed.items() if installed.get(name) != version)
        others += [f"{wanted} (here: {installed.get(wanted.partition('==')[0], 'none')})" for wanted in different]
    return [*others[:most], f"and {len(others) - most} more packages"] if len(others) > most else others


def _without_packages(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key != "packages"}


def _compare(manifest: Manifest, today: Mapping[tuple[str, str], Document]) -> ManifestReport:
    missing: list[str] = []
    changed: list[str] = []
    for entry in manifest["files"]:
        document = today.get((entry["source"], entry["path"]))
        if document is None:
            missing.append(f"{entry['source']}:{entry['path']}")
        elif document.sha256 != entry["sha256"]:
            changed.append(f"{entry['source']}:{entry['path']}")
    return ManifestReport(len(manifest["files"]) - len(missing) - len(changed), tuple(missing), tuple(changed))
