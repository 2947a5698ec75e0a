"""The released models' tokenizer from its two files, against tiktoken and the published ids."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest

from sparse_lens.errors import CheckpointError
from sparse_lens.models import read_tokenizer
from sparse_lens.models.tokenizer_files import _PIECES

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "tinypython_2k"
needs_files = pytest.mark.skipif(not FOLDER.is_dir(), reason="the published tokenizer's files are not beside the checkout")


@needs_files
def test_published_ids() -> None:
    tokenizer = read_tokenizer(FOLDER, 2048)
    assert tokenizer is not None
    published = {"]\n": 330, "]]\n": 1252, '")': 1644, "')": 956, "'": 6, '"': 1, ".add": 565, " +=": 495, "<|endoftext|>": 2047}
    assert {text: tokenizer.encode(text) for text in published} == {text: [number] for text, number in published.items()}
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2047


@needs_files
def test_equal_to_tiktoken() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    tokenizer = read_tokenizer(FOLDER, 2048)
    assert tokenizer is not None
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    ids = json.loads((FOLDER / "encoder.json").read_text(encoding="utf-8"))
    special = {name: ids.pop(name) for name in ("<|endoftext|>", "<|startoftext|>")}
    ranks = {bytes(byte_of[c] for c in text): number for text, number in ids.items()}
    witness = tiktoken.Encoding("tinypython_2k", pat_str=_PIECES, mergeable_ranks=ranks, special_tokens=special)
    count = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]:
        text = path.read_text(encoding="utf-8", errors="replace")
        expected = witness.encode(text, disallowed_special=())
        assert tokenizer.encode(text) == expected, path.name
        assert tokenizer.decode(expected) == text
        count += len(expected)
    assert count > 200_000


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    assert read_tokenizer(tmp_path, 2) is None
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    with pytest.raises(CheckpointError, match=r"encoder\.json and vocab\.bpe"):
        read_tokenizer(tmp_path, 2)
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    assert read_tokenizer(tmp_path, 2) is not None
    with pytest.raises(CheckpointError, match="token ids up to 1, the model knows 1"):
        read_tokenizer(tmp_path, 1)
