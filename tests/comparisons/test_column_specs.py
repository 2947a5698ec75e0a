"""What a column's numbers depend on: read once, and again when the files change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparse_lens.comparisons import ModelPair, column_specs
from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints
from sparse_lens.hooks import load


def test_fingerprints_follow_the_files_and_read_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column_specs._model_hash.cache_clear()
    pair, folder, reads = ModelPair.open(), tmp_path / "model", []
    monkeypatch.setattr(column_specs, "load", lambda path: reads.append(path) or load(path))
    shutil.copytree(pair.model_folder("dense_matched"), folder)
    arm, own = ColumnSpec("arm", str(folder)), ColumnSpec("own", "dense_matched")
    first = fingerprints(pair, arm)
    assert fingerprints(pair, arm) == first == fingerprints(pair, own)
    assert len(reads) == 2, "two folders, each read once"

    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))
    assert fingerprints(pair, arm) != first and fingerprints(pair, arm)[0] == first[0], (
        "tasks are text: another tokenizer, other numbers"
    )
    reads.pop()

    shutil.rmtree(folder)
    shutil.copytree(pair.model_folder("dense"), folder)
    assert fingerprints(pair, arm)[0] != first[0]
    assert fingerprints(pair, own) == first
    assert len(reads) == 3
