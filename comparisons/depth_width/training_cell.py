"""One run of the grid, as a job: trained into its folder, counted and measured."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sparse_lens.data import TokenData
from sparse_lens.errors import DivergedError
from sparse_lens.hooks import load
from sparse_lens.models import CircuitGPTForCausalLM
from sparse_lens.training import TrainingConfig, train


def train_cell(data: str, folder: str, config: Mapping[str, Any], measures: Mapping[str, str]) -> dict[str, Any]:
    """Train a recipe on the token data in a folder; its name, loss, counts, seconds, and what each measure gives for the bridge.

    `measures` are addresses `package.module:name` of functions from a bridge to a `Result`. Begun anew, it goes on where it was. A
    run whose loss ceases to be finite has a loss of None and nothing else: that is what its learning rate does.
    """
    recipe = TrainingConfig(**config)
    tokens: Any = TokenData(Path(data))  # to a type checker its cached properties do not match the protocol's
    try:
        result = train(recipe, tokens, Path(folder) / recipe.name, progress=False)
    except DivergedError:
        return {"name": recipe.name, "loss": None}
    found = {name: _function(address)(load(result.folder)) for name, address in measures.items()}
    return {
        "name": recipe.name,
        "loss": result.loss,
        "seconds": result.history[-1].get("seconds"),
        "measures": found,
    } | count_parameters(result.model)


def count_parameters(model: CircuitGPTForCausalLM) -> dict[str, int]:
    """Entries and nonzeros of the blocks' matrices; parameters of the embeddings; and of everything."""
    matrices = [layer.weight for block in model.core.blocks for layer in block.modules() if isinstance(layer, nn.Linear)]
    total = sum(parameter.numel() for parameter in model.parameters())
    embeddings = {id(table.weight): table.weight.numel() for table in (model.core.wte, model.core.wpe, model.core.lm_head)}
    return {
        "core": sum(matrix.numel() for matrix in matrices),
        "nonzeros": sum(int(matrix.count_nonzero()) for matrix in matrices),
        "embeddings": sum(embeddings.values()),
        "total": total,
    }


def _function(address: str) -> Any:
    module, name = address.split(":")
    return getattr(importlib.import_module(module), name)
