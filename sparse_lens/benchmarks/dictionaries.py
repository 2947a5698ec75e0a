"""How fast transcoders train, against SAELens' trainer of an SAE of equal shape."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_lens.benchmarks.timing import Row, row
from sparse_lens.dictionaries import (
    HookPairs,
    SAETrainingConfig,
    TranscoderTrainingConfig,
    train_sae_on,
    train_transcoder_on,
)
from sparse_lens.hooks import load
from sparse_lens.models_shipped import pair_windows

_MODEL, _HOOKS = "python-dense", ("blocks.1.mlp.hook_act_in", "blocks.1.hook_mlp_out")
_BOUND = 0.9
_REPEATS = 3
_SIZES: dict[str, int] = {"d_sae": 1024, "k": 16, "batch_size": 2048, "buffer_tokens": 16_384, "dead_window": 20_000}
_TOKENS, _HELD_OUT = 98_304, 2048


def transcoder_rows() -> list[Row]:
    """Tokens a second of both trainings on the same kept activations; about two minutes on one core.

    The shape is equal: 256 channels read, 1024 latents, 256 channels written. The scale is estimated, dead latents are revived,
    thresholds fitted and folders written in both.
    """
    pairs = _pairs()
    outputs = [target for _, target in pairs]
    held_out = [(pairs[0][0][:_HELD_OUT], pairs[0][1][:_HELD_OUT])]
    sizes: dict[str, Any] = {**_SIZES, "tokens": _TOKENS}

    def transcoder(skip: bool) -> Callable[[Path], Any]:
        config = TranscoderTrainingConfig(skip=skip, **sizes)
        return lambda folder: train_transcoder_on(pairs, held_out, config, folder, hooks=_HOOKS, progress=False)

    def sae(architecture: Any) -> Callable[[Path], Any]:
        config = SAETrainingConfig(architecture=architecture, **sizes)
        measured = [target for _, target in held_out]
        return lambda folder: train_sae_on(outputs, measured, config, folder, hook=_HOOKS[1], progress=False)

    trainings = {
        "transcoder": transcoder(skip=False),
        "skip transcoder": transcoder(skip=True),
        "topk": sae("topk"),
        "batchtopk": sae("batchtopk"),
    }
    speed = {name: _TOKENS / seconds for name, seconds in _in_turns(trainings).items()}
    return [
        row(
            f"{name} {_SIZES['d_sae']} of 256 channels",
            f"{speed[name]:,.0f} tokens/s",
            f"SAELens' {other} SAE {speed[other]:,.0f} tokens/s (bound {_BOUND} x)",
            speed[name] / speed[other],
        )
        for name in ("transcoder", "skip transcoder")
        for other in ("topk", "batchtopk")
    ]


def _pairs() -> list[tuple[Tensor, Tensor]]:
    """Activations at both hooks of the pair's reference windows, several times over."""
    windows = torch.from_numpy(pair_windows()["reference"])
    found = list(HookPairs(load(_MODEL), *_HOOKS, windows.split(16)))
    rounds = -(-(2 * _TOKENS) // windows.numel())
    return found * rounds


def _in_turns(trainings: dict[str, Callable[[Path], Any]]) -> dict[str, float]:
    """Least seconds of each, run in turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in trainings}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(_REPEATS):
            for name, train in trainings.items():
                started = time.perf_counter()
                train(Path(folder) / f"{name.replace(' ', '-')}-{repeat}")
                times[name].append(time.perf_counter() - started)
    return {name: min(seconds) for name, seconds in times.items()}
