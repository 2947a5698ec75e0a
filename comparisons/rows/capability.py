"""What a model can do and what it takes: loss, weights that are not zero, weights that one token uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from sparse_lens.comparisons.pair import model_facts
from sparse_lens.comparisons.shipped.cards import bits_per_byte
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import DataError
from sparse_lens.results import Result, exact, not_measurable, scaled

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
    """Nonzero weights of matrices that meet a nonzero input, per token.

    Not measurable for a model with weights in modules whose use is not known. Raises `DataError` without tokens.
    """
    if tokens.size == 0:
        raise DataError("no tokens to count active weights on")
    leaves = _leaves(bridge)
    counted = {id(module.weight) for module in leaves}
    for name, weight in bridge.original_model.named_parameters():
        if weight.ndim > 1 and id(weight) not in counted:
            return not_measurable(f"{name} is no weight of a linear map or a table: what a token uses of it is not known")
    counts: list[float] = []
    with ExitStack() as stack:
        for module in leaves:
            stack.callback(module.register_forward_pre_hook(_counter(module, counts)).remove)
        for start in range(0, len(tokens), _BATCH):
            batch = torch.from_numpy(tokens[start : start + _BATCH].astype(np.int64))
            before = len(counts)
            bridge(batch)
            counts[before:] = [sum(counts[before:]) * batch.numel()]
    return exact(sum(counts) / tokens.size, n=tokens.size)


def dictionary_numbers(dictionaries: Iterable[Dictionary]) -> Result:
    """Nonzero entries of all tensors of the dictionaries: what they add to a model's nonzeros.

    Not measurable for one that does not show its tensors as `weights`.
    """
    total = 0
    for dictionary in dictionaries:
        weights: Mapping[str, Tensor] | None = getattr(dictionary, "weights", None)
        if weights is None:
            return not_measurable(f"{dictionary.name} has no mapping `weights` of its tensors to count")
        total += sum(int((tensor != 0).sum()) for tensor in weights.values())
    return exact(total)


def _counter(module: Any, counts: list[float]) -> Any:
    """A hook that notes the nonzero weights that an input meets, on average over its rows: every row is one token's, or all's."""
    nonzero = module.weight != 0
    is_table = isinstance(module, nn.Embedding)
    # Weights are [out, in] in a linear map, [in, out] in GPT-2's, [row, channel] in a table.
    by_input = nonzero.sum(0 if isinstance(module, nn.Linear) else 1).double()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001 - the signature of a hook
        x = inputs[0]
        per_row = by_input[x] if is_table else (x != 0).double() @ by_input
        counts.append(float(per_row.mean()))

    return hook


def _leaves(bridge: Any) -> list[Any]:
    """The model's own linear maps and tables, each once."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Embedding, Conv1D)
    return list({id(m): m for m in bridge.original_model.modules() if isinstance(m, kinds)}.values())
