"""Windows of held-out Python source with a label for every token, to score latents of a pair's models on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.data import Document, FileFilter, StandardLibrary, load_tokenizer
from sparse_lens.data.corpus import SITE_PACKAGES, DatasetSource, read_document, source_from_description
from sparse_lens.data.labels import OffsetEncoder, available_concepts, binary_labels, label_tokens
from sparse_lens.dictionaries import Bridge, Dictionary, harvest_activations
from sparse_lens.errors import DataError
from sparse_lens.models_shipped import CORPUS_FILE, pair_corpus

LEAST_POSITIVES = 200
"""A label with fewer positives in training or test files is not measurable."""

TEST_SHARE = 0.3
_LEAST_FILES = 20
_TOKENS_OF_A_FILE = 500


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Windows of tokens and their labels; every window is cut from one file, which was labelled as a whole.

    `tokens [window pos]`; `labels [window pos label]`: 1, 0, or -1 for unknown; `names [label]`; `files [window]` the number of the
    window's file, whose name is in `file_names`; `numbers [window]` tell a window from all others, in any selection of them;
    `source` says which files these are.
    """

    tokens: Int64[np.ndarray, "window pos"]
    labels: Int8[np.ndarray, "window pos label"]
    names: tuple[str, ...]
    files: Int64[np.ndarray, " window"]
    numbers: Int64[np.ndarray, " window"]
    file_names: tuple[str, ...]
    source: str

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all windows."""
        return int(self.tokens.size)

    def chosen(self, windows: np.ndarray) -> LabelledTokens:
        """Some of the windows, by index or mask."""
        parts = {name: getattr(self, name)[windows] for name in ("tokens", "labels", "files", "numbers")}
        return replace(self, **parts)

    def split(self, *, test_share: float = TEST_SHARE, seed: int = 0) -> tuple[LabelledTokens, LabelledTokens]:
        """Windows to train on and windows to test on, of different files; at least `test_share` of the windows are for the test.

        Raises `DataError` if there are fewer than two files.
        """
        numbers, sizes = np.unique(self.files, return_counts=True)
        if len(numbers) < 2:
            raise DataError(f"a split by files needs windows of two files or more, got {len(numbers)}; label more files")
        order = np.random.default_rng(seed).permutation(len(numbers))
        before = np.cumsum(sizes[order]) - sizes[order]
        for_test = numbers[order[before < test_share * sizes.sum()][: len(numbers) - 1]]
        is_test = np.isin(self.files, for_test)
        return self.chosen(~is_test), self.chosen(is_test)

    @property
    def places(self) -> Int64[np.ndarray, " token"]:
        """A number for each token that no other one has, in any selection of the windows."""
        context = self.tokens.shape[1]
        return (self.numbers[:, None] * context + np.arange(context)).reshape(-1)

    @cached_property
    def positives(self) -> Int64[np.ndarray, " label"]:
        """Tokens that have each label."""
        return (self.labels == 1).sum((0, 1))

    @cached_property
    def negatives(self) -> Int64[np.ndarray, " label"]:
        """Tokens known not to have each label."""
        return (self.labels == 0).sum((0, 1))

    def batches(self, size: int = 32) -> Iterator[LabelledTokens]:
        """The windows in order, `size` at a time."""
        for start in range(0, len(self.tokens), size):
            yield self.chosen(np.arange(start, min(start + size, len(self.tokens))))


def label_texts(
    documents: Sequence[Document],
    tokenizer: Any,
    *,
    context: int,
    names: Sequence[str] | None = None,
    source: str = "given files",
) -> LabelledTokens:
    """Label whole files and cut each into windows of `context` tokens; what is left at a file's end is dropped.

    `tokenizer` is one that `label_tokens` takes; `names` are concepts of the catalogue (default: all). Raises `DataError` if no
    file is as long as one window.
    """
    encoder, chosen = OffsetEncoder(tokenizer), tuple(names or available_concepts())
    tokens, labels, files = [], [], []
    for number, document in enumerate(documents):
        found = label_tokens(document.text, encoder)
        n_windows = len(found.ids) // context
        tokens.append(found.ids[: n_windows * context].reshape(n_windows, context))
        matrix = binary_labels(found, chosen)[1]
        labels.append(matrix[: n_windows * context].reshape(n_windows, context, len(chosen)))
        files.append(np.full(n_windows, number, dtype=np.int64))
    if not sum(map(len, tokens)):
        raise DataError(f"none of the {len(documents)} files has {context} tokens; give longer ones, or a shorter context")
    file_names = tuple(f"{document.source}:{document.path}" for document in documents)
    numbers = np.arange(sum(map(len, tokens)))
    return LabelledTokens(
        np.concatenate(tokens), np.concatenate(labels), chosen, np.concatenate(files), numbers, file_names, source
    )


def label_pair(
    pair: ModelPair,
    role: str = "sparse",
    *,
    n_tokens: int | None = None,
    context: int = 128,
    names: Sequence[str] | None = None,
    max_files: int | None = None,
    seed: int = 0,
) -> LabelledTokens:
    """Labelled windows of files that the models of a pair were not trained on, in the tokens of the model in `role`.

    The held-out files of the pair's corpus are read where they are installed as they were, byte by byte. Where fewer than 20 are,
    files of the standard library stand in that are no training files, by content or by path. `source` says which. `max_files`
    reads no more than the first so many in the order of their hashes; `n_tokens` draws about so many from all their windows, with
    `seed`, and without `max_files` reads a file for every 500 of them, at least 20. Raises `DataError` where there are no such
    files.
    """
    documents, source = held_out_files(pair)
    if max_files is None and n_tokens is not None:
        max_files = max(_LEAST_FILES, n_tokens // _TOKENS_OF_A_FILE)
    documents = documents[:max_files]
    labelled = label_texts(documents, load_tokenizer(pair.model_folder(role)), context=context, names=names, source=source)
    if n_tokens is None or n_tokens >= labelled.n_tokens:
        return labelled
    drawn = np.random.default_rng(seed).permutation(len(labelled.tokens))[: max(1, n_tokens // context)]
    return labelled.chosen(np.sort(drawn))


def held_out_files(pair: ModelPair) -> tuple[list[Document], str]:
    """The held-out files that are on this machine, in the order of their hashes, and what they are in words."""
    manifest = pair_corpus(pair.folder) if (pair.folder / CORPUS_FILE).is_file() else {"files": [], "sources": [], "filter": {}}
    wanted = [entry for entry in manifest["files"] if entry["split"] == "valid"]
    found = list(_installed(manifest, wanted))
    if len(found) >= _LEAST_FILES:
        what = f"{len(found)} of the {len(wanted)} held-out files of the pair's corpus"
    else:
        trained = [entry for entry in manifest["files"] if entry["split"] == "train"]
        hashes, paths = {entry["sha256"] for entry in trained}, {(entry["source"], entry["path"]) for entry in trained}
        library = StandardLibrary().documents(FileFilter(**manifest["filter"]))
        found = [
            document for document in library if document.sha256 not in hashes and (document.source, document.path) not in paths
        ]
        what = f"{len(found)} files of the installed standard library that are none of the {len(trained)} training files"
    if not found:
        raise DataError("no installed Python file is held out from the pair's training; label files of yours with label_texts")
    return sorted(found, key=lambda document: document.sha256), what


def _installed(manifest: dict[str, Any], wanted: Sequence[dict[str, str]]) -> Iterator[Document]:
    """Those of the wanted files of a manifest that are installed here as they were."""
    roots: dict[str, Path] = {}
    for description in manifest["sources"]:
        plain = {key: value for key, value in description.items() if key != "packages"}
        if plain["kind"] == "stdlib" or (plain["kind"] == "folder" and "path" not in plain and plain["name"] == SITE_PACKAGES):
            source = source_from_description(plain)
            assert not isinstance(source, DatasetSource)
            roots[plain["name"]] = source.root()  # a data set may need a network, another folder is one of another machine
    for entry in wanted:
        relative = PurePosixPath(entry["path"])
        if entry["source"] in roots and not relative.is_absolute() and ".." not in relative.parts:
            file_filter = FileFilter(**manifest["filter"])
            document = read_document(roots[entry["source"]], entry["path"], entry["source"], file_filter)
            if document is not None and document.sha256 == entry["sha256"]:
                yield document


@torch.no_grad()
def labelled_latents(
    bridge: Bridge, dictionary: Dictionary, data: LabelledTokens, *, batch_size: int = 32
) -> Iterator[tuple[Float[Tensor, "token latent"], dict[str, Float[Tensor, "token width"]], LabelledTokens]]:
    """For each batch of windows the latents, the activations at the dictionary's two hooks by name, and the windows themselves.

    Raises `DataError` for latents that are no numbers, and what `harvest_activations` raises.
    """
    hooks = sorted({dictionary.hook_in, dictionary.hook_out})
    harvested = harvest_activations(bridge, hooks, (batch.tokens for batch in data.batches(batch_size)))
    for activations, batch in zip(harvested, data.batches(batch_size), strict=True):
        latents = dictionary.encode(activations[dictionary.hook_in].to(dictionary.W_dec.dtype)).float()
        if bad := int((~torch.isfinite(latents)).sum()):
            raise DataError(
                f"{bad} latents of dictionary {dictionary.name!r} are not finite; see whether its weights are whole "
                "and the model's activations finite"
            )
        yield latents, activations, batch
