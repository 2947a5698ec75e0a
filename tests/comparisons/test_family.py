"""The tables of the family: means and ranges over seeds, counts of tasks, pages rewritten between their markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.comparisons.cards import bits_per_byte
from sparse_lens.comparisons.family import accuracy_table, collect_family, family_table, read_family, write_tables
from sparse_lens.data import TokenData, load_tokenizer
from sparse_lens.errors import DataError
from sparse_lens.models_shipped import pair_windows, tokenizer_folder


def result(name: str, seed: int, loss: float, accuracies: dict[str, float]) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "loss": loss,
        "bits_per_byte": loss / 2,
        "matrix_nonzeros": 10,
        "matrix_parameters": 1000,
        "tokens": 2_500_000,
        "seconds": 120.0,
        "task_accuracies": accuracies,
    }


RESULTS = [
    result("python-sparse", 0, 3.0, {"a": 0.95, "b": 0.5}),
    result("python-sparse-seed1", 1, 3.2, {"a": 0.95, "b": 0.92}),
    result("arm-x", 0, 4.0, {"a": 0.1}),
]


def test_a_row_for_each_recipe() -> None:
    """Seeds are put together; a recipe of one seed has no range."""
    lines = family_table(RESULTS).splitlines()
    assert lines[2] == "| `python-sparse` | 0, 1 | 2.5 | 10 of 1,000 | 3.100 (3.000 to 3.200) | 1.550 (1.500 to 1.600) | 1, 2 | 2 |"
    assert lines[3] == "| `arm-x` | 0 | 2.5 | 10 of 1,000 | 4.000 | 2.000 | 0 | 2 |"


def test_a_task_that_was_not_measured_is_left_blank() -> None:
    assert accuracy_table(RESULTS).splitlines()[-1] == "| b | 50.0 | 92.0 |  |"


def test_pages_are_written_between_their_markers(tmp_path: Path) -> None:
    """What stands around the tables stays; a page without a marker is an error."""
    page = tmp_path / "page.md"
    blocks = "".join(f"<!-- table: {name} -->\nold\n<!-- end -->\nkept {name}\n" for name in ("main", "arms", "accuracies"))
    page.write_text(blocks)
    write_tables(page, RESULTS)
    text = page.read_text()
    assert "old" not in text and all(f"kept {name}" in text for name in ("main", "arms", "accuracies"))
    assert "`arm-x`" in text.partition("kept main")[2].partition("kept arms")[0]
    page.write_text("nothing")
    with pytest.raises(DataError, match="marker"):
        write_tables(page, RESULTS)


def test_results_come_back(tmp_path: Path) -> None:
    for number, found in enumerate(RESULTS):
        (tmp_path / f"{number}.json").write_text(json.dumps(found))
    assert read_family(tmp_path) == RESULTS
    with pytest.raises(DataError, match="no trained model"):
        collect_family(tmp_path, TokenData(tmp_path), tmp_path / "out")


def test_bits_per_byte() -> None:
    """One nat a token over tokens of known text: the bytes are those of the text, special tokens apart."""
    tokenizer, windows = load_tokenizer(tokenizer_folder()), pair_windows()["heldout"][:4]
    n_bytes = sum(len(tokenizer.decode(window[1:].tolist()).encode()) for window in windows)
    assert bits_per_byte(1.0, windows, tokenizer) == pytest.approx(windows[:, 1:].size / 0.6931471805599453 / n_bytes)
