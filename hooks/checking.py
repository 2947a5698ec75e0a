"""`check_model`: what a checkpoint holds, and whether its bridge is the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparse_lens.hooks.loading import find_model, wrap
from sparse_lens.models import load_checkpoint, read_tokenizer

_DEAD_SHARE = 0.5


@dataclass(frozen=True)
class ModelCheck:
    """The findings on one model; `problems` is empty for a sound one."""

    name: str
    config: dict[str, Any]
    densities: dict[str, float]
    hook_points: list[str]
    largest_difference: float
    problems: list[str]

    def to_plain(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return dict(self.__dict__)


def check_model(name_or_path: str | Path) -> ModelCheck:
    """Load a model, compare bridge and core on random tokens, measure the density of every matrix, look for dead parts.

    Raises the errors of `load` for what cannot be loaded at all; `largest_difference` is between logits of core and bridge.
    """
    folder = find_model(name_or_path)
    model = load_checkpoint(folder)
    config = model.config
    weights = {name: weight.detach() for name, weight in model.core.named_parameters() if weight.ndim == 2}
    densities = {name: float((weight != 0).float().mean()) for name, weight in weights.items()}
    tokens = torch.randint(config.vocab_size, (4, min(config.block_size, 64)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.core(tokens)
        tokenizer = read_tokenizer(folder, config.vocab_size)
        bridge = wrap(model, tokenizer=tokenizer, name=folder.name)
        difference = float((bridge(tokens) - expected).abs().max())
    problems = _problems(densities, weights)
    if tokenizer is None:
        problems.append("no tokenizer.json: tasks and text prompts need one, token ids work without")
    fields = {name: value for name, value in config.to_diff_dict().items() if not isinstance(value, dict)}
    return ModelCheck(str(name_or_path), fields, densities, sorted(bridge.hook_dict), difference, problems)


def _problems(densities: dict[str, float], weights: dict[str, torch.Tensor]) -> list[str]:
    problems = [f"{name} is all zeros" for name, density in densities.items() if density == 0]
    for name, weight in weights.items():
        dead = float((weight == 0).all(1).float().mean())
        if densities[name] > 0 and dead > _DEAD_SHARE and not name.startswith(("wte", "wpe")):
            problems.append(f"{dead:.0%} of the rows of {name} are all zeros: those channels never act")
    return problems
