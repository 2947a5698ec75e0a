"""A corpus too large to hold: documents streamed by `datasets`, tokenized by several workers, packed, shuffled, resumed exactly.

The stream is cut into blocks of `block_tokens` tokens. A block's content depends only on the sources, the tokenizer and the seed,
not on workers or on where a run started; its windows are shuffled within it. Blocks are kept on disk, so that a second run, or the
other models of a comparison, read them instead of tokenizing again. Memory holds a block or two, whatever the corpus' size.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sparse_lens.data.corpus import split_of
from sparse_lens.data.encode import Tokens
from sparse_lens.data.stream import State, Windows
from sparse_lens.data.tokenizer import END_OF_TEXT, load_tokenizer, tokenizer_hash
from sparse_lens.errors import DataError
from sparse_lens.files import new_file

_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".txt": "text"}
_CHUNK = 16
"""Documents that one worker tokenizes at a time; what is left of a chunk at a block's end is part of the state."""


@dataclass(frozen=True)
class StreamData:
    """Token windows streamed from `source`: a folder or file of parquet, JSON (lines) or text, or the name of a dataset on the hub.

    `tokenizer_directory` holds the tokenizer; blocks are kept below `cache`. One document in `1 / valid_share` is held out, chosen
    by its content. Raises `DataError` for a source that is missing, empty, or without texts in `column`.
    """

    source: str
    tokenizer_directory: str
    cache: Path
    column: str = "text"
    split: str = "train"
    seed: int = 0
    valid_share: float = 0.01
    block_tokens: int = 1 << 20
    workers: int = 2
    _memory: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; what looks like the end of a text inside one is taken for plain text."""
        tokenizer = load_tokenizer(self.tokenizer_directory)
        if tokenizer.token_to_id(END_OF_TEXT) is None or tokenizer.get_vocab_size() > 1 << 16:
            raise DataError(
                f"the tokenizer in {self.tokenizer_directory} must have {END_OF_TEXT!r} and at most {1 << 16} tokens, "
                f"it has {tokenizer.get_vocab_size()} and {'no ' if tokenizer.token_to_id(END_OF_TEXT) is None else ''}such token"
            )
        tokenizer.encode_special_tokens = True
        return tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @cached_property
    def files(self) -> list[str]:
        """The local files of the source in order of their names; empty for a dataset on the hub."""
        path = Path(self.source).expanduser()
        if not path.exists():
            return []
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _FORMATS and p.is_file())
        if not found or len({_FORMATS.get(p.suffix) for p in found}) != 1 or found[0].suffix not in _FORMATS:
            raise DataError(f"{path} holds no files of one kind among {', '.join(_FORMATS)}; give such a folder or file")
        return [str(p) for p in found]

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """What the tokens come from; `config_hash` changes with files (size, beginning and end), tokenizer, seed and shares."""
        root = Path(self.source).expanduser()
        files = [(Path(name).relative_to(root).as_posix(), _sample(Path(name))) for name in self.files]
        described = {
            "source": root.name if files else self.source,
            "files": [list(file) for file in files],
            "column": self.column,
            "split": self.split,
            "seed": self.seed,
            "valid_share": self.valid_share,
            "block_tokens": self.block_tokens,
            "tokenizer": tokenizer_hash(self.tokenizer),
        }
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        return described | {"config_hash": key}

    def resumable_batches(
        self, *, context: int, batch_size: int, seed: int, start_step: int, n_steps: int, state: State | None
    ) -> Iterator[tuple[Windows, State | None]]:
        """Int64 [batch_size, context + 1] for each step, with the state that resumes after it.

        Windows of a block are shuffled by `seed`; fewer than a batch at its end are left out. Without a `state` a run that starts
        later than step 0 takes its batches from the beginning of the stream all the same, and drops them.
        """
        taken = 0 if state is None else int(state["taken"])
        block = 0 if state is None else int(state["block"])
        to_drop = start_step if state is None else 0
        left = n_steps + to_drop
        while left > 0:
            tokens = self.block(block)
            n_windows = (len(tokens) - 1) // context
            if n_windows < batch_size:
                raise DataError(
                    f"a block of {len(tokens)} tokens is smaller than a batch of {batch_size} windows of {context}; "
                    "raise block_tokens, lower batch_size, or give a larger corpus"
                )
            order = np.random.default_rng([seed, block]).permutation(n_windows)
            while left > 0 and (taken + 1) * batch_size <= n_windows:
                starts = order[taken * batch_size : (taken + 1) * batch_size] * context
                taken += 1
                left -= 1
                if to_drop:
                    to_drop -= 1
                    continue
                windows = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
                yield windows, {"block": block, "taken": taken}
            if (taken + 1) * batch_size > n_windows:
                block, taken = block + 1, 0

    def validation_windows(self, context: int, n_windows: int) -> Windows:
        """The first held-out windows, int64 [n_windows, context + 1]; fewer if the corpus has fewer."""
        wanted = n_windows * context + 1
        place = self._folder / f"valid-{wanted}.npy"
        tokens = _load(place) if place.is_file() else self._keep(place, self._held_out(wanted))
        n_windows = min(n_windows, (len(tokens) - 1) // context)
        if n_windows < 1:
            raise DataError(f"{self.source} has {len(tokens)} held-out tokens, fewer than one window of {context + 1}")
        starts = np.arange(n_windows) * context
        return tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)

    def block(self, number: int) -> Tokens:
        """Block `number` of the stream, uint16 [token], from the disk or made from where the last block ended."""
        place = self._folder / f"block-{number:06d}.npy"
        if not place.is_file():
            first = number
            while first > 0 and not (self._folder / f"block-{first - 1:06d}.npy").is_file():
                first -= 1
            for missing in range(first, number + 1):
                self._make(missing)
        return _load(place)

    @property
    def _folder(self) -> Path:
        return self.cache / self.manifest["config_hash"][:16]

    def _make(self, number: int) -> None:
        """Write one block, and beside it the state of the source that the next one starts from."""
        running = self._memory.get("running")
        if running is None or running[0] != number:
            state = {} if number == 0 else json.loads((self._folder / f"block-{number - 1:06d}.json").read_text(encoding="utf-8"))
            running = (number, _Blocks(self, state))
        tokens, state = running[1].take()
        state_place = self._folder / f"block-{number:06d}.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        with new_file(state_place) as path:
            path.write_text(json.dumps(state), encoding="utf-8")
        self._keep(self._folder / f"block-{number:06d}.npy", tokens)
        self._memory["running"] = (number + 1, running[1])

    def _keep(self, place: Path, tokens: Tokens) -> Tokens:
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_file(place) as path:
            np.save(path, tokens)
        return tokens

    def _held_out(self, wanted: int) -> Tokens:
        """At least `wanted` tokens of held-out documents, if the source has as many."""
        pieces: list[Tokens] = []
        for texts, _ in self.chunks({}):
            pieces += [_encode(self.tokenizer, [text]) for text in texts if self.is_held_out(text)]
            if sum(map(len, pieces)) >= wanted:
                break
        return np.concatenate(pieces)[:wanted] if pieces else np.zeros(0, dtype=np.uint16)

    def is_held_out(self, text: str) -> bool:
        """Whether a document belongs to the held-out ones: its content alone decides."""
        return split_of(hashlib.sha256(text.encode("utf-8")).hexdigest(), self.valid_share) == "valid"

    def chunks(self, state: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """Chunks of documents of one pass, from `state` on, each with the state that follows it; files in the epoch's own order."""
        epoch = int(state.get("epoch", 0))
        rows = self._open(epoch)
        if "rows" in state:
            rows.load_state_dict(state["rows"])
        texts: list[str] = []
        for row in self._read(rows):
            texts.append(self._text(row))
            if len(texts) == _CHUNK:
                yield texts, {"epoch": epoch, "rows": rows.state_dict()}
                texts = []
        if texts:
            yield texts, {"epoch": epoch, "rows": rows.state_dict()}

    def _read(self, rows: Any) -> Iterator[Mapping[str, Any]]:
        """The rows; what `datasets` raises for a damaged or empty file becomes a `DataError`."""
        from datasets.exceptions import DatasetsError

        iterator = iter(rows)
        while True:
            try:
                row = next(iterator)
            except StopIteration:
                return
            except (OSError, ValueError, RuntimeError, DatasetsError) as error:
                raise DataError(
                    f"{self.source} is empty or cannot be read ({type(error).__name__}: {error}); see whether its files are whole"
                ) from error
            yield row

    def _text(self, row: Mapping[str, Any]) -> str:
        if self.column not in row:
            raise DataError(f"{self.source} has no column {self.column!r}; it has {sorted(row)}. Name one with `column`")
        if not isinstance(text := row[self.column], str):
            raise DataError(f"column {self.column!r} of {self.source} holds a {type(text).__name__}, not text")
        return text

    def _open(self, epoch: int) -> Any:
        """The rows of the source, streamed."""
        import datasets
        from datasets.io.json import JsonDatasetReader
        from datasets.io.parquet import ParquetDatasetReader
        from datasets.io.text import TextDatasetReader

        order: Sequence[int] = np.random.default_rng([self.seed, epoch]).permutation(len(self.files)).tolist()
        try:
            if not self.files:
                return datasets.load_dataset(self.source, split=self.split, streaming=True)
            # load_dataset would report the use of its file readers over the network
            reader = {"parquet": ParquetDatasetReader, "json": JsonDatasetReader, "text": TextDatasetReader}
            kind = reader[_FORMATS[Path(self.files[0]).suffix]]
            return kind([self.files[index] for index in order], split="train", streaming=True).read()
        except (OSError, ValueError, KeyError, RuntimeError, StopIteration) as error:  # the last one for an empty file
            raise DataError(
                f"the source {self.source!r} cannot be opened ({type(error).__name__}: {error}); give a folder or file of "
                f"{', '.join(_FORMATS)}, or the name of a dataset on the hub and a network"
            ) from error


class _Blocks:
    """The running stream: documents read ahead, tokenized by workers in order, cut into blocks."""

    def __init__(self, data: StreamData, state: Mapping[str, Any]) -> None:
        self.data = data
        self.carry = np.frombuffer(base64.b64decode(state.get("carry", "")), dtype="<u2").astype(np.uint16)
        self.state = {name: value for name, value in state.items() if name != "carry"}
        self.chunks = data.chunks(self.state)
        self.pool = ThreadPoolExecutor(data.workers)
        self.ahead: deque[tuple[Future[Tokens], dict[str, Any]]] = deque()
        self.n_in_pass = 0 if "rows" not in self.state else None  # tokens of a pass that was seen from its beginning

    def take(self) -> tuple[Tokens, dict[str, Any]]:
        """The next block, its last token shared with the one after, and the state after it."""
        data, pieces, total = self.data, [self.carry], len(self.carry)
        while total <= data.block_tokens:
            tokens = self._next()
            pieces.append(tokens)
            total += len(tokens)
        joined = np.concatenate(pieces)
        self.carry = joined[data.block_tokens :]
        carry = base64.b64encode(self.carry.astype("<u2").tobytes()).decode()
        return joined[: data.block_tokens + 1], self.state | {"carry": carry}

    def _next(self) -> Tokens:
        """Tokens of the next chunk; after the last one, of the first of the next pass."""
        while len(self.ahead) < 2 * self.data.workers:
            chunk = next(self.chunks, None)
            if chunk is None:
                break
            self.ahead.append((self.pool.submit(self._tokenize, chunk[0]), chunk[1]))
        if not self.ahead:
            if self.n_in_pass == 0:
                raise DataError(f"{self.data.source} holds no text to train on in its column {self.data.column!r}")
            self.state = {"epoch": int(self.state.get("epoch", 0)) + 1}
            self.chunks, self.n_in_pass = self.data.chunks(self.state), 0
            return self._next()
        future, self.state = self.ahead.popleft()
        tokens = future.result()
        if self.n_in_pass is not None:
            self.n_in_pass += len(tokens)
        return tokens

    def _tokenize(self, texts: list[str]) -> Tokens:
        return _encode(self.data.tokenizer, [text for text in texts if not self.data.is_held_out(text)])


def _sample(path: Path) -> str:
    """Hash of a file's size, beginning and end: enough to tell a changed one, whatever its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        return hashlib.sha256(f"{size}:".encode() + start + file.read()).hexdigest()


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Tokens:
    """Texts one after the other, each closed by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces = [
        np.array([*encoding.ids, end], dtype=np.uint16) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.uint16)


def _load(place: Path) -> Tokens:
    """Tokens on disk, mapped into memory."""
    try:
        tokens = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read ({error}); delete it, it will be made again") from error
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise DataError(f"{place} holds {tokens.dtype} of {tokens.ndim} axes, not tokens; delete it, it will be made again")
    return tokens
