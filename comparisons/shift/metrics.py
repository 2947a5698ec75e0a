"""How sparse a hidden state is: the metrics of arXiv:2603.03415, and what a Gaussian vector of the same width gives.

Of the channels `h_1 .. h_d` of one state:

| metric | formula | sparser |
|---|---|---|
| `top_1_percent_energy`, `top_5_…`, `top_10_…` | share of `sum h^2` in the `max(1, int(p d))` largest | higher |
| `effective_rank_energy_share` (er2) | `exp(H(p)) / d`, `p = h^2 / sum h^2`: their pretraining and MMLU | lower |
| `effective_rank_amplitude_share` (er1) | `exp(H(p)) / d`, `p = abs h / sum abs h`: their other experiments | lower |
| `l1` | `sum abs h`: grows with the scale | lower |
| `hoyer`, `gini` | `(sqrt d - L1 / L2) / (sqrt d - 1)`; Gini coefficient of `abs h` | higher |
| `l0_above_deviation_share` | share of the channels with `abs h` above its mean and one standard deviation | lower |
| `participation_share` | `(sum h^2)^2 / (d sum h^4)` | lower |
| `kurtosis` | fourth standardized moment over the channels (3 of a Gaussian) | higher |

The paper has two definitions of effective rank under one name; here they never share one. All but `l1` do not change with the
scale, and all depend on the basis: of a rotated state they are a Gaussian's.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.comparisons.rows.sparsity_measures import (
    effective_rank_amplitude,
    effective_rank_energy,
    hoyer,
    participation_ratio,
)
from sparse_lens.errors import DataError

PERCENTS = (1, 5, 10)

METRICS = (
    *(f"top_{percent}_percent_energy" for percent in PERCENTS),
    "effective_rank_energy_share",
    "effective_rank_amplitude_share",
    "l1",
    "hoyer",
    "gini",
    "l0_above_deviation_share",
    "participation_share",
    "kurtosis",
)
"""Names of the metrics, in the order of the columns of `sparsity_metrics`."""

HIGHER_IS_SPARSER = (*METRICS[:3], "hoyer", "gini", "kurtosis")

_NULL_ROWS = 1024
_ROUNDING = 1e-12


def sparsity_metrics(h: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows metric"]:
    """The `METRICS` of each row, float64; NaN where one is not defined: a row of zeros, the kurtosis of a constant row.

    Raises `DataError` for fewer than two channels, which are always one-hot.
    """
    d = h.shape[-1]
    if d < 2:
        raise DataError(f"a vector of {d} channel(s) is neither sparse nor dense; measure at a site of two or more")
    h = h.double()
    size, energy = h.abs(), h.square()
    ordered = size.sort(-1, descending=True).values
    place = torch.arange(1, d + 1, dtype=h.dtype, device=h.device)
    mean = size.mean(-1, keepdim=True)
    columns = [
        *(ordered[..., : max(1, percent * d // 100)].square().sum(-1) / energy.sum(-1) for percent in PERCENTS),
        effective_rank_energy(h) / d,
        effective_rank_amplitude(h) / d,
        size.sum(-1),
        hoyer(h),
        ((d + 1 - 2 * place) * ordered).sum(-1) / (d * size.sum(-1)),
        # Without the margin a constant row would be above its own mean by rounding. A row of zeros is no more sparse than dense.
        torch.where(mean[..., 0] > 0, (size > mean * (1 + _ROUNDING) + size.std(-1, keepdim=True)).double().mean(-1), torch.nan),
        participation_ratio(energy) / d,
        _kurtosis(h),
    ]
    return torch.stack(columns, -1)


def _kurtosis(h: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
    centered = h - h.mean(-1, keepdim=True)
    variance = centered.square().mean(-1)
    varies = variance > (_ROUNDING * h.abs().amax(-1)).square()
    return torch.where(varies, centered.pow(4).mean(-1) / variance.square(), torch.nan)


@lru_cache(maxsize=32)
def _null_values(width: int, seed: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(_NULL_ROWS, width, dtype=torch.float64, generator=generator)
    return tuple(sparsity_metrics(rows / rows.norm(dim=1, keepdim=True)).mean(0).tolist())


def gaussian_null(width: int, *, seed: int = 0) -> dict[str, float]:
    """Means of the `METRICS` over 1,024 standard normal vectors of this width; that of `l1` is for vectors of norm 1.

    Raises `DataError` for a width below 2.
    """
    return dict(zip(METRICS, _null_values(width, seed), strict=True))
