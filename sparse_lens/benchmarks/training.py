"""What a training step costs: weight-sparse against dense and against the same step written plainly; how it grows with size."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm

from sparse_lens.benchmarks.timing import Row, fastest, row
from sparse_lens.kernels import compress, sparse_linear
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.training import TopK, TrainingConfig
from sparse_lens.training.recipes import dense_recipe, sparse_recipe
from sparse_lens.training.run import TrainingRun, resolve_precision
from sparse_lens.training.sparsifiers import TopKProjection

_VOCAB, _TOKENS, _CONTEXT = 1024, 2048, 128
_TOO_SLOW, _FASTER = 1.15, 1.4
_STEPS = 9


def training_rows() -> list[Row]:
    """All rows, in one run; about three minutes on two cores."""
    return [*_ratios("bfloat16"), *_ratios("float32"), *_slopes(), *_products()]


def make_run(config: TrainingConfig, *, plain: bool = False) -> TrainingRun:
    """A run with fresh weights in the late, sparse part of its schedule; `plain`: torch.topk, scatter, Adam weight by weight."""
    fields = config.model | {"vocab_size": _VOCAB, "block_size": config.context, "tokenizer_name": None}
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**fields))  # pyright: ignore[reportArgumentType]
    model.core.initialize(torch.Generator().manual_seed(0))
    run = TrainingRun(config.model_copy(update={"products": "dense"}) if plain else config, model.train())
    run.step = config.steps // 2 + 1
    if plain:
        model.core.use_fast_kernels(False)
        if isinstance(config.sparsity, TopK):
            run.sparsifier = TopKProjection(model.core, config.sparsity, config.steps, fast=False)
        groups = [{"params": run.trained, "rate_factor": 1.0}]
        run.optimizer = torch.optim.Adam(groups, betas=config.betas, eps=config.eps, foreach=False, fused=False)
    return run


def _ratios(precision: str) -> list[Row]:
    sparse = sparse_recipe("sparse", 256, 2000, density=0.05, embedding_density=0.2, precision=precision)
    dense = dense_recipe("dense", 256, 2000, precision=precision)
    dense = dense.model_copy(update={"eps": sparse.eps, "learning_rate": sparse.learning_rate})
    runs = {"sparse": make_run(sparse), "dense": make_run(dense), "plain": make_run(sparse, plain=True)}
    emulated = precision == "bfloat16" and resolve_precision("auto") != "bfloat16"  # ten seconds a step
    times = step_times(runs, description=f"steps in {precision}", steps=2 if emulated else _STEPS)
    ours, their, plainly = times["sparse"], times["dense"], times["plain"]
    kind = f"{precision} (emulated on this processor)" if emulated else precision
    what = f"weight-sparse step, 2 layers, d_model 256, 2048 tokens, {kind}, {torch.get_num_threads()} threads"
    return [
        row(what, f"{ours * 1e3:.0f} ms", f"dense {their * 1e3:.0f} ms, bound {_TOO_SLOW} of it", _TOO_SLOW * their / ours),
        row(what, f"{ours * 1e3:.0f} ms", f"plainly {plainly * 1e3:.0f} ms, bound {_FASTER}x", plainly / ours),
    ]


def step_times(runs: Mapping[str, TrainingRun], *, description: str, steps: int = _STEPS) -> dict[str, float]:
    """Least seconds of a step of each run, taken in turns after a first one, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    batches = {name: torch.randint(0, _VOCAB, (run.config.batch_size, run.config.context + 1)) for name, run in runs.items()}
    for _ in tqdm(range(steps + 1), desc=description, leave=False):
        for name, run in runs.items():
            started = time.perf_counter()
            run.optimize(batches[name])
            times[name].append(time.perf_counter() - started)
    return {name: min(seconds[1:]) for name, seconds in times.items()}


def _slopes() -> list[Row]:
    """Seconds a step against the model's width and against the tokens of a step, as exponents of a power law."""
    rows = []
    for kind in ("sparse", "dense"):
        widths = {width: make_run(_recipe(kind, width, _TOKENS)) for width in (128, 256, 512)}
        times = step_times({str(width): run for width, run in widths.items()}, description=f"{kind}, widths", steps=4)
        sizes = [sum(p.numel() for p in run.decayed) for run in widths.values()]
        rows.append(_slope(f"{kind} step against matrix weights (d_model 128, 256, 512)", sizes, list(times.values())))
        batches = {tokens: make_run(_recipe(kind, 256, tokens)) for tokens in (512, 2048, 8192)}
        times = step_times({str(tokens): run for tokens, run in batches.items()}, description=f"{kind}, tokens", steps=4)
        rows.append(_slope(f"{kind} step against its tokens (512, 2048, 8192)", list(batches), list(times.values())))
    return rows


def _recipe(kind: str, width: int, tokens: int) -> TrainingConfig:
    options = {"batch_size": tokens // _CONTEXT, "precision": "float32"}
    if kind == "dense":
        return dense_recipe("dense", width, 2000, **options)
    return sparse_recipe("sparse", width, 2000, density=0.05, embedding_density=0.2, **options)


def _slope(what: str, sizes: Sequence[float], seconds: Sequence[float]) -> Row:
    xs, ys = [math.log(size) for size in sizes], [math.log(time) for time in seconds]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)
    told = ", ".join(f"{time * 1e3:.0f}" for time in seconds)
    return row(what, f"exponent {slope:.2f}: {told} ms", "exponent 1: in proportion", 1 / max(slope, 1e-3))


def _products() -> list[Row]:
    """The product by nonzeros against `F.linear`, forward and with the gradient of the input."""
    rows = []
    for d_in, d_out, density in ((256, 1024, 0.2), (256, 1024, 0.05), (256, 1024, 0.01), (1024, 4096, 1 / 64)):
        weight = torch.randn(d_out, d_in) * (torch.rand(d_out, d_in) < density)
        x, compressed = torch.randn(2048, d_in), compress(weight)
        ours = fastest(lambda w=weight, x=x, c=compressed: sparse_linear(x, w, None, c))
        theirs = fastest(lambda w=weight, x=x: torch.nn.functional.linear(x, w))
        name = f"product with {d_out} x {d_in} at {density:.1%}, 2048 rows"
        rows.append(row(name, f"{ours * 1e3:.1f} ms", f"F.linear {theirs * 1e3:.1f} ms", theirs / ours))
    return rows
