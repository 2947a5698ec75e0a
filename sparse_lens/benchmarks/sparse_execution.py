"""Sparse execution against the dense forward pass: at csp_yolo2's shape with random weights, and in the shipped model.

All timings of one model are taken in turn, in one process, and the least of each counts. Dense and sparse logits are compared by
the tests, on small models: in fp32 some of 16,000 AbsTopK choices of this size lie within rounding of a tie, and the swap of two
channels spreads, in a dense forward pass as in a sparse one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import cast

import torch

from sparse_lens.benchmarks.large import cost_of, large_model
from sparse_lens.benchmarks.timing import Row, row
from sparse_lens.hooks import load
from sparse_lens.models import CircuitGPTForCausalLM, dense_execution, load_sparse, save_packed, weight_bytes
from sparse_lens.models.sparse_execution import sparse_execution

_DENSITIES = {64: 4, 1000: 10}
"""One weight in so many, and how many times as fast as the dense forward pass sparse execution has to be."""

_TOKENS = 256
_ROUNDS = 5


def sparse_execution_rows() -> list[Row]:
    """Forward passes over 256 tokens, and the peak memory of processes of their own over what their imports take (Linux).

    Needs 3 GB of memory. Beside the dense forward pass stands one with the attention of sparse execution and dense products.
    """
    rows = [measured for every, bound in _DENSITIES.items() for measured in _large_rows(every, bound)]
    return [*rows, *_shipped_rows()]


@torch.no_grad()
def _large_rows(every: int, bound: int) -> list[Row]:
    name = f"419 M weights, 1 in {every} nonzero, fp32"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = large_model()
        _thin(model, 1 / every)
        save_packed(model, folder)
        sparse = load_sparse(folder)
        held = weight_bytes(sparse) / 1e6, weight_bytes(model) / 1e6
        dense, fused, fast = _in_turn(model, sparse)
        del model, sparse
        peaks = [cost_of(_RUN.format(loader=loader, folder=str(folder))).peak for loader in ("load_checkpoint", "load_sparse")]
    return [
        row(f"{name}, {_TOKENS} tokens", f"{fast:.2f} s", f"dense {dense:.2f} s, bound {bound}x", dense / fast),
        row(f"{name}, {_TOKENS} tokens", f"{fast:.2f} s", f"dense, without attention patterns too, {fused:.2f} s", fused / fast),
        row(f"{name}, weights held", f"{held[0]:.1f} MB", f"dense {held[1]:.0f} MB", held[1] / held[0]),
        row(f"{name}, peak of load and forward", f"{peaks[1]:.2f} GB", f"dense {peaks[0]:.2f} GB", peaks[0] / peaks[1]),
    ]


def _shipped_rows() -> list[Row]:
    bridges = (load("python-sparse", execution=execution) for execution in ("dense", "sparse"))
    dense, sparse = (cast(CircuitGPTForCausalLM, bridge.original_model) for bridge in bridges)
    times = _in_turn(dense, sparse, shape=(2, _TOKENS // 2))
    held = weight_bytes(sparse) / 1e6, weight_bytes(dense) / 1e6
    name = "python-sparse (5 %, embeddings 20 %)"
    return [
        row(f"{name}, {_TOKENS} tokens", f"{times[2] * 1e3:.1f} ms", f"dense {times[0] * 1e3:.1f} ms", times[0] / times[2]),
        row(f"{name}, weights held", f"{held[0]:.1f} MB", f"dense {held[1]:.1f} MB", held[1] / held[0]),
    ]


_RUN = """
import torch, sparse_lens.models as models
@torch.no_grad()
def model():
    loaded = models.{loader}({folder!r})
    return loaded, loaded.core(torch.arange(256)[None])
"""


@torch.no_grad()
def _thin(model: CircuitGPTForCausalLM, density: float) -> None:
    """Zero all but a random share of every matrix, the positions' left out."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.core.named_parameters():
        if parameter.ndim == 2 and name != "wpe.weight":
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)


@torch.no_grad()
def _in_turn(dense: CircuitGPTForCausalLM, sparse: CircuitGPTForCausalLM, *, shape: tuple[int, int] = (1, _TOKENS)) -> list[float]:
    """Least seconds of a forward pass: dense, dense with the attention of sparse execution, and sparse."""
    tokens = torch.randint(dense.config.vocab_size, shape, generator=torch.Generator().manual_seed(2))
    least = [float("inf")] * 3
    for model in (dense, sparse):
        model.core(tokens)
    for _ in range(_ROUNDS):
        times = [_seconds(dense, tokens)]
        sparse_execution(dense, most=0)  # no matrix is sparse enough for that
        times.append(_seconds(dense, tokens))
        dense_execution(dense)
        times.append(min(_seconds(sparse, tokens) for _ in range(3)))
        least = [min(pair) for pair in zip(least, times, strict=True)]
    return least


def _seconds(model: CircuitGPTForCausalLM, tokens: torch.Tensor) -> float:
    started = time.perf_counter()
    model.core(tokens)
    return time.perf_counter() - started
