"""Models with tokenizers of their own: the same text, tasks as strings, losses by the byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons import ModelPair, claims, compare
from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.comparisons.concepts.labelled_tokens import label_pair
from sparse_lens.comparisons.full import cells, quick_plan
from sparse_lens.comparisons.full.full_jobs import correspondence_jobs
from sparse_lens.comparisons.full.full_verdict import left_out
from sparse_lens.comparisons.instrument.running import pairs_of_models
from sparse_lens.comparisons.reading import reading_windows
from sparse_lens.data import load_tokenizer
from sparse_lens.errors import ConfigError
from sparse_lens.hooks import load
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.tasks import get_task

QUICK = SearchConfig(steps=6, search_pairs=32, evaluation_pairs=16, evaluations=4)


@pytest.fixture(scope="module")
def renumbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The matched model with its tokens renumbered: another tokenizer, but the same function of text."""
    folder = tmp_path_factory.mktemp("models") / "renumbered"
    source = ModelPair.open().model_folder("dense_matched")
    model = load(source).original_model
    vocabulary = model.config.vocab_size
    order = torch.randperm(vocabulary - 1, generator=torch.Generator().manual_seed(0))  # old id of each new one
    order = torch.cat([order, torch.tensor([vocabulary - 1])])  # the end-of-text token keeps its place
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for axis, size in enumerate(parameter.shape):
                if size == vocabulary and ("wte" in name or "lm_head" in name or "unembed" in name or "bigram" in name):
                    parameter.copy_(parameter.index_select(axis, order))
    model.save_pretrained(folder)
    new = {int(old): index for index, old in enumerate(order)}
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {token: new[old] for token, old in tokenizer["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    return folder


@pytest.fixture(scope="module")
def other_merges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the pair's depth with merges and pre-tokenization of its own: tokens end elsewhere in the text."""
    folder, pair = tmp_path_factory.mktemp("models") / "merged", ModelPair.open()
    source = pair.model_folder("dense_matched")
    texts = load_tokenizer(source).decode_batch(pair.windows["heldout"].tolist(), skip_special_tokens=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(texts, trainer)
    config = load(source).original_model.config
    fields = {name: getattr(config, name) for name in ("n_layer", "n_head", "d_model", "d_mlp", "block_size", "rms_norm")}
    torch.manual_seed(0)
    CircuitGPTForCausalLM(CircuitGPTConfig(vocab_size=500, tied_unembed=False, **fields)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    return folder


def test_other_merges_read_the_same_text(other_merges: Path) -> None:
    """Windows are cut from the same text, at other places."""
    pair = ModelPair.open().with_models(dense_matched=other_merges)
    own, new = load_tokenizer(pair.model_folder("sparse")), load_tokenizer(other_merges)
    windows = pair.windows_of("dense_matched")["heldout"]
    texts = own.decode_batch(pair.windows["heldout"].tolist(), skip_special_tokens=True)
    again = new.decode_batch(windows.tolist(), skip_special_tokens=True)
    assert windows.max() < 500 and len(again) >= 0.9 * len(texts)
    assert all(any(text.strip("\ufffd").startswith(cut.strip("\ufffd")) for text in texts) for cut in again)
    assert all(own.encode(text).tokens != new.encode(text).tokens for text in texts[:8])


def test_labels_are_the_texts_whatever_the_merges(other_merges: Path) -> None:
    """Of the same files, about the same share of the text is in strings and comments, and brackets are brackets."""
    pair = ModelPair.open().with_models(dense_matched=other_merges)
    both = {role: label_pair(pair, role, max_files=4) for role in ("sparse", "dense_matched")}
    shares = {}
    for role, labelled in both.items():
        decode, column = load_tokenizer(pair.model_folder(role)), labelled.names.index("in_string")
        inside = labelled.labels[..., column] == 1
        shares[role] = [len(decode.decode(labelled.tokens[at].tolist())) for at in (inside, labelled.labels[..., column] == 0)]
    own, other = (inside / (inside + outside) for inside, outside in shares.values())
    assert own == pytest.approx(other, abs=0.03) and own > 0.05


@pytest.mark.slow
def test_rows_of_a_model_with_other_merges(other_merges: Path) -> None:
    """Those that read its own labels have numbers; matching units token by token is left out, by name, and so is its loss."""
    pair = ModelPair.open().with_models(dense_matched=other_merges)
    column = ColumnSpec("dense_matched_neurons", "dense_matched")
    found = cells.row_cell(pair.address, column.to_plain(), "concepts", 0, tokens=6_400)
    assert found["coverage_f1"].value is not None and found["coverage_f1"].value > 0.02
    specs = [ColumnSpec("sparse_neurons", "sparse"), ColumnSpec("dense_neurons", "dense"), column]
    matched = {job.arguments["second"]["name"] for job in correspondence_jobs(pair, quick_plan(), specs)}
    assert matched == {"dense_neurons"}
    assert any("dense_matched_neurons" in sentence for sentence in left_out({}, {"correspondence": {"dense_neurons": {}}}, specs))


def test_windows_hold_the_same_text(renumbered: Path) -> None:
    pair = ModelPair.open().with_models(dense_matched=renumbered)
    assert pair.shares_tokens("sparse") and not pair.shares_tokens("dense_matched")
    own, new = load_tokenizer(pair.model_folder("sparse")), load_tokenizer(renumbered)
    windows = pair.windows_of("dense_matched")
    assert windows["heldout"].shape[1] >= 120 and len(windows["heldout"]) >= 0.9 * len(pair.windows["heldout"])
    texts = own.decode_batch(pair.windows["heldout"].tolist(), skip_special_tokens=True)
    again = new.decode_batch(windows["heldout"].tolist(), skip_special_tokens=True)
    assert all(any(text.strip("\ufffd").startswith(cut.strip("\ufffd")) for text in texts) for cut in again)
    assert pair.windows_of("sparse") is pair.windows


def test_what_dictionaries_are_trained_on_is_in_the_models_own_tokens(renumbered: Path) -> None:
    """The same text as for the model itself, in the new numbers."""
    own = ModelPair.open()
    pair, tokenizers = (
        own.with_models(dense_matched=renumbered),
        [load_tokenizer(own.model_folder("sparse")), load_tokenizer(renumbered)],
    )
    windows = [reading_windows(own, 2_000), reading_windows(pair, 2_000, role="dense_matched")]
    assert not np.array_equal(*windows)
    texts = [of.decode_batch(ids.tolist(), skip_special_tokens=False) for of, ids in zip(tokenizers, windows, strict=True)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_renumbered_model_is_compared_like_the_model_itself(renumbered: Path) -> None:
    metrics = compare(
        ModelPair.open().with_models(dense_matched=renumbered, sparse=ModelPair.open().model_folder("dense_matched")),
        tasks=["if_equals"],
        config=QUICK,
        progress=False,
    ).metrics
    models = metrics["models"]
    assert models["sparse"]["shares_tokens"] and not models["dense_matched"]["shares_tokens"]
    by_byte = [models[role]["bits_per_byte"].value for role in ("sparse", "dense_matched")]
    assert by_byte[0] == pytest.approx(by_byte[1], rel=0.01)  # windows are a few tokens shorter
    columns = metrics["tasks"]["if_equals"]["columns"]
    same, other = columns["sparse_neurons"], columns["dense_matched_neurons"]
    assert same["full_loss"].value == pytest.approx(other["full_loss"].value, abs=1e-5)
    assert same["accuracy"].value == other["accuracy"].value
    assert any("another tokenizer" in sentence for sentence in metrics["verdict"])


def test_claims_are_of_models_that_read_the_windows_of_their_pair(renumbered: Path) -> None:
    """Most measures read both models token by token: what a model with other tokens gives there means nothing."""
    for given in ({"dense_matched": [renumbered]}, {"dense_matched": [renumbered], "sparse": [renumbered]}):
        with pytest.raises(ConfigError, match="renumbered has another tokenizer than the pair 'python'"):
            claims(pairs_of_models(**given), only=["EASE"], smoke=True, progress=False)


def test_a_task_that_one_tokenizer_cannot_spell_is_not_measurable(renumbered: Path, tmp_path: Path) -> None:
    """The other tokenizer has no token for an answer any more: that task is refused by name, the other goes on."""
    pair = ModelPair.open()
    answer = get_task("if_equals").sample(load_tokenizer(renumbered), 1, seed=0, split="search").pairs[0].target
    folder = tmp_path / "poorer"
    folder.mkdir()
    for file in renumbered.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    token = answer.replace(" ", "Ġ")
    tokenizer["model"]["vocab"]["unspelled"] = tokenizer["model"]["vocab"].pop(token)
    tokenizer["model"]["merges"] = [
        m for m in tokenizer["model"]["merges"] if "".join(m if isinstance(m, list) else m.split()) != token
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    metrics = compare(pair.with_models(dense_matched=folder), tasks=["if_equals"], config=QUICK, progress=False).metrics
    entry = metrics["tasks"]["if_equals"]
    assert not entry["measurable"] and "poorer" in entry["reason"] and not entry["columns"]
    assert any("poorer" in sentence for sentence in metrics["verdict"])
    assert np.isfinite(metrics["models"]["dense_matched"]["bits_per_byte"].value)
