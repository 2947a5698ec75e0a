"""Logits that are computed when a metric asks for them.

Unembedding is often the larger part of a run, and most metrics read one position. `LazyLogits` is a tensor to every function; an
index that names its positions is answered from those that were computed, anything else gets all of them, and is right all the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sparse_lens.errors import SparseLensError

Metric = Callable[[Tensor], Any]
"""From the logits `[batch pos vocab]` of one run to one number."""


@dataclass
class Logits:
    """One run's logits: the `values` at the positions `held`, and how to get all of them; `read` are the positions asked for."""

    held: list[int]
    values: Float[Tensor, "batch held vocab"]
    shape: torch.Size
    make_whole: Callable[[], Tensor] | None
    read: set[int] = field(default_factory=set)
    made: Tensor | None = None

    @property
    def whole(self) -> Float[Tensor, "batch pos vocab"]:
        """All logits."""
        if self.made is None:
            assert self.make_whole is not None
            self.read.update(range(self.shape[1]))
            self.made, self.make_whole = self.make_whole(), None  # which holds the whole recorded run
            self.made[:, self.held] = self.values  # the metric may have changed them in place
        return self.made

    def at(self, index: Any) -> Tensor | None:
        """The logits at an index, None if all of them are needed for the answer."""
        parts = _by_axis(index)
        if parts is None or self.made is not None:
            return None
        batch, pos, vocab = parts
        asked = _positions(pos, self.shape[1])
        if asked is None or not set(wanted := asked.flatten().tolist()) <= set(self.held):
            return None
        slots = torch.tensor([self.held.index(position) for position in wanted], dtype=torch.long).view(asked.shape)
        where: Any = slots.to(self.values.device)
        if isinstance(pos, int):
            where = int(slots)
        elif isinstance(pos, slice):  # gives a view, so it has to be answered by one
            if not wanted or self.held[int(slots[0]) : int(slots[-1]) + 1] != wanted:
                return None
            where = slice(int(slots[0]), int(slots[-1]) + 1)
        self.read.update(wanted)
        return self.values[batch, where, vocab]


def measured(metric: Metric, logits: Logits) -> float:
    """The metric of a run; raises `SparseLensError` if it is not one number."""
    lazy = LazyLogits(logits)
    kept = weakref.ref(lazy)
    value = one_number(metric(lazy))
    del lazy
    if kept() is not None:
        _ = logits.whole  # the metric keeps them, and later the model may be another
    return value


def one_number(value: Any) -> float:
    """What a metric returned, as a number; raises `SparseLensError` for what is not one."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise SparseLensError(f"the metric must return one number for each run, got a tensor of shape {tuple(value.shape)}")
    return float(value)


class LazyLogits(Tensor):
    """Logits `[batch pos vocab]`, computed when asked for; to all functions a plain tensor."""

    logits: Logits

    @staticmethod
    def __new__(cls, logits: Logits) -> LazyLogits:
        values = logits.values
        made = Tensor._make_wrapper_subclass(cls, logits.shape, dtype=values.dtype, device=values.device)
        made.logits = logits
        return made

    def __init__(self, logits: Logits) -> None:
        """Nothing is left to do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ABOUT_LOGITS:
            return super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.__getitem__ and isinstance(args[0], LazyLogits):
            found = args[0].logits.at(args[1])
            if found is not None:
                return found
        return _on_whole(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _on_whole(func, args, kwargs)


_ABOUT_LOGITS = (
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
)
"""What needs no logits to be answered."""


def _on_whole(func: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = tree_map_only(LazyLogits, lambda lazy: lazy.logits.whole, (args, kwargs or {}))
    return func(*args, **kwargs)


def _by_axis(index: Any) -> tuple[Any, Any, Any] | None:
    """An index, an entry for each of three axes; None for one that is not made of numbers, slices and arrays of numbers alone."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if len(dots := [at for at, part in enumerate(parts) if part is Ellipsis]) == 1:
        parts[dots[0] : dots[0] + 1] = [slice(None)] * (4 - len(parts))
    parts = [_entry(part) for part in parts]
    if len(parts) > 3 or any(part is None for part in parts):
        return None
    batch, pos, vocab = parts + [slice(None)] * (3 - len(parts))
    return batch, pos, vocab


def _entry(part: Any) -> int | slice | Tensor | None:
    """One axis' entry of an index; None for masks (which may take several axes), new axes and the like."""
    if isinstance(part, Integral) and not isinstance(part, bool):
        return int(part)
    if isinstance(part, np.ndarray) and part.dtype.kind == "i":
        return torch.from_numpy(part)
    if isinstance(part, slice) or (isinstance(part, Tensor) and part.dtype in (torch.int64, torch.int32)):
        return part
    return None


def _positions(part: int | slice | Tensor, length: int) -> Int[Tensor, "*shape"] | None:
    """The positions that an index's entry names, in its shape; None for all of them, or one that does not exist."""
    if isinstance(part, slice):
        chosen = range(*part.indices(length))
        return None if len(chosen) == length else torch.tensor(chosen, dtype=torch.long)
    positions = torch.as_tensor(part).cpu().long()
    inside = bool(((positions >= -length) & (positions < length)).all())
    return positions % length if inside else None  # torch itself will say what is wrong with it
