"""Faithfulness and completeness along a ranking of the nodes, and the areas under them: CPR and CMD.

`f(C_k) = (m(C_k) - m(0)) / (m(M) - m(0))` with `C_k` the first k nodes of a ranking, `m` minus the two-token task loss, `M` the
model and `0` everything ablated (arXiv:2504.13151, which takes the logit difference for `m`). The completeness curve is
`f(M without C_k)`, where low is good. CPR is the area under `f`, CMD that under `|1 - f|`: over the share of nodes, and over
`log10(k)` from one node on, since shares are unfair across widths. Nodes that do nothing shift the whole first axis; on the second
they come last and, f being 1 there, add nothing to CMD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.circuits.trust.draws import node_keys
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result, not_measurable

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the nodes at which MIB evaluates (arXiv:2504.13151)."""

LEAST_GAIN = 1e-3
"""Nats by which the model must be better than with everything ablated, so that a share of this can be taken."""


def cpr(sizes: np.ndarray, f: np.ndarray, n_nodes: int) -> float | np.ndarray:
    """Area under `f [..., size]` over the share of nodes, by trapezoids: .999 for f = 1 from a share of .001 on."""
    return _area(np.asarray(sizes) / n_nodes, f)


def cmd(sizes: np.ndarray, f: np.ndarray, n_nodes: int) -> float | np.ndarray:
    """Area under `|1 - f|` over the share of nodes: 0 for f = 1."""
    return _area(np.asarray(sizes) / n_nodes, np.abs(1 - np.asarray(f)))


def cpr_log(sizes: np.ndarray, f: np.ndarray) -> float | np.ndarray:
    """Area under `f` over `log10(size)`, in decades."""
    return _area(np.log10(sizes), f)


def cmd_log(sizes: np.ndarray, f: np.ndarray) -> float | np.ndarray:
    """Area under `|1 - f|` over `log10(size)`, in decades: how many of them are missing."""
    return _area(np.log10(sizes), np.abs(1 - np.asarray(f)))


def _area(x: np.ndarray, y: np.ndarray) -> float | np.ndarray:
    y = np.asarray(y, dtype=np.float64)
    area = ((y[..., 1:] + y[..., :-1]) / 2 * np.diff(x)).sum(-1)
    return float(area) if np.ndim(area) == 0 else area


@dataclass(frozen=True)
class Curve:
    """Points `f(k)` at `sizes` k of `n_nodes` nodes, and the areas `cpr`, `cmd`, `cpr_log`, `cmd_log`, each with its interval."""

    sizes: tuple[int, ...]
    n_nodes: int
    points: tuple[Result, ...]
    areas: dict[str, Result] = field(default_factory=dict)


def curve_sizes(n_nodes: int, *more: int) -> list[int]:
    """The sizes of a curve: 1, MIB's shares of `n_nodes`, and `more`."""
    return sorted({1, *(max(1, round(share * n_nodes)) for share in SHARES), *(size for size in more if 0 < size <= n_nodes)})


def faithfulness_curve(runs: CircuitRuns, ranking: Float[Tensor, " node"], sizes: Sequence[int] = ()) -> Curve:
    """`f(C_k)` along `ranking` (larger comes first), at `sizes`, by default those of `curve_sizes`.

    All edges between kept nodes are kept, also where the circuit has edges of its own. Raises `CircuitError` for a ranking of
    other nodes or a size that does not exist.
    """
    return _curve(runs, ranking, sizes, invert=False)


def completeness_curve(runs: CircuitRuns, ranking: Float[Tensor, " node"], sizes: Sequence[int] = ()) -> Curve:
    """`f(M without C_k)` along `ranking`, as `faithfulness_curve`."""
    return _curve(runs, ranking, sizes, invert=True)


def random_ranking(runs: CircuitRuns, *, seed: int = 0) -> Float[Tensor, " node"]:
    """A ranking of all nodes in random order: the null of a curve."""
    return node_keys(runs.circuit, torch.Generator().manual_seed(seed))


def ranked_after(ranking: Float[Tensor, " node"], mask: Bool[Tensor, " node"]) -> Float[Tensor, " node"]:
    """The same order, with the nodes of `mask` before all others."""
    return ranking.argsort(stable=True).argsort().to(torch.float32) + mask * len(mask)


def _curve(runs: CircuitRuns, ranking: Tensor, sizes: Sequence[int], *, invert: bool) -> Curve:
    n_nodes = runs.space.n_nodes
    if ranking.shape != (n_nodes,):
        raise CircuitError(f"a ranking has one value for each of {n_nodes} nodes, got shape {tuple(ranking.shape)}")
    sizes = list(sizes) or curve_sizes(n_nodes)
    if sizes != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= n_nodes:
        raise CircuitError(f"sizes of a curve ascend from 1 at the least to {n_nodes} at the most, got {sizes}")
    order = ranking.argsort(descending=True, stable=True)
    losses = []
    for size in sizes:
        mask = torch.zeros(n_nodes, dtype=torch.bool)
        mask[order[:size]] = True
        losses.append(runs.losses(runs.model(~mask if invert else mask)))
    return _measured(np.stack(losses), runs.losses(runs.nothing), runs.losses(runs.whole), sizes, n_nodes)


def _measured(
    losses: np.ndarray, nothing: np.ndarray, whole: np.ndarray, sizes: Sequence[int], n_nodes: int, n_resamples: int = 1000
) -> Curve:
    """The curve of losses `[size, pair]`, with intervals from a bootstrap over the pairs."""
    n = len(whole)
    if (nothing - whole).mean() <= LEAST_GAIN:
        missing = not_measurable("the model is no better than with everything ablated", n=n)
        names = ("cpr", "cmd", "cpr_log", "cmd_log")
        return Curve(tuple(sizes), n_nodes, (missing,) * len(sizes), dict.fromkeys(names, missing))
    picks = np.vstack([np.arange(n), np.random.default_rng(0).integers(0, n, (n_resamples, n))])
    gain = np.maximum((nothing - whole)[picks].mean(1), LEAST_GAIN)
    f = ((nothing - losses)[:, picks].mean(2) / gain).T  # [the sample itself and its resamples, size]
    x = np.asarray(sizes)
    areas = {"cpr": cpr(x, f, n_nodes), "cmd": cmd(x, f, n_nodes), "cpr_log": cpr_log(x, f), "cmd_log": cmd_log(x, f)}
    points = tuple(_with_interval(f[:, index], n) for index in range(len(sizes)))
    return Curve(tuple(sizes), n_nodes, points, {name: _with_interval(np.asarray(area), n) for name, area in areas.items()})


def _with_interval(values: np.ndarray, n: int) -> Result:
    lo, hi = np.percentile(values[1:], [2.5, 97.5])
    return Result(float(values[0]), float(lo), float(hi), n=n)
