import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sparse_lens.data import (
    DataConfig,
    SourceFolder,
    TokenData,
    generate_program,
    prepare_data,
    train_tokenizer,
)


@pytest.fixture(scope="session")
def programs() -> list[str]:
    return [generate_program(random.Random(seed)) for seed in range(300)]


@pytest.fixture(scope="session")
def tokenizer(programs: list[str]) -> Tokenizer:
    return train_tokenizer(programs, vocab_size=700)


@pytest.fixture(scope="session")
def source_folder(programs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of 40 modules, with tests and files that the filter refuses."""
    root = tmp_path_factory.mktemp("sources") / "package"
    (root / "tests").mkdir(parents=True)
    for index in range(40):
        (root / f"module_{index}.py").write_text(programs[index], encoding="utf-8")
    (root / "tests" / "left_out.py").write_text(programs[100], encoding="utf-8")
    (root / "copy.py").write_text(programs[0], encoding="utf-8")
    (root / "short.py").write_text("x = 1\n", encoding="utf-8")
    (root / "long_line.py").write_text(f"x = '{'a' * 3000}'\n", encoding="utf-8")
    (root / "latin.py").write_bytes(b"# caf\xe9\n" * 100)
    return root


@pytest.fixture(scope="session")
def data_config(source_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return DataConfig(
        sources=(SourceFolder(str(source_folder)),),
        generated_share=0.4,
        valid_share=0.2,
        valid_generated_tokens=2000,
        tokenizer_directory=str(folder),
    )


@pytest.fixture(scope="session")
def token_data(data_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return prepare_data(data_config, tmp_path_factory.mktemp("data") / "corpus")
