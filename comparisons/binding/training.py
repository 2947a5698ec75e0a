"""Training sparse and dense models that bind variables: Python with binding programs mixed in.

    python -m sparse_lens.comparisons.binding.training --out FOLDER

trains the sparse, the dense and the loss-matched model, one after the other (`--only`); repeat the command to go on after a break.
`--share 1` trains on the programs alone, `--python-first STEPS` on Python alone first: together they are the arms of the second
finding of arXiv:2301.10884 (pretraining against none, at equal steps).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from sparse_lens.comparisons.binding.drawing import ProgramDraw, training_texts
from sparse_lens.comparisons.binding.programs import KINDS, usable_names
from sparse_lens.comparisons.binding.prompts import encode_programs
from sparse_lens.comparisons.mixed_data import MixedData
from sparse_lens.data import DataConfig, TokenData, prepare_data
from sparse_lens.errors import UnknownNameError
from sparse_lens.models import CircuitGPTForCausalLM
from sparse_lens.training import TrainingConfig, TrainingResult, train
from sparse_lens.training.recipes import dense_recipe
from sparse_lens.training.sparsity import TopK

ROLES = ("sparse", "dense", "dense_matched")
STEPS = 8_000
SHARE = 0.75
_WINDOWS: dict[str, Any] = {"context": 64, "batch_size": 32, "evaluate_every": 500}
_EVALUATED = 120


def binding_recipes(steps: int = STEPS) -> dict[str, TrainingConfig]:
    """The models by role: two layers, eight heads, width 128; one weight in ten of the sparse one is nonzero.

    The sparse and the dense one differ in the sparsity of weights alone: there is no AbsTopK, which cuts what an intervention adds,
    and of the 16 channels of a head's queries would leave 4. Weights are pruned late (from 0.3 to 0.7 of the steps), when the model
    can look up. The matched one is half as wide, which gives it the sparse one's loss on Python.
    """
    dense = _with_positions(dense_recipe("binding-dense", 128, steps, learning_rate=2e-3, **_WINDOWS))
    late = TopK(density=0.1, embedding_density=0.4, anneal_start=0.3, anneal_end=0.7, anneal_exponent=3, sharkfin_floor=1 / 3)
    options = {"name": "binding-sparse", "learning_rate": 6e-3, "products": "dense", "sparsity": late}
    matched = _with_positions(dense_recipe("binding-dense-matched", 64, steps, learning_rate=3e-3, **_WINDOWS))
    return {"sparse": dense.model_copy(update=options), "dense": dense, "dense_matched": matched}


def _with_positions(config: TrainingConfig) -> TrainingConfig:
    """Positions as wide as `evenly_spaced_positions` fills, and no table of bigrams: it answers nothing."""
    fields: dict[str, Any] = {"n_head": 8, "d_head": 16, "d_pos_emb": 32}
    fields |= {"enable_bigram_table": False, "learnable_bigram_table": False}
    return config.model_copy(update={"model": config.model | fields})


@torch.no_grad()
def evenly_spaced_positions(model: CircuitGPTForCausalLM) -> None:
    """Let the position vectors begin as sines and cosines of frequencies spread evenly up to half a turn a token.

    Their products then tell a token from its neighbours, as those of random vectors or of long waves hardly do, and heads that
    look one or two tokens back, on which all look-up rests, are found early. They are learned from there.
    """
    table = model.core.wpe.weight
    half = table.shape[1] // 2
    frequency = torch.pi * (torch.arange(half, device=table.device) + 0.5) / half
    angle = torch.arange(len(table), device=table.device)[:, None] * frequency
    table[:, : 2 * half] = torch.cat([angle.sin(), angle.cos()], dim=1).to(table)


def train_binding(
    role: str, corpus: TokenData, folder: Path, *, steps: int = STEPS, share: float = SHARE, python_first: int = 0, seed: int = 0
) -> TrainingResult:
    """Train one of the `ROLES` into `folder`, or go on; raises as `sparse_lens.training.train`.

    The log holds the accuracy on binding programs beside the loss on held-out real Python. Raises `UnknownNameError` for another
    role.
    """
    if role not in ROLES:
        raise UnknownNameError("role", role, ROLES)
    config = binding_recipes(steps)[role].with_seed(seed)
    data = MixedData(corpus, training_texts, share, python_first)
    return train(config, data, folder, on_evaluation=partial(_accuracies, corpus.tokenizer), initialize=evenly_spaced_positions)


@torch.no_grad()
def _accuracies(tokenizer: Tokenizer, model: CircuitGPTForCausalLM, step: int) -> dict[str, float]:  # noqa: ARG001
    """Share of programs whose likeliest token of the whole vocabulary is right; the proper measure is `binding_report`."""
    found = {}
    for kind in KINDS:
        for n_vars in (2, 3):
            draw = ProgramDraw(usable_names(tokenizer, kind), kind, n_vars)
            prompts = encode_programs(tokenizer, draw.programs(_EVALUATED, seed=0))
            logits = model.core(prompts.tokens.to(model.device))[torch.arange(len(prompts)), prompts.position]
            found[f"binding_accuracy_{kind}_{n_vars}"] = float((logits.argmax(1).cpu() == prompts.right).double().mean())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the models that bind."""
    options = _parser().parse_args(arguments)
    data = options.data or options.out / "data"
    corpus = TokenData(data) if (data / "manifest.json").is_file() else _build(data, options.steps)
    chosen = {name: getattr(options, name) for name in ("steps", "share", "python_first", "seed")}
    for role in options.only or ROLES:
        result = train_binding(role, corpus, options.out / binding_recipes()[role].with_seed(options.seed).name, **chosen)
        last = {name: value for name, value in result.history[-1].items() if name.startswith("binding")}
        sys.stdout.write(f"{result.folder}: {result.loss:.3f} nats per token on held-out real files, {last}\n")


def _build(folder: Path, steps: int) -> TokenData:
    """The standard library and generated programs in the shipped pair's tokens, as much as the steps read."""
    tokens = steps * _WINDOWS["context"] * _WINDOWS["batch_size"]
    return prepare_data(DataConfig(total_tokens=max(tokens, 200_000), tokenizer_directory="python"), folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a sparse model that binds variables, and dense ones: assignment programs mixed into Python source.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the models' folders")
    parser.add_argument("--data", type=Path, help="corpus folder of `sparse-lens train`, built if missing (default: OUT/data)")
    parser.add_argument("--only", action="append", choices=ROLES, help="one model; repeatable; default: all three")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of 32 windows of 64 tokens")
    parser.add_argument("--share", type=float, default=SHARE, help="share of the windows that are binding programs")
    parser.add_argument("--python-first", type=int, default=0, help="steps on Python alone before programs are mixed in")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and order of the data")
    return parser


if __name__ == "__main__":
    main()
