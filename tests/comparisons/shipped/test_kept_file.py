"""What a command kept is read again, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_lens.comparisons.shipped.kept_file import read_kept_file
from sparse_lens.errors import DataError
from sparse_lens.results import exact, write_json


def test_results_come_back(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    assert read_kept_file(path, ["models"]) == {}
    write_json({"models": {"a": exact(1.5)}, "scope": [1]}, path)
    assert read_kept_file(path, ["models"]) == {"models": {"a": exact(1.5)}, "scope": [1]}


@pytest.mark.parametrize(("text", "why"), [("{", "Expecting"), ("[]", "a list"), ('{"scope": 1}', "no 'models'")])
def test_other_files_are_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"no file of this command .*{why}.*--out"):
        read_kept_file(path, ["models"])
