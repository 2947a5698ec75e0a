"""What dictionaries are trained on: training files and programs, none held out, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.reading import reading_windows, standard_library
from sparse_lens.data import encode_documents, load_tokenizer
from sparse_lens.errors import DataError
from sparse_lens.models_shipped import pair_corpus


def test_no_held_out_file_is_read() -> None:
    pair = ModelPair.open()
    held_out = {entry["sha256"] for entry in pair_corpus(pair.folder)["files"] if entry["split"] == "valid"}
    train, valid = (standard_library(pair, split) for split in ("train", "valid"))
    assert len(train) > 10 * len(valid) > 0
    assert not {document.sha256 for document in train} & held_out
    assert {document.sha256 for document in valid} & held_out  # on the Python version of the corpus these are the same files


def test_windows_are_the_same_every_time_and_half_real() -> None:
    pair = ModelPair.open()
    first, again, other = (reading_windows(pair, 20_000, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (157, 128) and np.array_equal(first, again) and not np.array_equal(first, other)
    tokenizer = load_tokenizer(pair.model_folder("sparse"))
    (library,) = np.atleast_2d(np.concatenate(encode_documents(tokenizer, (d.text for d in standard_library(pair, "train")))))
    known = {window[:16].tobytes() for window in np.lib.stride_tricks.sliding_window_view(library, 16)}
    real = sum(window[:16].astype(library.dtype).tobytes() in known for window in first)
    assert 0.4 < real / len(first) < 0.65


def test_less_than_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="window"):
        reading_windows(ModelPair.open(), 100)
