"""Tasks of one's own, from pairs in code and from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks import PairTask, task_from_file, task_from_pairs

ROW = {"clean": "x = [2, 4", "corrupt": "x = {2, 4", "target": "]", "distractor": "}"}


def rows(n: int = 40) -> list[dict[str, str]]:
    return [{key: text.replace("4", str(number)) for key, text in ROW.items()} for number in range(n)]


def test_pairs_are_shared_out_and_encoded(tokenizer: Tokenizer) -> None:
    """Every pair is in one split; the fork is what differs; a split gives all it has where more is asked for."""
    task = task_from_pairs("own", rows())
    assert sum(len(pairs) for pairs in task.pairs.values()) == 40
    assert {"search", "validation", "heldout"} == set(task.pairs)
    batch = task.sample(tokenizer, 1000, seed=0, split="search")
    assert len(batch) == len(task.pairs["search"]) > 15
    assert (batch.target == tokenizer.token_to_id("]")).all() and (batch.distractor == tokenizer.token_to_id("}")).all()
    assert (batch.clean_fork.sum(1) == 1).all() and (batch.clean != batch.corrupt).sum(1).tolist() == [1] * len(batch)
    assert batch.pairs == task.sample(tokenizer, 1000, seed=0, split="search").pairs
    assert batch.pairs[:3] == task.sample(tokenizer, 3, seed=0, split="search").pairs
    assert batch.pairs != task.sample(tokenizer, 1000, seed=1, split="search").pairs


def test_answers_may_differ_from_pair_to_pair(tokenizer: Tokenizer) -> None:
    other = {"clean": "if x", "corrupt": "( x", "target": ":", "distractor": ")", "split": "heldout"}
    task = task_from_pairs("own", [ROW | {"split": "heldout"}, other])
    batch = task.sample(tokenizer, 2, seed=0, split="heldout")
    assert sorted(tokenizer.id_to_token(int(token)) for token in batch.target) == [":", "]"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_files(suffix: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A comma and a line break in a prompt come back as they were."""
    path, table = tmp_path / f"mine{suffix}", [ROW | {"split": split} for split in ("search", "heldout")]
    table[0] = table[0] | {"clean": "a\nx = [2, 4", "corrupt": "a\nx = {2, 4"}
    if suffix == ".csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*ROW, "split"])
            writer.writeheader()
            writer.writerows(table)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    task = task_from_file(path)
    assert task.name == "mine" and isinstance(task, PairTask)
    assert task.pairs["search"][0].clean == "a\nx = [2, 4"
    assert len(task.sample(tokenizer, 9, seed=0, split="heldout")) == 1


def test_bad_input(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What was wrong, and in which pair."""
    with pytest.raises(DataError, match=r"pair 2: .*are needed as text"):
        task_from_pairs("own", [ROW, {"clean": "x"}])
    with pytest.raises(DataError, match="must differ"):
        task_from_pairs("own", [ROW | {"corrupt": ROW["clean"]}])
    with pytest.raises(DataError, match="no pairs"):
        task_from_pairs("own", [])
    with pytest.raises(UnknownNameError, match="heldout"):
        task_from_pairs("own", [ROW | {"split": "held-out"}])
    with pytest.raises(DataError, match="no pairs of the split 'rephrased'"):
        task_from_pairs("own", rows()).sample(tokenizer, 2, seed=0, split="rephrased")
    uneven = task_from_pairs("own", [ROW | {"corrupt": "xyzzy = {2, 4", "split": "search"}])
    with pytest.raises(DataError, match="not equally long"):
        uneven.sample(tokenizer, 1, seed=0, split="search")
    long = task_from_pairs("own", [ROW | {"target": "xyzzy", "split": "search"}])
    with pytest.raises(DataError, match=r"answer 'xyzzy' is . tokens"):
        long.sample(tokenizer, 1, seed=0, split="search")
    for name, content in (("a.txt", "x"), ("a.jsonl", "{"), ("a.csv", '"'), ("b.jsonl", "[1]\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError):
            task_from_file(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        task_from_file(tmp_path / "absent.csv")
