"""Windows of labelled files: what is read, how it is cut, and that files never stand on both sides of a split."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparse_lens.comparisons.concepts.labelled_tokens import held_out_files, label_pair, label_texts, labelled_latents
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.data import Document, FileFilter, StandardLibrary, load_tokenizer
from sparse_lens.data.labels import binary_labels, label_tokens
from sparse_lens.dictionaries import IdentityDictionary
from sparse_lens.errors import DataError
from sparse_lens.models_shipped import tokenizer_folder


def document(number, length=40):
    text = "".join(f"def f_{number}_{line}(x):\n    return [x, {line}]\n" for line in range(length))
    return Document("made", f"{number}.py", hashlib.sha256(text.encode()).hexdigest(), text)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tokenizer_folder())


@pytest.fixture(scope="module")
def labelled(tokenizer):
    return label_texts([document(number, 20 + 5 * number) for number in range(6)], tokenizer, context=32)


def test_windows_carry_the_labels_of_the_whole_file(labelled, tokenizer):
    whole = label_tokens(document(3, 35).text, tokenizer)
    _, matrix = binary_labels(whole)
    own = labelled.chosen(labelled.files == 3)
    n = own.n_tokens
    assert np.array_equal(own.tokens.reshape(-1), whole.ids[:n]) and len(whole.ids) - n < 32
    assert np.array_equal(own.labels.reshape(n, -1), matrix[:n]) and labelled.file_names[3] == "made:3.py"


def test_split_is_by_file_and_of_everything(labelled):
    train, test = labelled.split(test_share=0.3, seed=1)
    assert not set(train.files) & set(test.files)
    assert sorted([*train.numbers, *test.numbers]) == labelled.numbers.tolist()
    assert len(test.tokens) >= 0.3 * len(labelled.tokens) or len(set(train.files)) == 1
    assert len(np.unique(np.concatenate([train.places, test.places]))) == labelled.n_tokens
    with pytest.raises(DataError, match="two files"):
        labelled.chosen(labelled.files == 0).split()


def test_positives_and_negatives_leave_out_what_is_unknown(labelled):
    labels = labelled.labels.copy()
    labels[0, :5] = -1
    unknown = replace(labelled, labels=labels)
    lost = labelled.positives + labelled.negatives - unknown.positives - unknown.negatives
    assert np.array_equal(lost, (labelled.labels[0, :5] >= 0).sum(0)) and (unknown.negatives == (labels == 0).sum((0, 1))).all()


def test_too_short_files_are_refused(tokenizer):
    with pytest.raises(DataError, match="none of the 1 files has 4096 tokens"):
        label_texts([document(0, 3)], tokenizer, context=4096)


def pair_of(folder, files):
    """A pair with no more than a corpus of these files of the standard library."""
    manifest = {
        "sources": [{"kind": "stdlib", "name": "stdlib", "cap_mb": None}, {"kind": "dataset", "name": "data"}],
        "files": files,
        **{"filter": {}, "config": {}, "config_hash": "", "tokens": {}, "valid_share": 0.05},
    }
    (folder / "pair.json").write_text("{}", encoding="utf-8")
    (folder / "corpus.json").write_text(json.dumps(manifest), encoding="utf-8")
    return ModelPair(folder)


def test_held_out_files_of_the_corpus_or_of_the_library(tmp_path):
    library = list(StandardLibrary().documents(FileFilter()))
    files = [
        {"source": "stdlib", "path": d.path, "sha256": d.sha256, "split": "valid" if i % 3 == 0 else "train"}
        for i, d in enumerate(library)
    ]
    found, what = held_out_files(pair_of(tmp_path, files))
    valid = {entry["path"] for entry in files if entry["split"] == "valid"}
    assert {d.path for d in found} == valid and what == f"{len(valid)} of the {len(valid)} held-out files of the pair's corpus"
    other = [entry | {"sha256": "0" * 64} for entry in files]  # another version of Python
    found, what = held_out_files(pair_of(tmp_path, other))
    assert {d.path for d in found} == valid and what.startswith(
        f"{len(valid)} files of the installed standard library that are none of"
    )
    with pytest.raises(DataError, match="no installed Python file is held out"):
        held_out_files(pair_of(tmp_path, [entry | {"split": "train"} for entry in files]))


def test_shipped_pair_end_to_end():
    pair = ModelPair.open()
    data = label_pair(pair, n_tokens=10_000, names=["in_string", "bracket_depth_2"], max_files=4)
    assert 9_000 < data.n_tokens <= 10_000 and len(data.file_names) == 4
    assert (data.positives > 20).all() and data.tokens.max() < 1024
    assert "held-out files" in data.source or "library" in data.source
    again = label_pair(pair, n_tokens=10_000, names=["in_string", "bracket_depth_2"], max_files=4)
    assert np.array_equal(again.tokens, data.tokens) and np.array_equal(again.labels, data.labels)


class Broken(IdentityDictionary):
    def encode(self, x):
        return torch.where(x > 0, x, torch.nan)


def test_latents_that_are_no_numbers_are_refused():
    pair = ModelPair.open()
    bridge, hook = pair.open_model("sparse"), "blocks.0.mlp.hook_post"
    data = label_pair(pair, n_tokens=256, names=["in_string"], max_files=2)
    with pytest.raises(DataError, match=r"latents of dictionary 'neurons@blocks.0.mlp.hook_post' are not finite"):
        list(labelled_latents(bridge, Broken(1024, hook), data))
    (latents, activations, batch), *_ = labelled_latents(bridge, IdentityDictionary(1024, hook), data, batch_size=1)
    assert torch.equal(latents, activations[hook]) and latents.shape == (128, 1024) and len(batch.tokens) == 1
