"""The mixture that the pair is trained on, and a few steps of its training."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.comparisons.binding.drawing import held_out, training_texts
from sparse_lens.comparisons.binding.training import binding_recipes, evenly_spaced_positions, main, train_binding
from sparse_lens.comparisons.mixed_data import MixedData
from sparse_lens.data import END_OF_TEXT, DataConfig, SourceFolder, TokenData, generate_program, prepare_data
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.hooks import load
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    """A few dozen small files in the shipped pair's tokens."""
    source = tmp_path_factory.mktemp("source")
    for number in range(40):
        (source / f"module_{number}.py").write_text(generate_program(random.Random(number)))
    config = DataConfig(
        (SourceFolder(str(source)),), 0.1, valid_share=0.3, valid_generated_tokens=500, tokenizer_directory="python"
    )
    return prepare_data(config, tmp_path_factory.mktemp("corpus") / "data")


def counted(tokenizer: Any, rng: random.Random) -> Iterator[str]:
    """Texts that no Python file holds."""
    while True:
        yield f"qqq {rng.randrange(1000)} " * 3


def batches(data: MixedData, start: int, n: int) -> list[np.ndarray]:
    options: Any = {"context": 16, "batch_size": 4, "seed": 3, "state": None}
    return [batch for batch, _ in data.resumable_batches(start_step=start, n_steps=n, **options)]


def test_a_share_of_the_rows_is_replaced(corpus: TokenData) -> None:
    """Over the steps exactly the share, also where no batch holds it; the other rows are the corpus's, untouched."""
    plain = batches(MixedData(corpus, counted, 0.0), 0, 10)
    mixed = batches(MixedData(corpus, counted, 0.3, corpus_first=0), 0, 10)
    texts = [corpus.tokenizer.decode(row.tolist()) for batch in mixed for row in batch]
    assert sum("qqq" in text for text in texts) == 12
    end = corpus.tokenizer.token_to_id(END_OF_TEXT)
    for before, after in zip(plain, mixed, strict=True):
        assert after.shape == before.shape == (4, 17)
        for old, new in zip(before, after, strict=True):
            assert np.array_equal(old, new) or new[0] == end


def test_what_a_step_reads_depends_on_the_step_alone(corpus: TokenData) -> None:
    data = MixedData(corpus, counted, 0.5, corpus_first=2)
    whole, rest = batches(data, 0, 6), batches(data, 4, 2)
    assert all(np.array_equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    plain = batches(MixedData(corpus, counted, 0.0), 0, 6)
    same = [np.array_equal(a, b) for a, b in zip(whole, plain, strict=True)]
    assert same == [True, True, False, False, False, False]


def test_the_mixture_has_an_identity_of_its_own(corpus: TokenData) -> None:
    """So that a run on one mixture is not resumed on another."""
    hashes = {MixedData(corpus, counted, share, first).manifest["config_hash"] for share, first in ((0.1, 0), (0.2, 0), (0.2, 5))}
    assert len(hashes | {corpus.manifest["config_hash"]}) == 4
    with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
        MixedData(corpus, counted, 1.5)


def test_the_pair_differs_in_sparsity_alone() -> None:
    recipes = binding_recipes()
    shapes = {role: {name: config.model[name] for name in ("n_layer", "d_model", "n_head")} for role, config in recipes.items()}
    assert shapes["dense"] == shapes["sparse"]
    assert recipes["dense"].sparsity is None
    assert recipes["sparse"].sparsity is not None
    assert recipes["dense"].tokens == recipes["sparse"].tokens == recipes["dense_matched"].tokens


def test_positions_begin_so_that_neighbours_are_told_apart() -> None:
    """The vectors' products with those of the next token are near 0, one and two back a rotation away."""
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**(binding_recipes()["dense"].model | {"vocab_size": 8, "block_size": 64})))
    evenly_spaced_positions(model)
    table = model.core.wpe.weight.detach()
    products = table @ table.T
    assert products.diagonal().min() == pytest.approx(16, abs=1e-3)
    assert products.diagonal(1).abs().max() < 0.1 and products.diagonal(2).abs().max() < 0.1
    rotation = torch.linalg.lstsq(table[:-2], table[2:]).solution
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(32), rtol=0, atol=1e-3)


def test_programs_to_train_on_have_two_to_six_variables_and_no_held_out_pair(corpus: TokenData) -> None:
    texts = list(itertools.islice(training_texts(corpus.tokenizer, random.Random(0)), 200))
    assigned = [re.findall(r"^(\w+) = (\d|set\(\)|str\(\))$", text, re.MULTILINE) for text in texts]
    assert {len(pairs) for pairs in assigned} == {2, 3, 4, 5, 6}
    assert not any(held_out(*pair) for pairs in assigned for pair in pairs)


def test_a_few_steps_are_trained_and_logged(corpus: TokenData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command leaves a model that `load` opens, with accuracies in its log; a second call finds it finished."""
    arguments = ["--out", str(tmp_path), "--data", str(corpus.directory), "--only", "dense", "--steps", "3", "--share", "0.5"]
    main(arguments)
    said = capsys.readouterr().out
    assert "binding_accuracy_value_2" in said
    bridge = load(tmp_path / "binding-dense")
    assert bridge.cfg.n_layers == 2
    rows = [json.loads(line) for line in (tmp_path / "binding-dense" / "log.jsonl").read_text().splitlines()]
    assert {"binding_accuracy_type_3", "binding_accuracy_value_3"} <= rows[-1].keys()
    main(arguments)
    assert capsys.readouterr().out == said
    with pytest.raises(UnknownNameError, match="role"):
        train_binding("narrow", corpus, tmp_path / "other")
