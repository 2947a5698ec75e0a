"""Streams of local files: packed without loss, independent of workers, resumed to the token, and flat in memory."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_lens.data import END_OF_TEXT, StreamData, generate_program, save_tokenizer, train_tokenizer
from sparse_lens.errors import DataError

N_FILES, N_DOCUMENTS = 4, 15


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer((generate_program(random.Random(n)) for n in range(40)), 500), folder)
    return str(folder)


def documents(number: int) -> list[str]:
    return [generate_program(random.Random(f"{number}-{index}")) for index in range(N_DOCUMENTS)]


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of fifteen programs each."""
    folder = tmp_path_factory.mktemp(request.param)
    for number in range(N_FILES):
        rows = [{"text": text, "number": number} for text in documents(number)]
        if request.param == "jsonl":
            (folder / f"part-{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        else:
            import datasets

            datasets.Dataset.from_list(rows).to_parquet(str(folder / f"part-{number}.parquet"))
    return folder


def stream(source: Path, tokenizer_directory: str, cache: Path, **options: Any) -> StreamData:
    return StreamData(str(source), tokenizer_directory, cache, **({"block_tokens": 700, "valid_share": 0.1} | options))


def batches(data: StreamData, n: int, state: Any = None, start: int = 0) -> list[tuple[np.ndarray, Any]]:
    found = data.resumable_batches(context=16, batch_size=4, seed=3, start_step=start, n_steps=n, state=state)
    return list(itertools.islice(found, n))


def test_blocks_hold_every_training_document_once_a_pass(source: Path, tokenizer_directory: str, tmp_path: Path) -> None:
    """The blocks one after the other are the documents in the pass's order, but for those held out, which are in no block."""
    data = stream(source, tokenizer_directory, tmp_path)
    ends = data.tokenizer.token_to_id(END_OF_TEXT)
    texts = [text for number in range(N_FILES) for text in documents(number)]
    training = [text for text in texts if not data.is_held_out(text)]
    assert 0 < len(training) < len(texts)
    tokens, number = [], 0
    while tokens.count(ends) < len(training):
        tokens += data.block(number)[:-1].tolist()
        number += 1
    found, start = [], 0
    for position, token in enumerate(tokens):
        if token == ends:
            found.append(data.tokenizer.decode(tokens[start:position]))
            start = position + 1
    assert sorted(found[: len(training)]) == sorted(training)
    valid = data.validation_windows(16, 4)
    assert valid.shape == (4, 17)
    held_out = "".join(text for text in texts if data.is_held_out(text))
    assert all(data.tokenizer.decode(window[:8].tolist()) in held_out for window in valid[:1])


def test_neighbouring_blocks_share_a_token(source: Path, tokenizer_directory: str, tmp_path: Path) -> None:
    data = stream(source, tokenizer_directory, tmp_path)
    assert data.block(0)[-1] == data.block(1)[0] and len(data.block(0)) == 701


def test_workers_and_the_cache_change_nothing(source: Path, tokenizer_directory: str, tmp_path: Path) -> None:
    """One worker or three, made at once or one block a process: the same tokens."""
    one = stream(source, tokenizer_directory, tmp_path / "a", workers=1)
    expected = [one.block(number).copy() for number in range(6)]
    three = stream(source, tokenizer_directory, tmp_path / "b", workers=3)
    for number in (5, 2, 0, 4):
        assert np.array_equal(three.block(number), expected[number])
    for number in range(6):
        fresh = stream(source, tokenizer_directory, tmp_path / "c")
        assert np.array_equal(fresh.block(number), expected[number])


@pytest.mark.parametrize("stop", [1, 7, 10, 23])
def test_a_stream_resumes_to_the_token(source: Path, tokenizer_directory: str, tmp_path: Path, stop: int) -> None:
    """From a saved state, with the blocks on disk or without them; also without a state, from the step alone."""
    whole = batches(stream(source, tokenizer_directory, tmp_path / "a"), 40)
    state = json.loads(json.dumps(whole[stop - 1][1]))
    for cache in ("a", "b"):
        rest = batches(stream(source, tokenizer_directory, tmp_path / cache), 40 - stop, state)
        assert all(np.array_equal(x, y) for (x, _), (y, _) in zip(rest, whole[stop:], strict=True))
    rest = batches(stream(source, tokenizer_directory, tmp_path / "a"), 5, None, stop)
    assert all(np.array_equal(x, y) for (x, _), (y, _) in zip(rest, whole[stop:], strict=False))


def test_seeds_shuffle(source: Path, tokenizer_directory: str, tmp_path: Path) -> None:
    """The stream's seed orders the files, the batches' seed the windows."""
    data = stream(source, tokenizer_directory, tmp_path)
    other = stream(source, tokenizer_directory, tmp_path, seed=1)
    assert data.manifest["config_hash"] != other.manifest["config_hash"]
    assert not np.array_equal(data.block(0), other.block(0))
    first = next(iter(data.resumable_batches(context=16, batch_size=4, seed=0, start_step=0, n_steps=1, state=None)))[0]
    assert not np.array_equal(first, batches(data, 1)[0][0])


def test_tokens_are_read_from_the_cache(
    source: Path, tokenizer_directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run opens no source and tokenizes nothing."""
    expected = batches(stream(source, tokenizer_directory, tmp_path), 12)
    again = stream(source, tokenizer_directory, tmp_path)
    monkeypatch.setattr(StreamData, "_open", lambda self, epoch: pytest.fail("the source was opened"))
    assert all(np.array_equal(x, y) for (x, _), (y, _) in zip(batches(again, 12), expected, strict=True))


def test_bad_sources(source: Path, tokenizer_directory: str, tmp_path: Path) -> None:
    """Missing, empty, without the column, with something else than text, damaged, too small for a batch."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "void.jsonl").write_text("")
    (tmp_path / "numbers.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "a\n\n}')
    for place in ("empty", "void.jsonl", "numbers.jsonl", "broken.jsonl"):
        with pytest.raises(DataError):
            stream(tmp_path / place, tokenizer_directory, tmp_path / "cache").block(0)
    with pytest.raises(DataError, match="no column 'content'; it has \\['number', 'text'\\]"):
        stream(source, tokenizer_directory, tmp_path / "cache", column="content").block(0)
    with pytest.raises(DataError, match="no text to train on"):
        stream(source, tokenizer_directory, tmp_path / "cache", valid_share=0.9999999).block(0)
    with pytest.raises(DataError, match="smaller than a batch"):
        batches(stream(source, tokenizer_directory, tmp_path / "cache", block_tokens=40), 1)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tokenizer_directory: str, tmp_path: Path) -> None:
    """Ten times the corpus, read to its end, takes at most a tenth more memory."""
    peaks = {}
    for copies in (1, 10):
        folder = tmp_path / f"corpus-{copies}"
        folder.mkdir()
        for number in range(4 * copies):
            texts = (generate_program(random.Random(f"{number}-{index}")) for index in range(100))
            (folder / f"{number}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                data = stream(folder, tokenizer_directory, tmp_path / "cache", block_tokens=1 << 14)
                for number in range(7 * copies):
                    data.block(number)
                (tmp_path / f"peak-{copies}").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        peaks[copies] = int((tmp_path / f"peak-{copies}").read_text())
    assert peaks[10] < 1.1 * peaks[1]
