"""`check_model`: what a checkpoint holds, and whether its bridge is the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparse_lens.hooks.loading import find_model, model_name, wrap
from sparse_lens.hooks.sparsity import SparsityReport, sparsity_report
from sparse_lens.models import load_checkpoint, read_tokenizer

_DEAD_SHARE = 0.5
SELF_TEST_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ModelCheck:
    """The findings on one model; `problems` is empty for a sound one.

    `parameters` counts trained weights, the bigram table included and the logit bias (a buffer in the reference) left out;
    `largest_difference` is between logits of core and bridge on random tokens, relative where they exceed 1.
    """

    name: str
    config: dict[str, Any]
    parameters: int
    nonzeros: int
    densities: dict[str, float]
    dead_neurons: tuple[int, ...]
    dead_heads: tuple[int, ...]
    edges: dict[str, int]
    hook_points: list[str]
    largest_difference: float
    problems: list[str]

    def to_plain(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return dict(self.__dict__)


@torch.no_grad()
def check_model(name_or_path: str | Path) -> ModelCheck:
    """Load a model, compare bridge and core on random tokens, measure every matrix, look for dead parts.

    Raises the errors of `load` for what cannot be loaded at all.
    """
    folder = find_model(name_or_path)
    model = load_checkpoint(folder)
    config = model.config
    weights = {name: weight for name, weight in model.core.named_parameters() if name != "lm_head.bias"}
    parameters, nonzeros = sum(w.numel() for w in weights.values()), sum(int(w.count_nonzero()) for w in weights.values())
    tokens = torch.randint(config.vocab_size, (4, min(config.block_size, 64)), generator=torch.Generator().manual_seed(1))
    expected = model.core(tokens)
    tokenizer = read_tokenizer(folder, config.vocab_size)
    bridge = wrap(model, tokenizer=tokenizer, name=model_name(name_or_path, folder))
    difference = float((bridge(tokens) - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    report = sparsity_report(bridge)
    problems = _problems(report)
    if not difference <= SELF_TEST_TOLERANCE:
        problems.append(f"bridge and core differ by {difference:.2g}, more than {SELF_TEST_TOLERANCE:g}; please report it")
    if tokenizer is None:
        problems.append("no tokenizer in the folder: tasks and text prompts need one, token ids work without")
    return ModelCheck(
        name=str(name_or_path),
        config={name: value for name, value in config.to_diff_dict().items() if not isinstance(value, dict)},
        parameters=parameters,
        nonzeros=nonzeros,
        densities={matrix.name: matrix.density for matrix in report.matrices},
        dead_neurons=report.dead_neurons,
        dead_heads=report.dead_heads,
        edges=report.edges,
        hook_points=sorted(bridge.hook_dict),
        largest_difference=difference,
        problems=problems,
    )


def _problems(report: SparsityReport) -> list[str]:
    problems = []
    for matrix in report.matrices:
        empty = matrix.empty_outputs / matrix.outputs
        if matrix.nonzeros == 0 and matrix.name != "pos_embed":  # zeros stand for a model without positions
            problems.append(f"{matrix.name} is all zeros")
        elif matrix.nonzeros and empty > _DEAD_SHARE:
            problems.append(f"{empty:.0%} of the outputs of {matrix.name} read nothing: those channels never act")
    return problems
