import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_lens.data import (
    DataConfig,
    DatasetSource,
    SourceFolder,
    TokenData,
    prepare_data,
    rebuild_data,
    rebuild_documents,
    verify_manifest,
)
from sparse_lens.data.corpus import source_from_description
from sparse_lens.errors import DataError


def test_manifest_records_what_went_in(token_data: TokenData, data_config: DataConfig) -> None:
    manifest = token_data.manifest
    assert len(manifest["files"]) == 40
    assert {entry["split"] for entry in manifest["files"]} == {"train", "valid"}
    assert manifest["generator"]["share"] == data_config.generated_share
    assert manifest["sources"][0]["name"] == "package"
    assert manifest["config_hash"] == data_config.fingerprint()


def test_unchanged_files_verify_and_rebuild(token_data: TokenData) -> None:
    report = verify_manifest(token_data.manifest)
    assert report.matches
    assert report.unchanged == 40
    splits = rebuild_documents(token_data.manifest)
    assert len(splits["train"]) + len(splits["valid"]) == 40


def test_changed_and_missing_files_are_named(token_data: TokenData, source_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "package"
    shutil.copytree(source_folder, copy)
    (copy / "module_3.py").write_text((copy / "module_3.py").read_text() + "# changed\n")
    (copy / "module_4.py").unlink()
    elsewhere = [SourceFolder(str(copy))]
    report = verify_manifest(token_data.manifest, elsewhere)
    assert report.changed == ("package:module_3.py",)
    assert report.missing == ("package:module_4.py",)
    assert report.unchanged == 38
    with pytest.raises(DataError, match="1 files missing and 1 changed"):
        rebuild_documents(token_data.manifest, elsewhere)


def test_packages_of_another_version_are_named(token_data: TokenData, source_folder: Path, tmp_path: Path) -> None:
    """The error says what to ask pip for: a new pip is enough to change site-packages."""
    copy = tmp_path / "package"
    shutil.copytree(source_folder, copy)
    (copy / "module_4.py").unlink()
    (copy / "pip-2.0.dist-info").mkdir()
    (copy / "pip-2.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pip\nVersion: 2.0\n")
    (source,) = token_data.manifest["sources"]
    manifest = token_data.manifest | {"sources": [source | {"packages": {"einops": "0.8", "pip": "1.0"}}]}
    with pytest.raises(DataError, match=r"einops==0\.8 \(here: none\); pip==1\.0 \(here: 2\.0\); install"):
        rebuild_documents(manifest, [SourceFolder(str(copy))])


def test_a_dataset_must_be_passed_again() -> None:
    description = DatasetSource("name/on-a-hub").describe()
    with pytest.raises(DataError, match="pass sources="):
        source_from_description(description)


def test_unknown_format_is_refused() -> None:
    with pytest.raises(DataError, match="manifest format is 99"):
        verify_manifest({"format": 99})


def test_packages_of_a_folder_are_listed(tmp_path: Path, source_folder: Path, data_config: DataConfig) -> None:
    site = tmp_path / "site"
    shutil.copytree(source_folder, site)
    info = site / "thing-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.2\n")
    config = DataConfig(
        sources=(SourceFolder(str(site)),),
        generated_share=0.0,
        tokenizer_directory=data_config.tokenizer_directory,
        valid_generated_tokens=0,
    )
    data = prepare_data(config, tmp_path / "out")
    assert data.manifest["sources"][0]["packages"] == {"thing": "1.2"}
    assert verify_manifest(data.manifest).matches
    assert data.manifest["tokens"]["valid_generated"] == len(data.valid_generated) == 0


def test_a_corpus_is_rebuilt_from_its_manifest_alone(token_data: TokenData, source_folder: Path, tmp_path: Path) -> None:
    """The listed files give the same tokens, in another place and among new files; what differs is an error that leaves nothing."""
    folder = tmp_path / "moved"
    shutil.copytree(source_folder, folder)
    (folder / "new_module.py").write_text((folder / "module_1.py").read_text() + "x = 1\n")
    published = without_paths(token_data.manifest)
    source = SourceFolder(str(folder), name="package")
    rebuilt = rebuild_data(published, tmp_path / "corpus", [source])
    for split in ("train", "valid", "valid_generated"):
        assert np.array_equal(rebuilt.tokens(split), token_data.tokens(split))
    assert rebuilt.manifest == published
    assert rebuild_data(published, tmp_path / "corpus").directory == rebuilt.directory
    wrong = published | {"tokens": published["tokens"] | {"train": 1}}
    with pytest.raises(DataError, match="tokens came out as"):
        rebuild_data(wrong, tmp_path / "other", [source])
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataError, match="a folder without a path"):
        rebuild_data(published, tmp_path / "other")


def without_paths(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest | {"sources": [{k: v for k, v in source.items() if k != "path"} for source in manifest["sources"]]}
