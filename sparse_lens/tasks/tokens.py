"""Token ids from any fast tokenizer, without special tokens."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from sparse_lens.errors import DataError

_END_OF_TEXT = "<|endoftext|>"


class Encoder:
    """Encode text with a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer that wraps one.

    Raises `DataError` for other objects, and if there is no end-of-text token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(self._backend, "token_to_id"):
            raise DataError(
                f"cannot use a {type(tokenizer).__name__} as tokenizer; pass a tokenizers.Tokenizer or a "
                "fast Hugging Face tokenizer"
            )
        end = getattr(tokenizer, "eos_token_id", None)
        end = self._backend.token_to_id(_END_OF_TEXT) if end is None else end
        if end is None:
            raise DataError(f"the tokenizer has no end-of-text token; add {_END_OF_TEXT!r} or set eos_token")
        self.end: int = end

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return int(self._backend.get_vocab_size())

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of a text and where each token lies in it, `[start, end)` in characters."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def text(self, token: int) -> str:
        """Return the text of one token."""
        return str(self._backend.decode([token], skip_special_tokens=False))

    def answers(self, texts: tuple[str, str], task: str) -> dict[str, int]:
        """Return the ids of two answers; tokens that both begin with belong to the prompt.

        Raises `DataError` if what tells them apart is not a single token in each.
        """
        first, second = (self.ids(text) for text in texts)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))
        for text, ids in zip(texts, (first[shared:], second[shared:]), strict=True):
            if len(ids) != 1:
                raise DataError(
                    f"task {task!r}: the answer {text!r} is {len(ids)} tokens in this tokenizer, not one; "
                    "use a tokenizer of sparse_lens.data.train_tokenizer, or another task"
                )
        return {texts[0]: first[-1], texts[1]: second[-1]}
