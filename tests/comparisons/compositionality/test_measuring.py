"""Structural compositionality of the shipped models: shared prompts, every number, the rotated twin, two trainings."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest
import torch

from sparse_lens.comparisons.compositionality import shared_prompts
from sparse_lens.comparisons.compositionality.measuring import compositionality_columns, structural_compositionality
from sparse_lens.comparisons.compositionality.pretraining import pretraining_effect
from sparse_lens.comparisons.compositionality.rotated_twin import rotated_twin, rotation_obstacle
from sparse_lens.comparisons.compositionality.scoring import accuracies
from sparse_lens.comparisons.compositionality.shared_prompts import sample_shared, subroutine_texts
from sparse_lens.comparisons.compositionality.weight_masks import CHEAP, MaskConfig
from sparse_lens.errors import ConfigError, DataError, UnknownNameError
from sparse_lens.hooks import load

PAIR = ("quote", "bracket")
QUICK: dict[str, Any] = {
    "config": MaskConfig(steps=3, batch_size=4, units="rows"),
    "seeds": (0,),
    "n_search": 16,
    "n_heldout": 16,
    "progress": False,
}


@pytest.fixture(scope="module")
def dense() -> Any:
    return load("python-dense-matched")


@pytest.fixture(scope="module")
def sparse() -> Any:
    return load("python-sparse")


@pytest.mark.parametrize("names", [PAIR, ("quote", "set_or_string"), ("set_or_string", "bracket")])
def test_both_answers_vary_independently_and_are_the_next_tokens(dense: Any, names: tuple[str, str]) -> None:
    """All combinations alike; a prompt asked again with its last answer goes on as the text does."""
    prompts = sample_shared(dense.tokenizer, names, 64, seed=0, split="heldout")
    combinations = torch.stack([prompts.right[0], prompts.right[1]], 1).unique(dim=0, return_counts=True)[1]
    assert combinations.tolist() == [16, 16, 16, 16]
    answers = {"quote": "\"'", "bracket": "]}", "set_or_string": (".add", " +=")}
    first = 0 if bool((prompts.position[0] < prompts.position[1]).all()) else 1
    row = torch.arange(64)
    assert torch.equal(prompts.inputs[row, prompts.position[first] + 1], prompts.right[first]), "the next token is the answer"
    for which, name in enumerate(names):
        decoded = {dense.tokenizer.decode([token]) for token in prompts.right[which].tolist()}
        assert decoded == set(answers[name])
        assert bool((prompts.right[which] != prompts.wrong[which]).all())
        assert {*prompts.wrong[which].tolist()} == {*prompts.right[which].tolist()}


def test_what_decides_stands_in_the_prompt(dense: Any) -> None:
    """The quote and the bracket that opened are those that close, and a subroutine that was not asked for leaves no line."""
    prompts = sample_shared(dense.tokenizer, PAIR, 24, seed=1, split="search")
    closing = {"[": "]", "{": "}"}
    for row in range(24):
        ids = prompts.inputs[row, 1 : int(prompts.position[1, row]) + 1].tolist()
        text = dense.tokenizer.decode(ids)
        opened = [mark for mark in text if mark in "[{"][-1]
        assert dense.tokenizer.decode([int(prompts.right[1, row])]) == closing[opened]
        assert text[-1] == dense.tokenizer.decode([int(prompts.right[0, row])]) and text.count(text[-1]) % 2 == 0
        assert "set()" not in text and "str()" not in text
    asked = sample_shared(dense.tokenizer, ("bracket", "set_or_string"), 24, seed=1, split="search")
    for row in range(24):
        text = dense.tokenizer.decode(asked.inputs[row, 1:].tolist())
        assert ("set()" in text) == (dense.tokenizer.decode([int(asked.right[1, row])]) == ".add")


def test_search_and_heldout_share_no_prompt_and_a_seed_draws_the_same(dense: Any) -> None:
    drawn = [sample_shared(dense.tokenizer, PAIR, 64, seed=0, split=split) for split in ("search", "heldout", "search")]
    texts = [{dense.tokenizer.decode(ids) for ids in prompts.inputs.tolist()} for prompts in drawn]
    assert not texts[0] & texts[1] and len(texts[0]) == 64
    assert torch.equal(drawn[0].inputs, drawn[2].inputs)


def test_programs_of_two_subroutines_alone(dense: Any) -> None:
    """The corpus of the tasks alone holds both answers of both, and whole lines."""
    texts = list(islice(subroutine_texts(PAIR, random.Random(0)), 40))
    assert all(text.endswith("\n") and "«" not in text and "set()" not in text for text in texts)
    assert all(any(mark in text for text in texts) for mark in ('["', '{"', "['", "{'", '"]', "'}"))


def test_accuracies_do_not_depend_on_the_order_of_rows(dense: Any) -> None:
    prompts = sample_shared(dense.tokenizer, PAIR, 48, seed=0, split="search")
    mixed = prompts.rows(torch.randperm(48, generator=torch.Generator().manual_seed(0)))
    row = torch.arange(48)
    logits = dense(prompts.inputs).detach()[row, prompts.position]
    plain = logits.gather(2, prompts.right[..., None]) > logits.gather(2, prompts.wrong[..., None])
    torch.testing.assert_close(accuracies(dense, mixed), plain[..., 0].double().mean(1), rtol=0, atol=1e-9)


def test_the_shipped_pair_gives_every_number(dense: Any, sparse: Any) -> None:
    """All of them in both columns; the sparse model says why it has no rotated twin."""
    before = {name: value.clone() for name, value in sparse.named_parameters()}
    table = compositionality_columns({"sparse": sparse, "dense": dense}, **QUICK)
    assert set(table["sparse"]) == set(table["dense"])
    for column, found in table.items():
        for name, result in found.items():
            unknown = name.endswith(("seed_overlap", "complement_d_abl")) or (column == "sparse" and "rotated" in name)
            assert result.measurable or unknown, (column, name, result.reason)
    assert "AbsTopK" in str(table["sparse"]["rotated_d_abl"].reason)
    assert table["sparse"]["maskable"].value == 78640
    assert all(torch.equal(value, before[name]) for name, value in sparse.named_parameters())


def test_a_subroutine_that_is_not_done_is_not_measurable(sparse: Any) -> None:
    found = structural_compositionality(sparse, "quote", "set_or_string", **QUICK).results
    assert "set_or_string" in str(found["quote_d_abl"].reason) and found["set_or_string_model_accuracy"].measurable


@pytest.mark.slow
def test_masks_of_the_shipped_models_keep_their_own_subroutine(dense: Any, sparse: Any) -> None:
    """The cheap form: each mask alone does its own subroutine on held-out prompts as the whole model does, and not the other."""
    for found in compositionality_columns({"sparse": sparse, "dense": dense}, config=CHEAP, seeds=(0,), progress=False).values():
        for name in PAIR:
            assert found[f"{name}_sub_own"].value > 0.9 and found[f"{name}_d_sub"].value > 0.25
            assert found[f"{name}_abl_own"].value < 0.65 and found[f"{name}_kept_share"].value < 0.4


def test_the_effect_of_pretraining_is_a_difference_of_two_folders() -> None:
    """Of a model and itself: all differences are 0, and nothing else is in it."""
    found = pretraining_effect("python-dense-matched", "python-dense-matched", **QUICK)
    assert found["difference_d_abl"].value == 0 and found["pretrained_d_sub"] == found["alone_d_sub"]
    assert {name.partition("_")[0] for name in found} == {"pretrained", "alone", "difference"}


def test_the_rotated_twin_has_the_same_function_and_other_weights(dense: Any, sparse: Any) -> None:
    tokens = torch.randint(1000, (3, 40), generator=torch.Generator().manual_seed(0))
    whole, before = dense(tokens).detach(), {name: value.clone() for name, value in dense.named_parameters()}
    with rotated_twin(dense, seed=1):
        torch.testing.assert_close(dense(tokens).detach(), whole, rtol=1e-5, atol=1e-4)
        moved = [name for name, value in dense.named_parameters() if value.ndim == 2 and not torch.allclose(value, before[name])]
        assert len(moved) == 2 + 2 * 6 + 1, "embeddings, every matrix of both layers, the unembedding; not the table of bigrams"
    assert all(torch.equal(value, before[name]) for name, value in dense.named_parameters())
    assert "AbsTopK" in (rotation_obstacle(sparse) or "")
    with pytest.raises(ConfigError, match="AbsTopK"), rotated_twin(sparse):
        pass
    assert "models of this package" in (rotation_obstacle(torch.nn.Linear(2, 2)) or "")


def test_wrong_requests_say_what_to_do(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for names, split, error, message in (
        (PAIR, "train", UnknownNameError, "split of shared prompts"),
        (("quote", "brackets"), "search", UnknownNameError, "did you mean 'bracket'"),
        (("quote", "quote"), "search", ConfigError, "two different subroutines"),
    ):
        with pytest.raises(error, match=message):
            sample_shared(dense.tokenizer, names, 8, seed=0, split=split)
    with pytest.raises(DataError, match="tokenizer"):
        sample_shared(object(), PAIR, 8, seed=0, split="search")
    one_word_each = {kind: words[:1] for kind, words in shared_prompts._WORDS["search"].items()}
    monkeypatch.setattr(shared_prompts, "_WORDS", {"search": one_word_each})
    with pytest.raises(DataError, match="only 4 different prompts"):
        sample_shared(dense.tokenizer, PAIR, 20, seed=0, split="search")
