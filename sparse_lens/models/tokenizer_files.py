"""Reading the tokenizer of a model's folder: Hugging Face's file, or the two files of the released models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from sparse_lens.errors import CheckpointError

END_OF_TEXT = "<|endoftext|>"
ENCODER, MERGES = "encoder.json", "vocab.bpe"

_PIECES = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def read_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast | None:
    """The tokenizer in `folder`, None if there is none; `<|endoftext|>` serves as eos and pad.

    Read from `tokenizer.json`, else from `encoder.json` and `vocab.bpe`, the released models' files. Raises `CheckpointError` if
    they are unreadable, have ids the model does not know, or lack an end-of-text token.
    """
    settings = _tokenizer_settings(folder)
    if (folder / "tokenizer.json").is_file():
        path, backend = folder / "tokenizer.json", None
    elif (folder / ENCODER).is_file() and (folder / MERGES).is_file():
        path, backend = folder / ENCODER, read_tinypython(folder)
    else:
        return None
    try:
        tokenizer = PreTrainedTokenizerFast(
            **({"tokenizer_file": str(path)} if backend is None else {"tokenizer_object": backend}),
            padding_side="right",
            clean_up_tokenization_spaces=False,
            add_bos_token=bool(settings.get("add_bos_token", False)),
        )
    except Exception as error:  # the Rust side raises bare exceptions
        raise CheckpointError(f"{path} is not a readable tokenizer: {error}; copy it again") from error
    vocabulary = tokenizer.get_vocab()
    if vocabulary and max(vocabulary.values()) >= vocab_size:
        raise CheckpointError(
            f"{path} has token ids up to {max(vocabulary.values())}, the model knows {vocab_size}; "
            "tokenizer and weights do not belong together"
        )
    end = _text(settings.get("eos_token")) or END_OF_TEXT
    if end not in vocabulary:
        raise CheckpointError(f"{path} has no token {end!r}, which ends a text; name another as eos_token in tokenizer_config.json")
    # bos stays unset: with one, TransformerLens would build the tokenizer anew from a name, over the network.
    tokenizer.eos_token = tokenizer.pad_token = end
    return tokenizer


def read_tinypython(folder: Path) -> Tokenizer:
    """The byte-level BPE of `encoder.json` (ids) and `vocab.bpe` (merges), with the pieces of the released models' tokenizer.

    Pieces and special token after openai/circuit_sparsity, `circuit_sparsity/tiktoken_ext/tinypython.py`.
    """
    try:
        ids = json.loads((folder / ENCODER).read_text(encoding="utf-8"))
        lines = (folder / MERGES).read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
        tokenizer = Tokenizer(BPE(vocab=ids, merges=merges))
    except Exception as error:  # the Rust side raises bare exceptions
        raise CheckpointError(f"{ENCODER} and {MERGES} in {folder} are no tokenizer: {error}; copy them again") from error
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _text(token: Any) -> str | None:
    """A special token's text, written plainly or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
