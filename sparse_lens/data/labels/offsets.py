"""Where the tokens of any tokenizer lie in the text, and which character or lexeme speaks for a token."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer

from sparse_lens.errors import DataError

Offsets = Int64[np.ndarray, "token 2"]


class OffsetEncoder:
    """A tokenizer made ready to say where each token lies: its own copy, so that no setting of the given one changes.

    Takes a `tokenizers.Tokenizer` or a fast tokenizer of Hugging Face's. Special tokens that a text spells out are encoded as the
    text they are, none is added, and nothing is trimmed, cut or padded. Raises `DataError` for anything else.
    """

    def __init__(self, tokenizer: Any) -> None:
        inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(inner, Tokenizer):
            raise DataError(
                f"labels need a tokenizer that knows offsets, a tokenizers.Tokenizer or a fast one of transformers, got a "
                f"{type(tokenizer).__name__}; load it with use_fast=True"
            )
        content = json.loads(inner.to_str())
        self._tokenizer = Tokenizer.from_str(json.dumps(_untrimmed(content)))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> tuple[Int64[np.ndarray, " token"], Offsets]:
        """Token ids `[token]` and their first and past-the-last characters `[token, 2]`; raises `DataError` for no text."""
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:  # the latter for half of a surrogate pair
            raise DataError(f"the text cannot be encoded ({error}); give a str of valid Unicode") from error
        return np.array(encoding.ids, dtype=np.int64), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _untrimmed(content: Any) -> Any:
    """The tokenizer's description with offsets that keep their white space."""
    if isinstance(content, dict):
        return {key: False if key == "trim_offsets" else _untrimmed(value) for key, value in content.items()}
    return [_untrimmed(item) for item in content] if isinstance(content, list) else content


def last_characters(offsets: Offsets) -> Int64[np.ndarray, " token"]:
    """The last character of each token, `[token]`; the one before it for a token of no width (-1 at the very beginning)."""
    return offsets[:, 1] - 1


def main_lexemes(offsets: Offsets, starts: np.ndarray, rank: np.ndarray, length: int) -> Int64[np.ndarray, " token"]:
    """The lexeme that most characters of each token belong to, `[token]`; -1 for a token of no width.

    Only the lexemes of the highest `rank [lexeme]` in the token count, so that white space speaks only where there is nothing else;
    of two with as many characters it is the later one. `starts [lexeme]` are the first characters of the lexemes.
    """
    lexeme_of = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, length)))
    widths = offsets[:, 1] - offsets[:, 0]
    token_of = np.repeat(np.arange(len(offsets)), widths)
    within = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    lexemes = lexeme_of[offsets[token_of, 0] + within]
    pairs, counts = np.unique(token_of * max(1, len(starts)) + lexemes, return_counts=True)
    tokens, lexemes = np.divmod(pairs, max(1, len(starts)))
    order = np.lexsort((lexemes, counts, rank[lexemes], tokens))
    found = np.full(len(offsets), -1, dtype=np.int64)
    found[tokens[order]] = lexemes[order]  # of repeated tokens numpy keeps the last, here the largest
    return found
