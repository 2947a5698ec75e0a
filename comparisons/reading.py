"""Real Python source and generated programs to train dictionaries on, for a pair, from what any machine has.

The corpus that the models were trained on needs the very packages that were installed then. The standard library is everywhere, and
whether a file is held out depends on its content alone: no file that a model of the pair did not train on, because it was held out,
is read here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.data import Document, FileFilter, StandardLibrary, encode_documents, generate_program, load_tokenizer
from sparse_lens.data.corpus import Split, split_of
from sparse_lens.errors import DataError
from sparse_lens.models_shipped import pair_corpus

GENERATED_SHARE = 0.5
"""As in the training of the shipped models."""

VALID_SHARE = 0.05
"""The held-out share of a pair without a manifest; all recipes hold out this much."""


def standard_library(pair: ModelPair, split: Split) -> list[Document]:
    """The files of this Python's standard library that belong to a split of the pair's corpus, by the hash of their content."""
    share = pair_corpus(pair.folder)["valid_share"] if (pair.folder / "corpus.json").is_file() else VALID_SHARE
    return [document for document in _library() if split_of(document.sha256, share) == split]


def files_read(pair: ModelPair) -> str:
    """What numbers of `reading_windows` depend on beside models: the training files of this Python's standard library."""
    digest = hashlib.sha256("".join(document.sha256 for document in standard_library(pair, "train")).encode())
    return f"files read {digest.hexdigest()[:16]}"


@lru_cache(maxsize=1)
def _library() -> tuple[Document, ...]:
    """All files, read once in a process (some 20 MB): rows of many columns ask for them."""
    return tuple(StandardLibrary().documents(FileFilter()))


def reading_windows(
    pair: ModelPair, n_tokens: int, *, context: int = 128, seed: int = 0, role: str = "sparse"
) -> Int[np.ndarray, "window pos"]:
    """At least `n_tokens` token ids in shuffled windows of `context`: half from training files, half from generated programs.

    They are in the tokens of the pair's `role`; models given by folder have those of the sparse one. The same on every machine with
    this Python version and this seed. Where the standard library is too short for the real half, it is read once and programs make
    up the rest. Raises `DataError` for less than one window.
    """
    if n_tokens < context:
        raise DataError(f"{n_tokens} tokens are less than one window of {context}; ask for more")
    tokenizer = load_tokenizer(pair.model_folder(role))
    real = _real(pair, tokenizer, int(n_tokens * (1 - GENERATED_SHARE)), seed)
    programs = encode_documents(tokenizer, _programs(seed), budget=n_tokens + context - len(real), description="programs")
    tokens = [_windows(real, context), _windows(np.concatenate(programs), context)]
    windows = np.concatenate(tokens)[: -(-n_tokens // context)]
    return windows[np.random.default_rng(seed).permutation(len(windows))].astype(np.int64)


def _real(pair: ModelPair, tokenizer: Tokenizer, n_tokens: int, seed: int) -> np.ndarray:
    documents = standard_library(pair, "train")
    random.Random(seed).shuffle(documents)
    texts = (document.text for document in documents)
    tokenizer.encode_special_tokens = True  # a file that spells out the end-of-text token must not look like one
    arrays = encode_documents(tokenizer, texts, budget=n_tokens, description="standard library")
    return np.concatenate(arrays)[:n_tokens]


def _programs(seed: int) -> Iterator[str]:
    index = 0
    while True:
        yield generate_program(random.Random(f"{seed}:reading:{index}"))
        index += 1


def _windows(tokens: np.ndarray, context: int) -> np.ndarray:
    whole = len(tokens) // context
    return tokens[: whole * context].reshape(whole, context)
