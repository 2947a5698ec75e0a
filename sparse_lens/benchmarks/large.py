"""A random-weight checkpoint of csp_yolo2's shape (419 million weights, 1.7 GB), and what loading it costs a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from sparse_lens.errors import SparseLensError
from sparse_lens.models import PAPER_SITES, CircuitGPTConfig, CircuitGPTForCausalLM, save_reference

LARGE_SHAPE = {
    "n_layer": 8,
    "d_model": 2048,
    "n_head": 128,
    "d_head": 16,
    "d_mlp": 8192,
    "vocab_size": 2048,
    "block_size": 1024,
    "d_pos_emb": 32,
    "rms_norm": True,
    "tied_unembed": False,
    "enable_bigram_table": True,
    "learnable_bigram_table": True,
    "sink": True,
    "afrac": 0.25,
    "afrac_loctypes": ",".join(PAPER_SITES),
}
"""The shape of csp_yolo2 (openai/circuit_sparsity), 419,122,688 trained weights."""


def large_model() -> CircuitGPTForCausalLM:
    """A model of that shape with random weights, in evaluation mode."""
    with torch.device("meta"):
        model = CircuitGPTForCausalLM(CircuitGPTConfig(**LARGE_SHAPE))
    model = model.to_empty(device="cpu")
    model.core.initialize(torch.Generator().manual_seed(0))
    return model.eval()


def write_large_checkpoint(folder: Path) -> Path:
    """Write the model in the reference's format; returns the weights file."""
    save_reference(large_model(), folder)
    return folder / "final_model.pt"


def drop_from_memory(path: Path) -> None:
    """Let the operating system forget the file's pages, so that the next reader finds it on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class LoadCost:
    """Seconds, and gigabytes over the interpreter that had imported everything: at the peak, and after it all."""

    seconds: float
    peak: float
    after: float


def cost_of_loading(folder: Path) -> LoadCost:
    """What `load` costs a fresh process."""
    return cost_of(f"from sparse_lens.hooks import load\nmodel = lambda: load({str(folder)!r})")


def cost_of_reading(path: Path) -> LoadCost:
    """What it costs a fresh process to map the weights with torch and touch every one of them."""
    return cost_of(
        "import torch, sparse_lens.hooks\ndef model():\n"
        f"    state = torch.load({str(path)!r}, mmap=True, weights_only=True)\n"
        "    return state, [tensor.sum() for tensor in state.values()]"
    )


_MEASURE = """
import json, time
def memory():
    lines = open("/proc/self/status").read().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(("VmHWM", "VmRSS"))}
    return found["VmHWM"], found["VmRSS"]
before = memory()
started = time.perf_counter()
kept = model()
seconds = time.perf_counter() - started
after = memory()
print(json.dumps([seconds, after[0] - before[1], after[1] - before[1]]))
"""


def cost_of(setup: str) -> LoadCost:
    """What it costs a fresh process to call `model`, a function that the lines of `setup` define."""
    if sys.platform != "linux":
        raise SparseLensError("the memory of loading is read from /proc, which this system does not have; run it on Linux")
    run = subprocess.run([sys.executable, "-c", setup + _MEASURE], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SparseLensError(f"measuring the load failed: {run.stderr.strip().splitlines()[-1:]}")
    return LoadCost(*json.loads(run.stdout.strip().splitlines()[-1]))
