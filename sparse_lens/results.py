"""Results: a number with its interval, its null, its sample and its gate; tidy tables and JSON of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_lens.files import new_file

if TYPE_CHECKING:
    import pandas as pd


NOISE = 1e-12
"""A difference below this, or below this share of what is subtracted, is of rounding."""


@dataclass(frozen=True)
class Result:
    """One measured number.

    `lo`, `hi` bound its 95 % interval (over a handful of seeds: its least and largest), `null` is what chance or a control
    gives, `n` the number of independent samples (pairs of prompts, windows, tasks), `seeds` the number of seeds behind it.
    What fails its gate is `measurable=False` with a `reason`, and carries no value: it is never a zero.
    """

    value: float | None
    lo: float | None = None
    hi: float | None = None
    null: float | None = None
    n: int = 1
    seeds: int = 1
    measurable: bool = True
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.measurable and (self.value is None or not math.isfinite(self.value)):
            raise ValueError(f"a measurable result needs a finite value, got {self.value}")
        if not self.measurable and not self.reason:
            raise ValueError("a result that is not measurable needs a reason")

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None:
            return "—"
        text = f"{self.value:,.0f}" if self.value == round(self.value) and abs(self.value) >= 10 else f"{self.value:.3g}"
        return text if self.lo is None or self.hi is None else f"{text} [{self.lo:.3g}, {self.hi:.3g}]"


_FIELDS = {field.name for field in fields(Result)}


def not_measurable(reason: str, *, n: int = 0, seeds: int = 1) -> Result:
    """A result without a value: the gate that failed, or what was not done, is the reason."""
    return Result(value=None, n=n, seeds=seeds, measurable=False, reason=reason)


def exact(value: float, *, n: int = 1, seeds: int = 1) -> Result:
    """A counted number: it has no sampling error of its own."""
    return Result(value=float(value), n=n, seeds=seeds)


def less(first: float, second: float) -> float:
    """`first - second`, 0 where no more than rounding is left."""
    return 0.0 if abs(first - second) <= NOISE * max(abs(first), abs(second), 1.0) else first - second


def scaled(result: Result, factor: float) -> Result:
    """The same result in another unit: value, interval and null times a positive `factor`."""
    ends = {name: getattr(result, name) for name in ("value", "lo", "hi", "null")}
    return replace(result, **{name: None if end is None else end * factor for name, end in ends.items()})


def bootstrap_mean(
    samples: np.ndarray, *, null: float | None = None, seeds: int = 1, n_resamples: int = 1000, seed: int = 0
) -> Result:
    """Mean of independent samples with a 95 % percentile bootstrap interval."""
    samples = np.asarray(samples, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(samples), (n_resamples, len(samples)))
    lo, hi = np.percentile(samples[picks].mean(1), [2.5, 97.5])
    return Result(float(samples.mean()), float(lo), float(hi), null, len(samples), seeds)


_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
"""97.5 % quantiles of Student's t for 1, 2, 3, ... degrees of freedom; 2.12 and more stand in for all larger ones."""


def geometric_mean(ratios: np.ndarray, *, null: float | None = 1.0, seeds: int = 1) -> Result:
    """Geometric mean of positive ratios over at least two tasks, with Student's 95 % interval on their logs.

    A bootstrap over a handful of tasks would be too narrow: with two it never leaves the range of the data.
    """
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    quantile = _T_QUANTILES[min(len(logs) - 2, len(_T_QUANTILES) - 1)]
    mean, half = float(logs.mean()), quantile * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Result(math.exp(mean), math.exp(mean - half), math.exp(mean + half), null, len(logs), seeds)


def to_plain(content: Any) -> Any:
    """Nested dicts and lists with every `Result` turned into JSON values."""
    if isinstance(content, Result):
        return content.to_json()
    if isinstance(content, Mapping):
        return {str(key): to_plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [to_plain(value) for value in content]
    if isinstance(content, np.generic):
        return content.item()
    return content


def from_plain(content: Any) -> Any:
    """The inverse of `to_plain`: objects with the fields of a `Result` become one again."""
    if isinstance(content, Mapping):
        if content.keys() == _FIELDS:
            return Result(**content)
        return {key: from_plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [from_plain(value) for value in content]
    return content


def write_json(content: Any, path: str | Path) -> None:
    """Write nested results as JSON; beside first, then renamed."""
    with new_file(path) as staging:
        staging.write_text(json.dumps(to_plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def to_frame(content: Mapping[str, Any], levels: tuple[str, ...]) -> pd.DataFrame:
    """Tidy table of the results in nested dicts: one row a number, its path in the columns `levels` and `metric`."""
    import pandas as pd

    rows: list[dict[str, Any]] = []

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Result):
            names = dict(zip(levels, path[: len(levels)], strict=False))
            rows.append(names | {"metric": ".".join(path[len(levels) :])} | node.to_json())
        elif isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, (*path, str(key)))

    walk(content, ())
    return pd.DataFrame(rows)
