"""Ladders of shift for Python source.

| ladder | from | to | shift |
|---|---|---|---|
| `identifier_ladder` | names as they are | every name of the file's own a rare string | surprise |
| `shuffle_ladder` | lines in their order | all lines but the last in another | surprise |
| `length_ladder` | the whole context before the tokens that are read | an eighth of it | halvings of the context |
| `language_ladder` | Python | other languages' text | surprise |

Surprise is that of an n-gram model of the training text, in nats per token (`NgramModel`). Windows end at the same place of the
source at every level of the first three, so that levels compare within texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sparse_lens.comparisons.concepts.labelled_tokens import held_out_files
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shift.excerpts import Excerpts, draw_excerpts, last_tokens
from sparse_lens.comparisons.shift.ladder import READ_FROM, ShiftLadder
from sparse_lens.comparisons.shift.other_texts import other_language_texts
from sparse_lens.comparisons.shift.renaming import rename_identifiers, shuffle_lines
from sparse_lens.comparisons.shift.token_surprise import NgramModel
from sparse_lens.data import Document, load_tokenizer
from sparse_lens.errors import DataError, UnknownNameError

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
LADDERS = ("identifiers", "line shuffle", "context length", "other languages")

_HALVINGS = (0, 1, 2, 3)
_FEWEST_WINDOWS = 8
_OTHER_FILES = 1_000_000
"""Numbers of another language's files begin a multiple of this higher: no text is at two levels."""


@dataclass(frozen=True)
class Reader:
    """What turns excerpts into windows: a tokenizer, the third model, and the windows' length in tokens."""

    tokenizer: Tokenizer
    surprise: NgramModel
    context: int = 128
    seed: int = 0


def identifier_ladder(excerpts: Excerpts, reader: Reader, *, source: str = "given files") -> ShiftLadder:
    """Names written as rare strings, at `SHARES` of the different names of an excerpt (`rename_identifiers`)."""

    def changed(number: int, share: float) -> str:
        return rename_identifiers(excerpts.texts[number], share, seed=reader.seed + number, kept=excerpts.imported[number])

    return _changed("identifiers", changed, excerpts, reader, source)


def shuffle_ladder(excerpts: Excerpts, reader: Reader, *, source: str = "given files") -> ShiftLadder:
    """Lines in another order, at `SHARES` of the lines that the window holds but the last (`shuffle_lines`)."""

    def changed(number: int, share: float) -> str:
        text = excerpts.texts[number]
        offsets = reader.tokenizer.encode(text, add_special_tokens=False).offsets
        if len(offsets) <= reader.context:
            return text
        begin = text.rfind("\n", 0, offsets[-reader.context - 1][0] + 1) + 1
        return text[:begin] + shuffle_lines(text[begin:], share, seed=reader.seed + number)

    return _changed("line shuffle", changed, excerpts, reader, source)


def length_ladder(excerpts: Excerpts, reader: Reader, *, source: str = "given files") -> ShiftLadder:
    """The same last tokens after a whole, half, quarter and eighth of the context; half of the least are read.

    Position and length are the shift itself here, so that no slope holds them constant. Raises `DataError` for a context below 16.
    """
    tokens, kept = last_tokens(excerpts.texts, reader.tokenizer, reader.context)
    lengths = [reader.context >> halving for halving in _HALVINGS]
    read = lengths[-1] // 2
    if read < 1 or not len(tokens):
        raise DataError(f"{len(tokens)} texts of {reader.context} tokens to halve three times; give some of 16 tokens or more")
    return ShiftLadder(
        "context length",
        tuple(f"{length} tokens" for length in lengths),
        tuple(tokens[:, -length - 1 :] for length in lengths),
        (np.array(excerpts.files)[kept],) * len(lengths),
        tuple(float(halving) for halving in _HALVINGS),
        tuple(length - read for length in lengths),
        "halvings of the context",
        source,
        ("token", "norm"),
    )


def language_ladder(
    excerpts: Excerpts, others: Mapping[str, Sequence[Document]], reader: Reader, *, source: str = "given files"
) -> ShiftLadder:
    """Python against other texts, in the order of their surprise; kinds with fewer than eight windows are left out.

    Raises `DataError` if none is left.
    """
    n = len(excerpts.texts)
    drawn = {
        kind: draw_excerpts(texts, n, context=reader.context, seed=reader.seed, python=False) for kind, texts in others.items()
    }
    found = []
    for number, (kind, part) in enumerate({"python": excerpts, **drawn}.items()):
        tokens, kept = last_tokens(part.texts, reader.tokenizer, reader.context)
        if len(tokens) >= _FEWEST_WINDOWS:
            files = np.array(part.files)[kept] + number * _OTHER_FILES
            found.append((reader.surprise.mean_surprise(tokens), kind, tokens, files))
    if len(found) < 2 or "python" not in {kind for _, kind, _, _ in found}:
        raise DataError("there are too few texts of Python, or of any other language; give longer ones")
    found.sort(key=lambda level: level[0])
    shift, kinds, windows, files = (tuple(part) for part in zip(*found, strict=True))
    counts = ", ".join(f"{len(np.unique(own))} {kind}" for kind, own in zip(kinds, files, strict=True))
    where = f"{source}; others found in the Python installation or generated; files: {counts}"
    return ShiftLadder("other languages", kinds, windows, files, shift, (READ_FROM,) * len(kinds), source=where)


def python_ladder(
    pair: ModelPair, name: str = "identifiers", *, n_windows: int = 128, context: int = 128, seed: int = 0
) -> ShiftLadder:
    """One of the `LADDERS`, of files that the models of a pair were not trained on, in the tokens of the pair's models.

    The third model is counted on the pair's reference windows. Raises `UnknownNameError` for another ladder.
    """
    if name not in LADDERS:
        raise UnknownNameError("ladder", name, LADDERS)
    documents, source = held_out_files(pair)
    excerpts = draw_excerpts(documents, n_windows, context=context, seed=seed)
    reader = pair_reader(pair, context=context, seed=seed)
    if name == "other languages":
        return language_ladder(excerpts, other_language_texts(), reader, source=source)
    makers: dict[str, Callable[..., ShiftLadder]] = {
        "identifiers": identifier_ladder,
        "line shuffle": shuffle_ladder,
        "context length": length_ladder,
    }
    return makers[name](excerpts, reader, source=source)


def pair_reader(pair: ModelPair, *, context: int = 128, seed: int = 0) -> Reader:
    """The tokenizer of a pair's models, and n-grams of its reference windows."""
    tokenizer: Any = load_tokenizer(pair.model_folder("sparse"))
    tokenizer.encode_special_tokens = True  # a text that spells out the end-of-text token must not look like one
    return Reader(tokenizer, NgramModel.of(pair.windows["reference"], tokenizer.get_vocab_size()), context, seed)


def _changed(name: str, changed: Callable[[int, float], str], excerpts: Excerpts, reader: Reader, source: str) -> ShiftLadder:
    """A ladder whose levels are one text changed by the `SHARES`; texts that are too short at some level are left out."""
    encoded = []
    for share in SHARES:
        texts = [changed(number, share) for number in range(len(excerpts.texts))]
        encoded.append(last_tokens(texts, reader.tokenizer, reader.context))
    everywhere = np.logical_and.reduce([kept for _, kept in encoded])
    if not everywhere.any():
        raise DataError(f"no text has {reader.context} tokens at every level of the ladder {name!r}; give longer ones")
    windows = tuple(tokens[everywhere[kept]] for tokens, kept in encoded)
    return ShiftLadder(
        name,
        tuple(f"{share:.0%}" for share in SHARES),
        windows,
        (np.array(excerpts.files)[everywhere],) * len(SHARES),
        tuple(reader.surprise.mean_surprise(tokens) for tokens in windows),
        (READ_FROM,) * len(SHARES),
        source=source,
        doses=SHARES,
    )
