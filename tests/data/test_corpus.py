import random
from pathlib import Path

import pytest
from datasets import Dataset

from sparse_lens.data import (
    DatasetSource,
    FileFilter,
    SourceFolder,
    StandardLibrary,
    collect_documents,
)
from sparse_lens.data.corpus import split_of
from sparse_lens.errors import DataError


def test_folder_without_tests_duplicates_and_refused_files(source_folder: Path) -> None:
    documents = collect_documents([SourceFolder(str(source_folder))])
    paths = {document.path for document in documents}
    assert len(documents) == 40
    assert not paths & {"tests/left_out.py", "short.py", "long_line.py", "latin.py"}
    assert ("copy.py" in paths) != ("module_0.py" in paths)
    assert {document.source for document in documents} == {"package"}


def test_equal_texts_in_two_sources_enter_once(source_folder: Path) -> None:
    sources = [SourceFolder(str(source_folder)), SourceFolder(str(source_folder / "tests"), name="tests")]
    (twin,) = [d for d in collect_documents(sources) if d.source == "tests"]
    assert twin.path == "left_out.py"
    with pytest.raises(DataError, match="'again' gave no text"):
        collect_documents([sources[0], SourceFolder(str(source_folder), name="again")])


def test_cap_is_a_prefix_in_hash_order(source_folder: Path) -> None:
    everything = collect_documents([SourceFolder(str(source_folder))])
    capped = collect_documents([SourceFolder(str(source_folder), cap_mb=0.01)])
    assert 0 < len(capped) < len(everything)
    assert capped == everything[: len(capped)]
    assert sum(len(document.text.encode()) for document in capped) <= 10_000


def test_file_filter_limits(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\r\n" * 100, newline="")
    (document,) = SourceFolder(str(tmp_path)).documents(FileFilter())
    assert document.text == "x = 1\n" * 100
    assert not list(SourceFolder(str(tmp_path)).documents(FileFilter(max_bytes=100)))
    assert not list(SourceFolder(str(tmp_path)).documents(FileFilter(min_characters=1000)))


def test_standard_library_has_no_tests() -> None:
    root = StandardLibrary().root()
    assert (root / "argparse.py").is_file()
    documents = collect_documents([StandardLibrary(cap_mb=1.0)])
    assert not any(part in {"test", "tests", "site-packages"} for d in documents for part in Path(d.path).parts)


def test_split_depends_on_the_hash_alone_and_survives_a_cap() -> None:
    hashes = [f"{random.Random(seed).getrandbits(256):064x}" for seed in range(4000)]
    shares = [split_of(sha, 0.05) == "valid" for sha in hashes]
    assert 0.035 < sum(shares) / len(shares) < 0.065
    # A capped source keeps only small hashes; it must not end up in one split.
    small = sorted(hashes)[:800]
    assert 0.02 < sum(split_of(sha, 0.05) == "valid" for sha in small) / 800 < 0.08


def test_dataset_object_and_saved_dataset(programs: list[str], tmp_path: Path) -> None:
    texts = [*programs[:3], "short"]
    dataset = Dataset.from_dict({"content": texts})
    (tmp_path / "saved").mkdir()
    dataset.save_to_disk(str(tmp_path / "saved"))
    from_object = collect_documents([DatasetSource(dataset, column="content")])
    from_disk = collect_documents([DatasetSource(str(tmp_path / "saved"), column="content")])
    assert from_object == from_disk
    assert {document.text for document in from_object} == set(texts[:3])
    with pytest.raises(DataError, match=r"no column 'text'; it has \['content'\]"):
        collect_documents([DatasetSource(dataset)])


def test_errors_of_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        collect_documents([SourceFolder(str(tmp_path / "nowhere"))])
    with pytest.raises(DataError, match="distinct source names"):
        collect_documents([SourceFolder(str(tmp_path)), SourceFolder(str(tmp_path))])
    with pytest.raises(DataError, match="at least one source"):
        collect_documents([])
