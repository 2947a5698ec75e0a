import random

import pytest
from tokenizers import Tokenizer

from sparse_lens.data import generate_program, train_tokenizer


@pytest.fixture(scope="session")
def programs() -> list[str]:
    return [generate_program(random.Random(seed)) for seed in range(300)]


@pytest.fixture(scope="session")
def tokenizer(programs: list[str]) -> Tokenizer:
    return train_tokenizer(programs, vocab_size=900)
