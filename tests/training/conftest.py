"""A corpus of a few dozen small files, prepared once for all training tests."""

from __future__ import annotations

import random

import pytest

from sparse_lens.data import DataConfig, SourceFolder, TokenData, generate_program, prepare_data


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
