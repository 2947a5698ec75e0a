"""Build a token corpus once: collect, train a tokenizer, encode, mix with generated programs, write."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sparse_lens.data.corpus import Document, FileFilter, Source, StandardLibrary, collect_documents, split_of
from sparse_lens.data.encode import Tokens, encode_documents
from sparse_lens.data.manifest import Manifest, build_manifest, rebuild_documents
from sparse_lens.data.programs import GENERATOR_VERSION, generate_program
from sparse_lens.data.stream import TokenData
from sparse_lens.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash, train_tokenizer
from sparse_lens.errors import DataError
from sparse_lens.files import check_writable, new_directory
from sparse_lens.models_shipped import shipped_pairs, tokenizer_folder

logger = logging.getLogger(__name__)

_MAX_VOCAB = 2**16


@dataclass(frozen=True)
class DataConfig:
    """What a token corpus is made of; equal configurations give equal folders on one machine.

    `generated_share` is the share of generated programs in the training tokens, in [0, 1). `total_tokens`
    bounds the training tokens (None: all real text, plus its share of programs). `valid_share` is the share
    of files held out. `tokenizer_mb` bounds the text that the tokenizer is trained on; `tokenizer_directory`
    reuses a trained one instead, whatever `vocab_size` says: a folder, or the name of a shipped pair.
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
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        sources = [source.describe() for source in self.sources]
        return plain | {"sources": sources, "file_filter": asdict(self.file_filter)}

    def fingerprint(self) -> str:
        """Return a SHA-256 of the configuration and the generator's version."""
        text = json.dumps([self.describe(), GENERATOR_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def prepare_data(config: DataConfig, directory: Path | str) -> TokenData:
    """Build the corpus in `directory`, or open it if it was built with an equal configuration.

    Everything is written beside `directory` and renamed at the end: an interrupted build leaves nothing.
    Raises `DataError` if the folder holds something else.
    """
    target = Path(directory)
    if (target / "manifest.json").is_file():
        data = TokenData(target)
        if data.manifest["config_hash"] != config.fingerprint():
            raise DataError(f"{str(target)!r} was built with another configuration; pass that one or a new directory")
        return data
    if target.is_dir() and any(target.iterdir()):
        raise DataError(f"{str(target)!r} exists, is not empty and holds no manifest.json; pass a new directory")
    check_writable(target, ())
    with new_directory(target) as built:
        _build(config, built)
    return TokenData(target)


def rebuild_data(manifest: Manifest, directory: Path | str, sources: Sequence[Source] | None = None) -> TokenData:
    """Build in `directory` the corpus that a manifest describes, from the files that it lists and no others.

    `sources` stand in for those of the manifest by name. The tokens and the tokenizer come out as they were, or it is an error:
    raises `DataError` if a file is missing or changed, or if the result differs. An equal corpus that stands there is opened.
    """
    target = Path(directory)
    if (target / "manifest.json").is_file():
        data = TokenData(target)
        if data.manifest["config_hash"] != manifest["config_hash"]:
            raise DataError(f"{str(target)!r} holds another corpus; pass a new directory")
        return data
    splits = rebuild_documents(manifest, sources)
    settings = {name: value for name, value in manifest["config"].items() if name not in ("sources", "file_filter")}
    config = DataConfig(**settings)
    check_writable(target, ())
    with new_directory(target) as built:
        found = _write_corpus(config, splits["train"], splits["valid"], built)
        for part in ("tokenizer", "tokens"):
            if found[part] != manifest[part]:
                raise DataError(
                    f"the {part} came out as {found[part]}, the manifest says {manifest[part]}; "
                    "the generator or the tokenizers package is of another version"
                )
        (built / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return TokenData(target)


def _build(config: DataConfig, folder: Path) -> None:
    documents = collect_documents(config.sources, config.file_filter)
    train = [d for d in documents if split_of(d.sha256, config.valid_share) == "train"]
    valid = [d for d in documents if split_of(d.sha256, config.valid_share) == "valid"]
    random.Random(config.seed).shuffle(train)
    settings = _write_corpus(config, train, valid, folder)
    used = train[: settings.pop("real_documents")]
    manifest = build_manifest([*used, *valid], config.sources, config.file_filter, config.valid_share) | settings
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _write_corpus(config: DataConfig, train: Sequence[Document], valid: Sequence[Document], folder: Path) -> dict[str, Any]:
    """Write tokenizer and tokens of these documents, in this order; returns what the manifest says of them."""
    tokenizer = _tokenizer(config, train)
    # A source that spells out "<|endoftext|>" must not look like the end of a document.
    tokenizer.encode_special_tokens = True
    real = _real_tokens(config, tokenizer, train)
    generated = _generated_tokens(config, tokenizer, sum(map(len, real)))
    mixed = [*real, *generated]
    order = np.random.default_rng(config.seed).permutation(len(mixed))
    splits = {
        "train": [mixed[i] for i in order],
        "valid": encode_documents(tokenizer, (d.text for d in valid), description="tokenize valid"),
        "valid_generated": encode_documents(
            tokenizer,
            _programs(config, "valid"),
            budget=config.valid_generated_tokens,
            description="generate valid",
        ),
    }
    counts = {name: _write_tokens(folder / f"{name}.bin", arrays) for name, arrays in splits.items()}
    tokenizer.encode_special_tokens = False
    save_tokenizer(tokenizer, folder)
    settings = _settings(config, tokenizer, counts, len(generated), sum(map(len, generated)))
    return settings | {"real_documents": len(real)}


def _tokenizer(config: DataConfig, train: Sequence[Document]) -> Tokenizer:
    if config.tokenizer_directory is not None:
        if config.tokenizer_directory in shipped_pairs():
            return load_tokenizer(tokenizer_folder(config.tokenizer_directory))
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
    """Yield programs without end; each has a seed of its own, so that any one can be made again alone."""
    index = 0
    while True:
        yield generate_program(random.Random(f"{config.seed}:{purpose}:{index}"))
        index += 1


def _real_tokens(config: DataConfig, tokenizer: Tokenizer, documents: Sequence[Document]) -> list[Tokens]:
    """Encode real documents in the given order until their share of the budget is met."""
    budget = None if config.total_tokens is None else round(config.total_tokens * (1 - config.generated_share))
    texts = (document.text for document in documents)
    arrays = encode_documents(tokenizer, texts, budget=budget, description="tokenize train")
    total = sum(map(len, arrays))
    if budget is not None and total < budget:
        logger.warning("the sources give %d real tokens of the %d asked for", total, budget)
    return arrays


def _generated_tokens(config: DataConfig, tokenizer: Tokenizer, real_tokens: int) -> list[Tokens]:
    """Generate and encode programs until they have their share beside `real_tokens`."""
    budget = round(real_tokens * config.generated_share / (1 - config.generated_share))
    return encode_documents(tokenizer, _programs(config, "train"), budget=budget, description="generate train")


def _write_tokens(path: Path, arrays: Sequence[Tokens]) -> int:
    tokens = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.uint16)
    tokens.astype("<u2").tofile(path)
    return len(tokens)


def _settings(config: DataConfig, tokenizer: Tokenizer, counts: dict[str, int], n_programs: int, generated_tokens: int) -> Manifest:
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
