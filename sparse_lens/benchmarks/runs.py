"""The benchmarks by name. A row says what was measured, against what, and the ratio (above 1: faster, or within the bound)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from sparse_lens.benchmarks.timing import Row, fastest, process_cost, row
from sparse_lens.errors import UnknownNameError

_IMPORT_BOUND = 0.3
_COMPARE_MINUTES, _COMPARE_GIGABYTES = 15, 3
_FULL_MINUTES = 90


def available_benchmarks() -> list[str]:
    """Names that `run_benchmarks` knows, the long ones included."""
    return [*_SHORT, *_LONG, *_HOURS]


def run_benchmarks(names: Sequence[str] = (), *, include_long: bool = False) -> list[Row]:
    """Run the named benchmarks (default: all short ones) one after the other; raises `UnknownNameError`.

    Those that take hours run only by their name.
    """
    known = _SHORT | _LONG | _HOURS
    for name in names:
        if name not in known:
            raise UnknownNameError("benchmark", name, known)
    chosen = names or list(_SHORT | _LONG if include_long else _SHORT)
    return [measured for name in tqdm(chosen, desc="benchmarks") for measured in known[name]()]


def _import() -> list[Row]:
    bare = min(process_cost(["-c", "pass"])[0] for _ in range(5))
    ours = min(process_cost(["-c", "import sparse_lens"])[0] for _ in range(5)) - bare
    heavy = process_cost(["-c", "import transformer_lens"])[0] - bare
    return [
        row("import sparse_lens", f"{ours * 1e3:.0f} ms", f"bound {_IMPORT_BOUND * 1e3:.0f} ms", _IMPORT_BOUND / max(ours, 1e-3)),
        row("import sparse_lens", f"{ours * 1e3:.0f} ms", f"import transformer_lens {heavy * 1e3:.0f} ms", heavy / max(ours, 1e-3)),
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
            row(
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
            row(f"projection to 5 %, {size} x {size}", f"{fast * 1e3:.1f} ms", f"torch.topk {plain * 1e3:.1f} ms", plain / fast)
        )
    return rows


def _training() -> list[Row]:
    """The training step against a dense one, against a plain one, and against its own size."""
    from sparse_lens.benchmarks.training import training_rows

    return training_rows()


def _hooks() -> list[Row]:
    """The plug-in against the bare model, at the small shipped model's size and at 419 million weights."""
    from sparse_lens.benchmarks.plugin import plugin_rows

    return plugin_rows()


def _compare() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        seconds, gigabytes = process_cost(["-m", "sparse_lens", "compare", "--out", str(Path(folder) / "report")])
    minutes = seconds / 60
    return [
        row("sparse-lens compare, time", f"{minutes:.1f} min", f"bound {_COMPARE_MINUTES} min", _COMPARE_MINUTES / minutes),
        row("sparse-lens compare, memory", f"{gigabytes:.1f} GB", f"bound {_COMPARE_GIGABYTES} GB", _COMPARE_GIGABYTES / gigabytes),
    ]


def _full() -> list[Row]:
    """The full comparison of the shipped models with all that it trains, from nothing, in two processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", str(Path(folder) / "full"), "--workers", "2"]
        minutes = process_cost(["-m", "sparse_lens", "compare", "--full", *out])[0] / 60
    return [row("sparse-lens compare --full, time", f"{minutes:.0f} min", f"bound {_FULL_MINUTES} min", _FULL_MINUTES / minutes)]


_SHORT: dict[str, Callable[[], list[Row]]] = {
    "import": _import,
    "abstopk": _abstopk,
    "projection": _projection,
}


def _circuits() -> list[Row]:
    from sparse_lens.benchmarks.circuits import circuit_rows

    return circuit_rows()


def _comparisons() -> list[Row]:
    """Scoring concepts at a large dictionary's size, and training a transcoder beside SAELens' SAE trainer."""
    from sparse_lens.benchmarks.concepts import concept_rows
    from sparse_lens.benchmarks.dictionaries import transcoder_rows

    return [*concept_rows(), *transcoder_rows()]


def _claims() -> list[Row]:
    from sparse_lens.benchmarks.claims import ease_rows, fracture_rows

    return [*ease_rows(), *fracture_rows()]


def _measures() -> list[Row]:
    from sparse_lens.benchmarks.claims import measure_rows

    return measure_rows()


_LONG: dict[str, Callable[[], list[Row]]] = {"train": _training, "hooks": _hooks, "circuits": _circuits, "compare": _compare}
_LONG |= {"comparisons": _comparisons, "claims": _claims, "measures": _measures}

_HOURS: dict[str, Callable[[], list[Row]]] = {"full": _full}
