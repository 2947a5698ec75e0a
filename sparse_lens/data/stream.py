"""Token files on disk as batches whose order depends only on a seed and the step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer

from sparse_lens.data.encode import Tokens
from sparse_lens.data.manifest import Manifest
from sparse_lens.data.tokenizer import load_tokenizer
from sparse_lens.errors import DataError

Windows = Int64[np.ndarray, "batch pos"]
State = dict[str, Any]
TokenSplit = Literal["train", "valid", "valid_generated"]


@runtime_checkable
class TrainingData(Protocol):
    """What a training run reads: `TokenData` on disk, or a stream."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Where the tokens come from; `config_hash` tells one corpus from another."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def vocab_size(self) -> int: ...

    def resumable_batches(
        self, *, context: int, batch_size: int, seed: int, start_step: int, n_steps: int, state: State | None
    ) -> Iterator[tuple[Windows, State | None]]:
        """Int64 [batch_size, context + 1] for each step from `start_step` on, with the JSON-able state that follows it."""
        ...

    def validation_windows(self, context: int, n_windows: int) -> Windows:
        """Held-out windows, int64 [n_windows, context + 1], the same at every call."""
        ...


@dataclass(frozen=True)
class TokenData:
    """A prepared corpus in one folder: memory-mapped uint16 tokens, their tokenizer and their manifest."""

    directory: Path

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest; raises `DataError` if the folder has none."""
        path = self.directory / "manifest.json"
        if not path.is_file():
            raise DataError(f"no manifest.json in {str(self.directory)!r}; build the data with prepare_data")
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}; delete the folder and build the data again") from error
        if not isinstance(manifest, dict) or not {"config_hash", "tokens"} <= manifest.keys():
            raise DataError(f"{path} is no manifest of token data; choose another folder, or delete this one and build it again")
        return manifest

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        return load_tokenizer(self.directory)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the end-of-text token included."""
        return self.tokenizer.get_vocab_size()

    @cached_property
    def train(self) -> Tokens:
        """Training tokens [token], real and generated documents in shuffled order."""
        return self.tokens("train")

    @cached_property
    def valid(self) -> Tokens:
        """Tokens [token] of real files that are not in training."""
        return self.tokens("valid")

    @cached_property
    def valid_generated(self) -> Tokens:
        """Tokens [token] of generated programs that are not in training."""
        return self.tokens("valid_generated")

    def tokens(self, split: TokenSplit) -> Tokens:
        """Map one split into memory, uint16 [token]; raise `DataError` if its file is missing or cut."""
        path = self.directory / f"{split}.bin"
        expected = self.manifest["tokens"][split]
        found = path.stat().st_size // 2 if path.is_file() else 0
        if found != expected:
            raise DataError(f"{path} holds {found} tokens, the manifest says {expected}; delete the folder and rebuild")
        if expected == 0:
            return np.zeros(0, dtype=np.uint16)
        return np.memmap(path, dtype="<u2", mode="r")

    def batches(self, *, context: int, batch_size: int, seed: int, start_step: int = 0, n_steps: int) -> Iterator[Windows]:
        """Yield int64 [batch_size, context + 1] for the steps `start_step` to `start_step + n_steps - 1`.

        Each epoch is a permutation of the windows (inputs do not overlap) drawn from (seed, epoch), so the
        batch of a step does not depend on where the run started or on the model. Raises `DataError` if
        `train` is shorter than one batch.
        """
        per_epoch = (len(self.train) - 1) // context // batch_size
        if per_epoch < 1:
            raise DataError(
                f"{len(self.train)} training tokens are fewer than one batch of {batch_size} windows of "
                f"{context}; lower batch_size or context, or build a larger corpus"
            )
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        for step in range(start_step, start_step + n_steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = np.random.default_rng([seed, epoch]).permutation((len(self.train) - 1) // context)
            slot = step % per_epoch
            yield _windows(self.train, order[slot * batch_size : (slot + 1) * batch_size] * context, context)

    def resumable_batches(
        self,
        *,
        context: int,
        batch_size: int,
        seed: int,
        start_step: int,
        n_steps: int,
        state: State | None,  # noqa: ARG002
    ) -> Iterator[tuple[Windows, State | None]]:
        """`batches`, each with what resuming after it needs: nothing, since the step alone says what comes next."""
        batches = self.batches(context=context, batch_size=batch_size, seed=seed, start_step=start_step, n_steps=n_steps)
        return ((batch, None) for batch in batches)

    def validation_windows(self, context: int, n_windows: int, *, split: TokenSplit = "valid") -> Windows:
        """Return int64 [n_windows, context + 1]: the same evenly spaced windows at every call.

        Raises `DataError` if the split is shorter than one window.
        """
        tokens = self.tokens(split)
        last = len(tokens) - context - 1
        if last < 0:
            raise DataError(f"{split} holds {len(tokens)} tokens, fewer than one window of {context + 1}; lower context")
        return _windows(tokens, np.linspace(0, last, n_windows).astype(np.int64), context)


def _windows(tokens: Tokens, starts: Int64[np.ndarray, " batch"], context: int) -> Windows:
    return tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
