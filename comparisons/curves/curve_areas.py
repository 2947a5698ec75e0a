"""Reading curves: bits at a given divergence, and how far apart two columns' curves lie.

A curve is the least number of bits by which a divergence was reached: of the measured points, those that no point beats at a
smaller or equal KL. Between two of them the logarithm of the bits is linear in the logarithm of the KL; past the loosest of them,
up to the largest KL of any point, it is flat, as a circuit that meets a KL meets all above it; outside all points nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve
from sparse_lens.errors import ConfigError
from sparse_lens.results import Result, exact, not_measurable

LEAST_KL = 1e-6
"""Nats below which a divergence is taken for this, so that it has a logarithm."""


@dataclass(frozen=True)
class Frontier:
    """Points of a curve by rising `kl` and falling `size`, both above 0; `loosest` is the largest KL of all, beaten ones too."""

    kl: tuple[float, ...]
    size: tuple[float, ...]
    loosest: float | None = field(default=None, compare=False)

    @property
    def end(self) -> float:
        """The largest KL at which the curve says something; 0 without points."""
        return self.loosest or (self.kl[-1] if self.kl else 0.0)


def frontier(curve: CircuitCurve, *, at: str = "kl_heldout", size: str = "total_bits") -> Frontier:
    """The points of `curve` that no other beats, by the results `at` and `size`; points that do not measure both are left out.

    With `at="searched_kl_heldout", size="searched_total_bits"` it is the curve of circuits of searched edges. Raises `ConfigError`
    for a name that no point has.
    """
    found: list[tuple[float, float]] = []
    for name in (at, size) if curve.points else ():
        if not any(name in point.results for point in curve.points):
            known = sorted({known for point in curve.points for known in point.results})
            raise ConfigError(f"a curve's points have no {name!r}; they have {', '.join(known)}")
    for point in curve.points:
        kl, bits = (point.results[name].value if name in point.results else None for name in (at, size))
        if kl is not None and bits is not None and bits > 0:
            found.append((max(kl, LEAST_KL), bits))
    kept: list[tuple[float, float]] = []
    for kl, bits in sorted(found):
        if not kept or bits < kept[-1][1]:
            kept.append((kl, bits))
    loosest = max((kl for kl, _ in found), default=None)
    return Frontier(tuple(kl for kl, _ in kept), tuple(bits for _, bits in kept), loosest)


def size_at(curve: CircuitCurve | Frontier, kl: float, *, at: str = "kl_heldout", size: str = "total_bits") -> Result:
    """The size of `curve` at a divergence of `kl` nats; not measurable outside its points. Raises as `frontier` does."""
    points = curve if isinstance(curve, Frontier) else frontier(curve, at=at, size=size)
    if not points.kl or not points.kl[0] <= kl <= points.end:
        span = f"from {points.kl[0]:.3g} to {points.end:.3g}" if points.kl else "at no point"
        return not_measurable(f"the curve is measured {span} nats, not at {kl:.3g}")
    return exact(math.exp(float(_log_size(points, np.log([kl]))[0])), n=len(points.kl))


def _log_size(points: Frontier, log_kl: np.ndarray) -> np.ndarray:
    return np.interp(log_kl, np.log(points.kl), np.log(points.size))


def area_between(
    first: CircuitCurve | Frontier, second: CircuitCurve | Frontier, *, at: str = "kl_heldout", size: str = "total_bits"
) -> dict[str, Result]:
    """How far `first` lies above `second` over the KL that both have: `area`, `mean_log_ratio`, and the range of KL.

    `area` integrates `log(first / second)` over `log(KL)`; `mean_log_ratio` is the area by the length of the range, so that its
    exponential is the geometric mean ratio of sizes. Exact for the piecewise linear curves. Not measurable where the ranges do not
    overlap. Raises as `frontier` does.
    """
    curves = [curve if isinstance(curve, Frontier) else frontier(curve, at=at, size=size) for curve in (first, second)]
    low, high = _shared(curves)
    if low is None or high is None:
        missing = not_measurable("the two curves share no range of KL")
        return dict.fromkeys(("area", "mean_log_ratio", "kl_low", "kl_high"), missing)
    inner = {math.log(kl) for curve in curves for kl in curve.kl if low < kl < high}
    grid = np.array(sorted({math.log(low), *inner, math.log(high)}))
    difference = _log_size(curves[0], grid) - _log_size(curves[1], grid)
    area = float(((difference[1:] + difference[:-1]) / 2 * np.diff(grid)).sum())
    n = sum(len(curve.kl) for curve in curves)
    return {
        "area": exact(area, n=n),
        "mean_log_ratio": exact(area / float(grid[-1] - grid[0]), n=n),
        "kl_low": exact(low),
        "kl_high": exact(high),
    }


def _shared(curves: Sequence[Frontier]) -> tuple[float, float] | tuple[None, None]:
    if not all(curve.kl for curve in curves):
        return None, None
    low, high = max(curve.kl[0] for curve in curves), min(curve.end for curve in curves)
    return (low, high) if low < high else (None, None)
