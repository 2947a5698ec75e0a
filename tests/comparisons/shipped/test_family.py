"""The tables of the family: means and ranges over seeds, counts of tasks, pages rewritten between their markers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.comparisons.shipped.cards import bits_per_byte
from sparse_lens.comparisons.shipped.family import (
    accuracy_table,
    collect_family,
    family_table,
    family_tables,
    read_family,
)
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.data import load_tokenizer
from sparse_lens.errors import DataError
from sparse_lens.hooks import load
from sparse_lens.models_shipped import DEFAULT_PAIR, pair_windows, shipped_models, tokenizer_folder


def result(name: str, seed: int, loss: float, accuracies: dict[str, float]) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "loss": loss,
        "bits_per_byte": loss / 2,
        "matrix_nonzeros": 10,
        "matrix_parameters": 1000,
        "validation_loss": loss - 0.1,
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
    losses = "3.100 (3.000 to 3.200) | 1.550 (1.500 to 1.600) | 3.000 (2.900 to 3.100)"
    assert lines[2] == f"| `python-sparse` | 0, 1 | 2.5 | 10 of 1,000 | {losses} | 1, 2 | 2 |"
    assert lines[3] == "| `arm-x` | 0 | 2.5 | 10 of 1,000 | 4.000 | 2.000 | 3.900 | 0 | 2 |"


def test_a_task_that_was_not_measured_is_left_blank() -> None:
    assert accuracy_table(RESULTS).splitlines()[-1] == "| b | 50.0 | 92.0 |  |"


def test_pages_are_written_between_their_markers(tmp_path: Path) -> None:
    """What stands around the tables stays; a page without a marker is an error."""
    page = tmp_path / "page.md"
    blocks = "".join(
        f"<!-- table: {name} -->\nold\n<!-- end -->\nkept {name}\n" for name in ("main", "arms", "accuracies", "measurable")
    )
    page.write_text(blocks)
    write_tables(page, family_tables(RESULTS))
    text = page.read_text()
    assert "old" not in text and all(f"kept {name}" in text for name in ("main", "arms", "accuracies", "measurable"))
    assert "`arm-x`" in text.partition("kept main")[2].partition("kept arms")[0]
    page.write_text("nothing")
    with pytest.raises(DataError, match="marker"):
        write_tables(page, family_tables(RESULTS))


def test_results_come_back(tmp_path: Path) -> None:
    for number, found in enumerate(RESULTS):
        (tmp_path / f"{number}.json").write_text(json.dumps(found))
    assert read_family(tmp_path) == [RESULTS[2], *RESULTS[:2]]
    with pytest.raises(DataError, match="no trained model"):
        collect_family(tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_a_trained_model_is_measured_once_and_kept(tmp_path: Path) -> None:
    """The shipped card's own figures; a result that is there is not measured again; kept weights load as they were."""
    shipped = shipped_models()["python-dense-matched"]
    shutil.copytree(shipped, tmp_path / "models" / "python-dense-matched")
    (found,) = collect_family(tmp_path / "models", tmp_path / "out", keep="python-*")
    card = json.loads((shipped / "card.json").read_text())
    assert found["loss"] == pytest.approx(card["loss"], abs=1e-5)
    assert found["matrix_nonzeros"] == card["matrix_nonzeros"]
    assert found["task_accuracies"] == {task: round(value["value"], 6) for task, value in card["task_accuracies"].items()}
    kept = tmp_path / "out" / "weights" / "python-dense-matched"
    assert json.loads((kept / "card.json").read_text())["loss"] == pytest.approx(card["loss"], abs=1e-5)
    for name, weight in load(shipped).state_dict().items():
        assert (load(kept).state_dict()[name] == weight).all()
    (tmp_path / "out" / "python-dense-matched.json").write_text(json.dumps(found | {"loss": 0.0}))
    (again,) = collect_family(tmp_path / "models", tmp_path / "out")
    assert again["loss"] == 0.0


FAMILY = Path(__file__).parents[3] / "docs" / "family"
PAGE = FAMILY.parent / "pages" / "family.md"


def test_the_page_holds_the_kept_results() -> None:
    """Each table of docs/pages/family.md is what the JSON files beside it give."""
    text = PAGE.read_text()
    for name, table in family_tables(read_family(FAMILY)).items():
        assert f"<!-- table: {name} -->\n{table}\n<!-- end -->" in text


def test_the_shipped_models_are_those_of_the_family() -> None:
    """Loss and nonzeros of the results are those of the cards in the wheel; arms were measured before rounding to float16."""
    results = {result["name"]: result for result in read_family(FAMILY)}
    for name, folder in shipped_models().items():
        if folder.parent.name != DEFAULT_PAIR:
            continue  # another pair's models are no part of the family
        card = json.loads((folder / "card.json").read_text())
        assert results[name]["loss"] == pytest.approx(card["loss"], abs=1e-3 if name.startswith("arm-") else 1e-5)
        rounded_away = results[name]["matrix_nonzeros"] - card["matrix_nonzeros"]
        assert 0 <= rounded_away <= (1 if name == "arm-dense-abstopk" else 0)


def test_the_matched_seeds_are_matched() -> None:
    """Within 0.05 nats of the sparse model of the same seed, on the same real files."""
    results = {result["name"]: result["loss"] for result in read_family(FAMILY)}
    for seed in ("", "-seed1", "-seed2"):
        assert abs(results[f"python-dense-matched{seed}"] - results[f"python-sparse{seed}"]) <= 0.05


def test_bits_per_byte() -> None:
    """One nat a token over tokens of known text: the bytes are those of the text, special tokens apart."""
    tokenizer, windows = load_tokenizer(tokenizer_folder()), pair_windows()["heldout"][:4]
    n_bytes = sum(len(tokenizer.decode(window[1:].tolist()).encode()) for window in windows)
    assert bits_per_byte(1.0, windows, tokenizer) == pytest.approx(windows[:, 1:].size / 0.6931471805599453 / n_bytes)
