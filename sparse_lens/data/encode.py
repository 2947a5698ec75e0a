"""Encode texts to token arrays, in chunks that use every core, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from jaxtyping import UInt16
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from sparse_lens.data.tokenizer import END_OF_TEXT

Tokens = UInt16[np.ndarray, " _"]
"""Token ids of one text or of a whole split, [token]; the axis has no name, for texts differ in length."""

_CHUNK = 64


def encode_documents(
    tokenizer: Tokenizer, texts: Iterable[str], *, budget: int | None = None, description: str = "tokenize"
) -> list[Tokens]:
    """Encode texts to uint16 arrays [token], each closed by the end-of-text token.

    With a `budget`, stop after the text that reaches that many tokens; `texts` may then be endless.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    remaining = iter(texts)
    arrays: list[Tokens] = []
    total = 0
    with tqdm(total=budget, desc=description, unit="token", unit_scale=True, disable=None) as bar:
        while budget is None or total < budget:
            chunk = list(islice(remaining, _CHUNK))
            if not chunk:
                break
            for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                if budget is not None and total >= budget:
                    break
                arrays.append(np.array([*encoding.ids, end], dtype=np.uint16))
                total += len(arrays[-1])
                bar.update(len(arrays[-1]))
    return arrays
