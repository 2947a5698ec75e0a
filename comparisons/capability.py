"""What a model can do and what it takes: loss, weights that are not zero, weights that one token uses."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from sparse_lens.comparisons.cards import bits_per_byte
from sparse_lens.comparisons.pair import model_facts
from sparse_lens.errors import DataError
from sparse_lens.results import Result, exact, scaled

_BATCH = 16


def capability(
    bridge: Any, windows: Int[np.ndarray, "window pos"], tokenizer: Tokenizer | None = None, *, active_windows: int = 16
) -> dict[str, Result]:
    """Pretraining loss on `windows` of real files (nats per token), parameters, nonzeros, and active weights per token.

    With the `tokenizer` also bits per byte. `active_parameters` counts, for one token, the nonzero weights of matrices that meet a
    nonzero input: of a dense model all of them, of one with sparse activations fewer (the mean over `active_windows` windows; one
    row of the embedding, and of a table of bigrams, per token; attention's products between positions have no weights).
    """
    found = model_facts(bridge, windows)
    found["active_parameters"] = active_parameters(bridge, windows[:active_windows, :-1])
    if tokenizer is not None:
        found["bits_per_byte"] = scaled(found["loss"], bits_per_byte(1.0, windows, tokenizer))
    return found


@torch.no_grad()
def active_parameters(bridge: Any, tokens: Int[np.ndarray, "window pos"]) -> Result:
    """Nonzero weights of matrices that meet a nonzero input, per token; raises `DataError` without tokens."""
    if tokens.size == 0:
        raise DataError("no tokens to count active weights on")
    counts: list[float] = []

    def count(weight: Tensor) -> Any:
        by_input = (weight != 0).sum(0).double()

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001 - the signature of a hook
            counts.append(float(((inputs[0] != 0).double() @ by_input).sum()))

        return hook

    def count_rows(weight: Tensor) -> Any:
        by_row = (weight != 0).sum(1).double()

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            counts.append(float(by_row[inputs[0]].sum()))

        return hook

    with ExitStack() as stack:
        for module in _leaves(bridge):
            hook = count(module.weight) if isinstance(module, nn.Linear) else count_rows(module.weight)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        for start in range(0, len(tokens), _BATCH):
            bridge(torch.from_numpy(tokens[start : start + _BATCH].astype(np.int64)))
    return exact(sum(counts) / tokens.size, n=tokens.size)


def _leaves(bridge: Any) -> list[Any]:
    """The model's own linear maps and tables, each once."""
    return list({id(m): m for m in bridge.original_model.modules() if isinstance(m, (nn.Linear, nn.Embedding))}.values())
