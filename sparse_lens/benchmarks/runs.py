"""The benchmarks by name. A row says what was measured, against what, and the ratio (above 1: faster, or within the bound)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from sparse_lens.benchmarks.timing import fastest, process_cost
from sparse_lens.errors import UnknownNameError

Row = dict[str, str]

_IMPORT_BOUND = 0.3
_COMPARE_MINUTES, _COMPARE_GIGABYTES = 15, 3


def available_benchmarks() -> list[str]:
    """Names that `run_benchmarks` knows, the long ones included."""
    return [*_SHORT, *_LONG]


def run_benchmarks(names: Sequence[str] = (), *, include_long: bool = False) -> list[Row]:
    """Run the named benchmarks (default: all short ones) one after the other; raises `UnknownNameError`."""
    known = _SHORT | _LONG
    for name in names:
        if name not in known:
            raise UnknownNameError("benchmark", name, known)
    chosen = names or list(known if include_long else _SHORT)
    return [row for name in tqdm(chosen, desc="benchmarks") for row in known[name]()]


def _row(name: str, measured: str, compared_with: str, ratio: float) -> Row:
    return {"name": name, "measured": measured, "compared_with": compared_with, "ratio": f"{ratio:.1f}x"}


def _import() -> list[Row]:
    bare = min(process_cost(["-c", "pass"])[0] for _ in range(5))
    ours = min(process_cost(["-c", "import sparse_lens"])[0] for _ in range(5)) - bare
    heavy = process_cost(["-c", "import transformer_lens"])[0] - bare
    return [
        _row("import sparse_lens", f"{ours * 1e3:.0f} ms", f"bound {_IMPORT_BOUND * 1e3:.0f} ms", _IMPORT_BOUND / max(ours, 1e-3)),
        _row(
            "import sparse_lens", f"{ours * 1e3:.0f} ms", f"import transformer_lens {heavy * 1e3:.0f} ms", heavy / max(ours, 1e-3)
        ),
    ]


def _abstopk() -> list[Row]:
    import torch

    from sparse_lens.kernels import abs_topk

    rows = []
    for width in (256, 1024, 2048):
        x = torch.randn(2048, width, requires_grad=True)
        gradient = torch.randn(2048, width)
        fast, plain = (
            fastest(lambda f=f, x=x, g=gradient: abs_topk(x, x.shape[1] // 4, fast=f).backward(g)) for f in (True, False)
        )
        rows.append(
            _row(
                f"AbsTopK 1/4 and gradient, 2048 x {width}",
                f"{fast * 1e3:.1f} ms",
                f"torch.topk {plain * 1e3:.1f} ms",
                plain / fast,
            )
        )
    return rows


def _projection() -> list[Row]:
    import torch

    from sparse_lens.kernels import projection_mask

    rows = []
    for size in (512, 1024, 2048):
        weight = torch.randn(size, size)
        k = weight.numel() // 20
        fast, plain = (fastest(lambda f=f, w=weight, k=k: projection_mask(w, k, fast=f)) for f in (True, False))
        rows.append(
            _row(f"projection to 5 %, {size} x {size}", f"{fast * 1e3:.1f} ms", f"torch.topk {plain * 1e3:.1f} ms", plain / fast)
        )
    return rows


def _bridge() -> list[Row]:
    """A hooked forward pass against the bare one: what the bridge costs."""
    import torch

    from sparse_lens.hooks import load
    from sparse_lens.hooks.loading import find_model
    from sparse_lens.models import load_checkpoint

    name = "python-sparse"
    tokens = torch.randint(1000, (16, 128))
    core, bridge = load_checkpoint(find_model(name)).core, load(name)
    with torch.no_grad():
        bare, hooked = fastest(lambda: core(tokens)), fastest(lambda: bridge(tokens))
    return [
        _row(
            "forward pass through the bridge, 16 x 128", f"{hooked * 1e3:.0f} ms", f"bare model {bare * 1e3:.0f} ms", bare / hooked
        )
    ]


def _compare() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        seconds, gigabytes = process_cost(["-m", "sparse_lens", "compare", "--out", str(Path(folder) / "report")])
    minutes = seconds / 60
    return [
        _row("sparse-lens compare, time", f"{minutes:.1f} min", f"bound {_COMPARE_MINUTES} min", _COMPARE_MINUTES / minutes),
        _row(
            "sparse-lens compare, memory", f"{gigabytes:.1f} GB", f"bound {_COMPARE_GIGABYTES} GB", _COMPARE_GIGABYTES / gigabytes
        ),
    ]


_SHORT: dict[str, Callable[[], list[Row]]] = {
    "import": _import,
    "abstopk": _abstopk,
    "projection": _projection,
    "bridge": _bridge,
}
_LONG: dict[str, Callable[[], list[Row]]] = {"compare": _compare}
