"""Build a token corpus once: collect, train the tokenizer, encode, mix with generated programs, write, rename."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from sparse_lens.data.corpus import Document, FileFilter, Source, StandardLibrary, collect_documents, split_of
from sparse_lens.data.manifest import Manifest, build_manifest
from sparse_lens.data.programs import GENERATOR_VERSION, generate_program
from sparse_lens.data.stream import TokenData, Tokens
from sparse_lens.data.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)
from sparse_lens.errors import DataError

logger = logging.getLogger(__name__)

_CHUNK = 256
_MAX_VOCAB = 2**16


@dataclass(frozen=True)
class DataConfig:
    """What a token corpus is made of; equal configurations give equal folders on one machine.

    `generated_share` is the share of generated programs in the training tokens, in [0, 1). `total_tokens` bounds
    the training tokens (None: all real text, plus its share of programs). `valid_share` is the share of files held
    out. `tokenizer_mb` bounds the text the tokenizer is trained on; `tokenizer_directory` reuses one instead.
    """

    sources: tuple[Source, ...] = (StandardLibrary(),)
    generated_share: float = 0.5
    total_tokens: int | None = None
    vocab_size: int = 1024
    seed: int = 0
    valid_share: float = 0.05
    valid_generated_tokens: int = 50_000
    tokenizer_mb: float = 16.0
    tokenizer_directory: str | None = None
    file_filter: FileFilter = field(default_factory=FileFilter)

    def __post_init__(self) -> None:
        if not 0 <= self.generated_share < 1:
            raise DataError(f"generated_share is {self.generated_share}, it must be in [0, 1)")
        if not 0 < self.valid_share < 1:
            raise DataError(f"valid_share is {self.valid_share}, it must be between 0 and 1")
        if not 0 < self.vocab_size <= _MAX_VOCAB:
            raise DataError(f"vocab_size is {self.vocab_size}, tokens are stored in 16 bits: use at most {_MAX_VOCAB}")

    def describe(self) -> dict[str, Any]:
        """Return the configuration as JSON-able values."""
        return asdict(self) | {"sources": [source.describe() for source in self.sources]}

    def fingerprint(self) -> str:
        """Return a SHA-256 of the configuration and the generator's version."""
        text = json.dumps([self.describe(), GENERATOR_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def prepare_data(config: DataConfig, directory: Path | str) -> TokenData:
    """Build the corpus in `directory`, or open it if it was built with an equal configuration.

    Everything is written beside `directory` and renamed at the end, so an interrupted build leaves nothing behind.
    Raises `DataError` if the folder holds something else.
    """
    target = Path(directory)
    if (target / "manifest.json").is_file():
        data = TokenData(target)
        if data.manifest["config_hash"] != config.fingerprint():
            raise DataError(f"{str(target)!r} was built with another configuration; pass that one or a new directory")
        return data
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{str(target)!r} exists, is not empty and holds no manifest.json; pass a new directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        built = Path(scratch) / "data"
        built.mkdir()
        _build(config, built)
        built.replace(target)
    return TokenData(target)


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str], description: str = "tokenize") -> list[Tokens]:
    """Encode texts to uint16 arrays [n_tokens], each closed by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    arrays: list[Tokens] = []
    with tqdm(total=len(texts), desc=description, unit="doc", disable=None) as bar:
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            encodings = tokenizer.encode_batch_fast(list(chunk), add_special_tokens=False)
            arrays += [np.array([*encoding.ids, end], dtype=np.uint16) for encoding in encodings]
            bar.update(len(chunk))
    return arrays


def _build(config: DataConfig, folder: Path) -> None:
    documents = collect_documents(config.sources, config.file_filter)
    train = [d for d in documents if split_of(d.sha256, config.valid_share) == "train"]
    valid = [d for d in documents if split_of(d.sha256, config.valid_share) == "valid"]
    random.Random(config.seed).shuffle(train)
    tokenizer = _tokenizer(config, train)
    # A source that spells out "<|endoftext|>" must not look like the end of a document.
    tokenizer.encode_special_tokens = True
    real, used = _real_tokens(config, tokenizer, train)
    generated = _generated_tokens(config, tokenizer, "train", _generated_target(config, sum(map(len, real))))
    mixed = [*real, *generated]
    order = np.random.default_rng(config.seed).permutation(len(mixed))
    held_out = encode_documents(tokenizer, [d.text for d in valid], "tokenize valid")
    held_out_generated = _generated_tokens(config, tokenizer, "valid", config.valid_generated_tokens)
    splits = {
        "train": [mixed[i] for i in order],
        "valid": held_out,
        "valid_generated": held_out_generated,
    }
    counts = {name: _write_tokens(folder / f"{name}.bin", arrays) for name, arrays in splits.items()}
    tokenizer.encode_special_tokens = False
    save_tokenizer(tokenizer, folder)
    manifest = build_manifest([*used, *valid], config.sources, config.file_filter, config.valid_share)
    manifest |= _settings(config, tokenizer, counts, len(generated), sum(map(len, generated)))
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _tokenizer(config: DataConfig, train: Sequence[Document]) -> Tokenizer:
    if config.tokenizer_directory is not None:
        return load_tokenizer(config.tokenizer_directory)
    logger.info("training a tokenizer of %d tokens", config.vocab_size)
    return train_tokenizer(_tokenizer_texts(config, train), config.vocab_size)


def _tokenizer_texts(config: DataConfig, train: Sequence[Document]) -> Iterator[str]:
    """Yield real and generated text in the shares of the corpus, each up to its part of `tokenizer_mb`."""
    yield from _up_to((document.text for document in train), config.tokenizer_mb * 1e6 * (1 - config.generated_share))
    yield from _up_to(_programs(config, "tokenizer"), config.tokenizer_mb * 1e6 * config.generated_share)


def _up_to(texts: Iterator[str], characters: float) -> Iterator[str]:
    total = 0
    while total < characters:
        text = next(texts, None)
        if text is None:
            return
        total += len(text)
        yield text


def _programs(config: DataConfig, purpose: str) -> Iterator[str]:
    """Yield generated programs without end; each has a seed of its own, so any one can be made again alone."""
    index = 0
    while True:
        yield generate_program(random.Random(f"{config.seed}:{purpose}:{index}"))
        index += 1


def _real_tokens(
    config: DataConfig, tokenizer: Tokenizer, documents: Sequence[Document]
) -> tuple[list[Tokens], list[Document]]:
    """Encode real documents in the given order until the budget is met; return the arrays and what was used."""
    arrays = encode_documents(tokenizer, [d.text for d in documents], "tokenize train")
    if config.total_tokens is None:
        return arrays, list(documents)
    budget = config.total_tokens * (1 - config.generated_share)
    ends = np.cumsum([len(array) for array in arrays])
    if len(ends) and ends[-1] < budget:
        logger.warning("the sources give %d real tokens of the %d asked for", ends[-1], int(budget))
    kept = int(np.searchsorted(ends, budget)) + 1
    return arrays[:kept], list(documents[:kept])


def _generated_target(config: DataConfig, real_tokens: int) -> int:
    return round(real_tokens * config.generated_share / (1 - config.generated_share))


def _generated_tokens(config: DataConfig, tokenizer: Tokenizer, purpose: str, target: int) -> list[Tokens]:
    """Generate and encode programs until there are `target` tokens."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    programs = _programs(config, purpose)
    arrays: list[Tokens] = []
    total = 0
    with tqdm(total=target, desc=f"generate {purpose}", unit="token", unit_scale=True, disable=None) as bar:
        while total < target:
            chunk = [next(programs) for _ in range(_CHUNK)]
            for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                if total >= target:
                    break
                arrays.append(np.array([*encoding.ids, end], dtype=np.uint16))
                total += len(arrays[-1])
                bar.update(len(arrays[-1]))
    return arrays


def _write_tokens(path: Path, arrays: Sequence[Tokens]) -> int:
    tokens = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.uint16)
    tokens.astype("<u2").tofile(path)
    return len(tokens)


def _settings(
    config: DataConfig, tokenizer: Tokenizer, counts: dict[str, int], n_programs: int, generated_tokens: int
) -> Manifest:
    return {
        "config": config.describe(),
        "config_hash": config.fingerprint(),
        "tokens": counts,
        "generator": {
            "version": GENERATOR_VERSION,
            "seed": config.seed,
            "share": config.generated_share,
            "programs": n_programs,
            "tokens": generated_tokens,
        },
        "tokenizer": {"sha256": tokenizer_hash(tokenizer), "vocab_size": tokenizer.get_vocab_size()},
    }
