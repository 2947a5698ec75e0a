"""Exhaustive activation patching against `transformer_lens.patching`, on the shipped model and on GPT-2's shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import patching as original
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from sparse_lens.benchmarks.timing import Row, row
from sparse_lens.comparisons.head_patching import pairs_of_one_layout
from sparse_lens.errors import SparseLensError
from sparse_lens.hooks import load, patching
from sparse_lens.tasks import get_task

_TASK, _PAIRS = "single_double_quote", (1, 16)
_GPT2_TOKENS = 8
_BOUND = 5
_EVERY = ("get_act_patch_block_every", "get_act_patch_attn_head_all_pos_every", "get_act_patch_attn_head_by_pos_every")
_GPT2 = (*_EVERY[:2], "get_act_patch_attn_head_out_by_pos")  # TransformerLens takes ten minutes for all five kinds by position


@dataclass(frozen=True, eq=False)
class _Case:
    """Prompts for a bridge, and the metric: the difference of two logits at the last position, averaged over prompts."""

    name: str
    bridge: Any
    clean: Tensor
    corrupt: Tensor
    target: Tensor
    distractor: Tensor

    def metric(self, logits: Tensor) -> Tensor:
        final, rows = logits[:, -1], torch.arange(len(self.target))
        return (final[rows, self.target] - final[rows, self.distractor]).mean()


def patching_rows(*, gpt2: bool = True) -> list[Row]:
    """All rows; some ten minutes on one core, most of them TransformerLens' loops over GPT-2's shape.

    Raises `SparseLensError` if a table differs from TransformerLens' by more than 1e-5.
    """
    cases: list[tuple[_Case, Sequence[str]]] = [(_shipped(n_pairs), _EVERY) for n_pairs in _PAIRS]
    if gpt2:
        cases += [(_gpt2(one_token=one_token), _GPT2) for one_token in (True, False)]
    return [_compared(case, name) for case, names in cases for name in tqdm(names, desc=case.name, leave=False)]


def _compared(case: _Case, name: str) -> Row:
    with torch.no_grad(), _without_bars():
        _, cache = case.bridge.run_with_cache(case.clean)
        arguments = (case.bridge, case.corrupt, cache, case.metric)
        getattr(patching, name)(*arguments, progress=False)
        ours, found = _timed(lambda: getattr(patching, name)(*arguments, progress=False))
        theirs, expected = _timed(lambda: getattr(original, name)(*arguments))
    difference = float((found - expected).abs().max())
    if not difference <= 1e-5 * max(1.0, float(expected.abs().max())):
        raise SparseLensError(f"{name} on {case.name} differs from TransformerLens' table by {difference:.2g}; please report it")
    what = f"{name.removeprefix('get_act_patch_')}, {case.name}, {found.numel()} patches"
    compared = f"transformer_lens.patching {theirs:.2f} s (bound {_BOUND} x faster)"
    return row(what, f"{ours:.2f} s", compared, theirs / ours)


def _timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of one call and its result: the loop takes too long to be called more than once."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def _shipped(n_pairs: int) -> _Case:
    """Prompts of a task for the small sparse model that comes with the package."""
    bridge: Any = load("python-sparse")
    batch = pairs_of_one_layout(get_task(_TASK), bridge.tokenizer, n_pairs, seed=0)
    clean, corrupt, target, distractor = map(torch.from_numpy, (batch.clean, batch.corrupt, batch.target, batch.distractor))
    return _Case(f"python-sparse, {len(clean)} x {clean.shape[1]}", bridge, clean, corrupt, target, distractor)


def _gpt2(*, one_token: bool) -> _Case:
    """GPT-2 small's shape with random weights; clean and corrupt prompts differ in their fourth token, or in all."""
    generator = torch.Generator().manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    bridge = build_bridge_from_module(
        model, "GPT2LMHeadModel", hf_config=model.config, tokenizer=None, device="cpu", model_name="gpt2-shaped"
    )
    clean, other = torch.randint(50_000, (2, 1, _GPT2_TOKENS), generator=generator)
    corrupt = other.clone()
    if one_token:
        corrupt = clean.clone()
        corrupt[:, 3] = other[:, 3]
    how = "one token differs" if one_token else "all tokens differ"
    name = f"GPT-2 small's shape, 1 x {_GPT2_TOKENS}, {how}"
    return _Case(name, bridge, clean, corrupt, torch.tensor([100]), torch.tensor([200]))


@contextmanager
def _without_bars() -> Iterator[None]:
    """TransformerLens' loops without a progress bar each, which cannot be switched off."""
    module: Any = original
    before = module.tqdm
    module.tqdm = lambda rows, **_: rows
    try:
        yield
    finally:
        module.tqdm = before
