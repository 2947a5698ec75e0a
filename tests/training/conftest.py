"""A corpus of a few dozen small files, prepared once for all training tests."""

from __future__ import annotations

import random

import pytest

from sparse_lens.data import DataConfig, SourceFolder, TokenData, generate_program, prepare_data
from sparse_lens.training import TopK, TrainingConfig, TrainingResult, train


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    """Token data from a small folder of .py files, an eighth of the training tokens generated."""
    source = tmp_path_factory.mktemp("source")
    for number in range(60):
        (source / f"module_{number}.py").write_text(generate_program(random.Random(number)))
    config = DataConfig(
        sources=(SourceFolder(str(source)),),
        generated_share=0.125,
        vocab_size=600,
        valid_share=0.2,
        valid_generated_tokens=500,
        tokenizer_mb=0.1,
    )
    return prepare_data(config, tmp_path_factory.mktemp("corpus") / "data")


SHAPE = {"n_layer": 2, "n_head": 2, "d_model": 16, "d_head": 8, "rms_norm": True, "tied_unembed": False, "sink": True}


@pytest.fixture(scope="session")
def tiny() -> TrainingConfig:
    """Thirty sparse steps, a checkpoint after every ten."""
    return TrainingConfig(
        name="tiny",
        model=SHAPE | {"afrac": 0.5, "enable_bigram_table": True, "learnable_bigram_table": True},
        steps=30,
        batch_size=4,
        context=16,
        learning_rate=1e-2,
        precision="float32",
        warmup=0.1,
        sparsity=TopK(density=0.2, embedding_density=0.4, min_alive=2),
        checkpoint_every=10,
        evaluate_every=10,
        evaluation_windows=8,
    )


@pytest.fixture(scope="session")
def finished(tiny: TrainingConfig, data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """An uninterrupted run of it."""
    return train(tiny, data, tmp_path_factory.mktemp("run") / "tiny", progress=False)
