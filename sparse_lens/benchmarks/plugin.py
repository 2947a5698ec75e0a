"""What the plug-in costs: bridge and cache against the bare model, the core against plain `torch.topk`, generation, loading."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_lens.benchmarks.large import (
    cost_of_loading,
    cost_of_reading,
    drop_from_memory,
    large_model,
    write_large_checkpoint,
)
from sparse_lens.benchmarks.timing import Row, fastest, row
from sparse_lens.hooks import load, wrap
from sparse_lens.hooks.loading import find_model
from sparse_lens.models import AbsTopK, CircuitGPTCore, load_checkpoint

_SMALL, _TOKENS, _NEW = "python-sparse", 256, 256


@torch.no_grad()
def plugin_rows() -> list[Row]:
    """All rows; takes some minutes and 4 GB of memory, writes 1.7 GB to a temporary folder."""
    small = load_checkpoint(find_model(_SMALL)).core
    rows = _overhead("the small shipped model, 16 x 128", small, load(_SMALL), torch.randint(1000, (16, 128)), (1.25, 1.5), 7)
    model = large_model()
    tokens = torch.randint(2048, (1, _TOKENS))
    rows += _against_plain_topk(model.core, tokens, "float32", 1.3)
    bare = fastest(lambda: model.core(tokens), repeats=3)
    rows += _overhead(f"the 419 M shape, {_TOKENS} tokens", bare, wrap(model, name="large"), tokens, (1.10, 1.3), 3)
    rows += _generation(wrap(large_model(), name="large"))
    rows += _against_plain_topk(large_model().to(torch.bfloat16).core, tokens, "bfloat16", 1.5)  # pyright: ignore[reportArgumentType]
    return rows + _loading()


def _overhead(
    what: str, bare: CircuitGPTCore | float, bridge: Any, tokens: Tensor, bounds: tuple[float, float], repeats: int
) -> list[Row]:
    alone = fastest(lambda: bare(tokens), repeats=repeats) if isinstance(bare, CircuitGPTCore) else bare
    rows = []
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("forward through the bridge", lambda: bridge(tokens)),
        ("run_with_cache of everything", lambda: bridge.run_with_cache(tokens)),
    ]
    for (name, step), bound in zip(steps, bounds, strict=True):
        seconds = fastest(step, repeats=repeats)
        compared = f"bare model {alone * 1e3:.0f} ms (bound {bound:.2f} x)"
        rows.append(row(f"{name}, {what}", f"{seconds * 1e3:.0f} ms, {seconds / alone:.2f} x", compared, bound * alone / seconds))
    return rows


def _against_plain_topk(core: CircuitGPTCore, tokens: Tensor, dtype: str, bound: float) -> list[Row]:
    ours = fastest(lambda: core(tokens), repeats=3)
    with _plain_topk(core):
        plain = fastest(lambda: core(tokens), repeats=3)
    compared = f"torch.topk + scatter {plain * 1e3:.0f} ms (bound {bound:.1f} x faster)"
    return [row(f"core, the 419 M shape, {_TOKENS} tokens, {dtype}", f"{ours * 1e3:.0f} ms", compared, plain / ours)]


@contextmanager
def _plain_topk(core: CircuitGPTCore) -> Iterator[None]:
    """The core with every AbsTopK written as one would write it first."""
    modules = [module for module in core.modules() if isinstance(module, AbsTopK) and module.k is not None]

    def plain(module: AbsTopK) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            kept = x.abs().topk(module.k or 0, dim=-1).indices
            return torch.zeros_like(x).scatter_(-1, kept, x.gather(-1, kept))

        return forward

    try:
        for module in modules:
            module.forward = plain(module)  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for module in modules:
            del module.forward


def _generation(bridge: Any) -> list[Row]:
    prompt = torch.randint(2048, (1, 8))
    options = {"max_new_tokens": _NEW, "do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
    cached, uncached = (
        fastest(lambda c=c: bridge.generate(prompt, use_past_kv_cache=c, **options), repeats=1, warm_up=False)
        for c in (True, False)
    )
    compared = f"without a cache {uncached:.1f} s (bound 5 x faster)"
    return [row(f"generation of {_NEW} tokens, the 419 M shape", f"{cached:.1f} s", compared, uncached / cached)]


def _loading() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_large_checkpoint(Path(folder) / "large")
        size = path.stat().st_size / 1e9
        for where in ("on disk", "in memory"):
            costs = []
            for measure in (lambda: cost_of_reading(path), lambda: cost_of_loading(path.parent)):
                if where == "on disk":
                    drop_from_memory(path)
                costs.append(measure())
            reading, loading = costs
            compared = f"torch.load(mmap=True) and touching {reading.seconds:.2f} s (bound 1.5 x)"
            ratio = 1.5 * reading.seconds / loading.seconds
            rows.append(row(f"loading the 419 M shape, its file {where}", f"{loading.seconds:.2f} s", compared, ratio))
    memory = f"{loading.peak:.2f} GB at the peak, {loading.after:.2f} GB after"
    return [*rows, row("loading the 419 M shape, memory", memory, f"file {size:.2f} GB (bound 1.25 x)", 1.25 * size / loading.peak)]
