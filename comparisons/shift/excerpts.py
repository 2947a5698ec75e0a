"""Excerpts of source that all end where a token does, and windows of their last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from sparse_lens.comparisons.shift.renaming import imported_names
from sparse_lens.data import Document
from sparse_lens.data.labels.lexemes import STATES, scan_source

_CHARACTERS_A_TOKEN = 8
"""An excerpt has so many characters for each token of its window: more than any source needs."""


@dataclass(frozen=True, eq=False)
class Excerpts:
    """Pieces of texts, the number of the file each is from, and the names that its file has from elsewhere."""

    texts: tuple[str, ...]
    files: tuple[int, ...]
    imported: tuple[frozenset[str], ...]


def draw_excerpts(documents: Sequence[Document], n: int, *, context: int, seed: int = 0, python: bool = True) -> Excerpts:
    """Up to `n` pieces long enough for `context` tokens, at random lines of all files in turn, up to the end of a lexeme.

    Pieces of `python` begin outside strings, so that what is a name in them can be told.
    """
    generator = np.random.default_rng(seed)
    length = context * _CHARACTERS_A_TOKEN
    usable = [number for number, document in enumerate(documents) if len(document.text) > length]
    chosen = usable[:n]
    starts = {number: _line_starts(documents[number].text, len(documents[number].text) - length, python) for number in chosen}
    imported = {number: imported_names(documents[number].text) if python else frozenset[str]() for number in chosen}
    texts, files = [], []
    for turn in range(n if usable else 0):
        number = usable[turn % len(usable)]
        start = int(generator.choice(starts[number]))
        piece = documents[number].text[start : start + length]
        texts.append(piece[: int(scan_source(piece).starts[-1]) or length])
        files.append(number)
    return Excerpts(tuple(texts), tuple(files), tuple(imported[number] for number in files))


def _line_starts(text: str, end: int, python: bool) -> Int[np.ndarray, " line"]:
    """Places up to `end` where a line begins, of Python only those that are in no string; the beginning is always one."""
    starts = np.array([0, *(place + 1 for place, character in enumerate(text[:end]) if character == "\n")])
    if not python:
        return starts
    scan = scan_source(text)
    latest = np.searchsorted(scan.changed_at, starts - 1, side="right") - 1
    quotes = np.append(scan.states[:, STATES.index("quote")], 0)  # the last stands for before any change
    return starts[quotes[latest] == 0]


def last_tokens(
    texts: Sequence[str], tokenizer: Tokenizer, context: int
) -> tuple[Int[np.ndarray, "window _"], Bool[np.ndarray, " text"]]:
    """The last `context + 1` tokens of each text that has as many, and which texts these are."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    kept = np.array([len(tokens) > context for tokens in ids], dtype=bool)
    rows = [tokens[-context - 1 :] for tokens in ids if len(tokens) > context]
    return np.array(rows, dtype=np.int64).reshape(-1, context + 1), kept
