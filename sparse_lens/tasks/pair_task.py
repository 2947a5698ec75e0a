"""Tasks from prompt pairs of one's own, in code or in a CSV or JSON-lines file."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks.batch import SPLITS, EncodedPair, PromptPair, TaskBatch, common_start, encode_pair, make_batch
from sparse_lens.tasks.metrics import Metric
from sparse_lens.tasks.tokens import Encoder

COLUMNS = ("clean", "corrupt", "target", "distractor")
_MOST_ROWS = 1_000_000
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class PairTask:
    """A task of given pairs: `pairs` by split; a split has at most the pairs that it was given."""

    name: str
    description: str
    pairs: Mapping[str, tuple[PromptPair, ...]]
    control: bool = False
    metric: Metric | None = None

    def sample(self, tokenizer: Any, n: int, *, seed: int, split: str) -> TaskBatch:
        """`n` pairs of a split in random order, or all of them where there are fewer.

        Raises `DataError` for a split without pairs, for answers that are not one token each, and for a pair whose prompts are
        of unequal length in tokens; `UnknownNameError` for an unknown split.
        """
        if split not in SPLITS:
            raise UnknownNameError("task split", split, SPLITS)
        pairs = list(self.pairs.get(split, ()))
        if not pairs:
            raise DataError(f"task {self.name!r} has no pairs of the split {split!r}; it has {', '.join(self.pairs)}")
        random.Random(f"{self.name}:{split}:{seed}").shuffle(pairs)
        encoder = Encoder(tokenizer)
        rows: dict[PromptPair, EncodedPair] = {}
        answers: dict[PromptPair, tuple[int, int]] = {}
        for pair in pairs[:n]:
            ids = encoder.answers((pair.target, pair.distractor), self.name)
            encoded = encode_pair(pair, encoder, ids)
            if encoded is None:
                raise DataError(
                    f"task {self.name!r}: the prompts {pair.clean!r} and {pair.corrupt!r} are not equally long in this "
                    "tokenizer, or an answer merges with what stands before it; reword one"
                )
            rows[pair], answers[pair] = encoded, (ids[pair.target], ids[pair.distractor])
        return make_batch(rows, answers, encoder.end)


def task_from_pairs(
    name: str, pairs: Iterable[Mapping[str, str]], *, description: str = "", metric: Metric | None = None
) -> PairTask:
    """A task from mappings with `clean`, `corrupt`, `target`, `distractor`, and perhaps `split`.

    The clean prompt is answered by `target`, the corrupt one by `distractor`. Pairs without a split are shared out by a hash of
    their text: three fifths to search on, a fifth each to choose on and to score on. What the two prompts have
    in common at their ends is not taken for an input of the task. Circuits are searched by the `metric`, if there is one, in place
    of the cross-entropy of the two answers. Raises `DataError` for a row that lacks something.
    """
    found: dict[str, list[PromptPair]] = {}
    for number, row in enumerate(pairs, 1):
        split, pair = _read_row(name, number, row)
        found.setdefault(split, []).append(pair)
    if not found:
        raise DataError(f"task {name!r} has no pairs; give at least one for each of {', '.join(SPLITS[:3])}")
    by_split = {key: tuple(dict.fromkeys(pairs)) for key, pairs in found.items()}
    return PairTask(name, description or f"{name}: pairs of one's own", by_split, metric=metric)


def task_from_file(path: str | Path, *, name: str | None = None, description: str = "", metric: Metric | None = None) -> PairTask:
    """A task from a `.csv` (with a header) or `.jsonl` file; see `task_from_pairs`. Raises `DataError` if it cannot be read."""
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is larger than {_MOST_BYTES >> 30} GiB; keep the pairs that are needed")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(islice(_rows(path, file), _MOST_ROWS))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as prompt pairs: {error}") from error
    return task_from_pairs(name or path.stem, rows, description=description, metric=metric)


def _rows(path: Path, file: Any) -> Iterator[Mapping[str, str]]:
    if path.suffix == ".csv":
        yield from csv.DictReader(file, strict=True)
    elif path.suffix in (".jsonl", ".json"):
        for number, line in enumerate(file, 1):
            if line.strip():
                if not isinstance(row := json.loads(line), dict):
                    raise DataError(f"{path}, line {number}: a pair is an object, got {row!r:.100}")
                yield row
    else:
        raise DataError(f"{path}: prompt pairs come in a .csv or a .jsonl file")


def _read_row(name: str, number: int, row: Any) -> tuple[str, PromptPair]:
    found = [row.get(column) for column in COLUMNS] if isinstance(row, Mapping) else []
    values = [value for value in found if isinstance(value, str) and value]
    if len(values) != len(COLUMNS):
        needed = ", ".join(COLUMNS)
        raise DataError(f"task {name!r}, pair {number}: {needed} are needed as text, got {row!r:.200}")
    clean, corrupt, target, distractor = values
    if clean == corrupt or target == distractor:
        raise DataError(f"task {name!r}, pair {number}: the two prompts, and the two answers, must differ, got {row!r:.200}")
    split = row.get("split") or _share_out(clean)
    if split not in SPLITS:
        raise UnknownNameError("task split", str(split), SPLITS)
    start = common_start(clean, corrupt)
    end = common_start(clean[start:][::-1], corrupt[start:][::-1])
    spans = [((start, len(text) - end),) if len(text) - end > start else () for text in (clean, corrupt)]
    return split, PromptPair(clean, corrupt, target, distractor, *spans)


def _share_out(text: str) -> str:
    place = hashlib.sha256(text.encode()).digest()[0] / 256
    return "search" if place < 0.6 else "validation" if place < 0.8 else "heldout"
