"""A byte-level BPE tokenizer whose pieces fit Python: quotes, brackets, newline + indentation stand alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sparse_lens.errors import DataError

END_OF_TEXT = "<|endoftext|>"
"""The only special token: document separator, and eos, bos and pad in the Hugging Face files."""

PIECES = "|".join(
    (
        r"\n[ \t]*",  # a newline with the indentation that follows it
        r' ?(?:"""|\'\'\')',
        r" ?[\"']",
        r"\.[A-Za-z]+",  # an attribute with its dot
        r" ?[A-Za-z]+",
        r" ?_+",
        r" ?[0-9]",
        r" ?[(\[{]",  # opening brackets one at a time
        r"[)\]}]+",  # closing brackets as a run: how many close at once is one decision
        r"[:,]",
        r" ?[^\sA-Za-z0-9_\"'()\[\]{}:,]+",
        r"[^\S\n]+(?!\S)",
        r"[^\S\n]+",
    )
)
"""The pre-tokenizer's regular expression; BPE merges never cross its pieces."""

REQUIRED_TOKENS: tuple[str, ...] = (
    *('"', "'", ' "', " '", "]", "]]", "}", ")", ":", "\n", "\n    ", "\n        "),
    *(" =", " ==", " +=", ".add", ".append", "open", " open", " with", " as", " in", " for", " if", " while"),
    *(" return", " True", " def", " lambda", " enumerate", " range", " {", " ["),
)
"""Strings that every tokenizer trained here encodes as one token: the answers of the tasks need it."""

_FORCED_REPEATS = 20_000


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` tokens; `<|endoftext|>` gets the last id.

    Raises `DataError` if a required token did not get its merges (a vocabulary below about 500).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_with_required(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    missing = [text for text in REQUIRED_TOKENS if len(tokenizer.encode(text).ids) != 1]
    if missing:
        raise DataError(f"vocabulary of {vocab_size} has no single token for {missing}; use at least 600")
    return tokenizer


def _with_required(texts: Iterable[str]) -> Iterator[str]:
    """Add each required string many times: BPE then merges it early, without special tokens.

    The digit keeps neighbours apart: closing brackets would otherwise join into one run.
    """
    yield from texts
    for text in (text for text in REQUIRED_TOKENS if len(text) > 1):
        yield f"{text}0" * _FORCED_REPEATS


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write `tokenizer.json` and a `tokenizer_config.json` that `transformers.AutoTokenizer` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "bos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Load the `tokenizer.json` of a folder; raise `DataError` if there is none."""
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"no tokenizer.json in {str(directory)!r}; pass a folder written by save_tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare exceptions
        raise DataError(f"{path} is not a readable tokenizer: {error}; copy it again") from error


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the tokenizer's JSON, the identity that the manifest records."""
    return hashlib.sha256(tokenizer.to_str().encode("utf-8")).hexdigest()
