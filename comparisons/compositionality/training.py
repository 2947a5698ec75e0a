"""The two arms of the second finding of arXiv:2301.10884, trained: two subroutines alone, or Python first and then the subroutines.

Both read the same number of tokens, in equally many steps of one recipe, from the same initial weights.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sparse_lens.comparisons.compositionality.shared_prompts import subroutine_texts
from sparse_lens.comparisons.mixed_data import MixedData
from sparse_lens.data import TokenData
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.training import TrainingConfig, TrainingResult, train

ARMS = ("pretrained", "alone")
SUBROUTINES = ("quote", "bracket")


def quotes_and_brackets(tokenizer: Tokenizer, rng: random.Random) -> Iterator[str]:  # noqa: ARG001 - as `MixedData` calls it
    """Programs of the two `SUBROUTINES` without end."""
    return subroutine_texts(SUBROUTINES, rng)


def train_arm(
    arm: str, recipe: TrainingConfig, corpus: TokenData, folder: Path, *, python_first: int, **how: Any
) -> TrainingResult:
    """Train one of the `ARMS` by a recipe into `folder`, or go on; `how` is that of `sparse_lens.training.train`.

    The pretrained arm reads the corpus for `python_first` steps and the programs from then on, the other the programs from the
    beginning. Raises `UnknownNameError` for another arm, `ConfigError` for a first part that is none or all, and what `train`
    raises.
    """
    if arm not in ARMS:
        raise UnknownNameError("arm", arm, ARMS)
    if not 0 < python_first < recipe.steps:
        raise ConfigError(
            f"Python comes first for some of the {recipe.steps} steps, got {python_first}; give 1 to {recipe.steps - 1}"
        )
    data: Any = MixedData(corpus, quotes_and_brackets, 1.0, python_first if arm == "pretrained" else 0)
    return train(recipe, data, folder, **how)
