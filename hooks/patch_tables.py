"""Tables of patches: which activations are changed at which indices, checked and filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.utilities.components_utils import get_act_name

from sparse_lens.errors import SparseLensError, UnknownNameError
from sparse_lens.hooks.instrumenting import hook_point, lock_of
from sparse_lens.hooks.lazy_logits import Metric
from sparse_lens.hooks.reruns import Edit, Reruns

Cache = Any
"""An `ActivationCache`, or any mapping from hook names to activations."""

PatchSetter = Callable[[Tensor, Sequence[int], Tensor], Tensor | None]
"""From one run's corrupted activation, an index (layer first) and the clean activation to the patched one."""

_SAME_AXIS = {"head_index": "head"}
_PATTERN_AXES = ("head", "dest_pos", "src_pos")
_TOKENS_OF_A_PASS = {"cpu": 4096, "cuda": 16384}
_NUMBERS_OF_A_PASS = 2**27
"""Floats that a pass may take, roughly: half a gigabyte."""


@dataclass(frozen=True, eq=False)
class PatchTable:
    """One kind of patch: the site, the axes of its indices, the rows of indices if not all, and a setter if not the plain one."""

    activation_name: str
    axes: tuple[str, ...]
    rows: Int[Tensor, "row axis"] | None = None
    setter: PatchSetter | None = None

    @classmethod
    def of(
        cls, name: str, axes: Sequence[str] | None, index_df: pd.DataFrame | None, setter: PatchSetter | None = None
    ) -> PatchTable:
        """From what a user gives: either the names of the axes, for all indices, or a table of indices."""
        if (axes is None) == (index_df is None):
            raise SparseLensError("give either index_axis_names or index_df, not both and not neither")
        names = [str(axis) for axis in (index_df.columns if axes is None else axes)]  # pyright: ignore[reportOptionalMemberAccess]
        if not names or names[0] != "layer" or len(set(names)) < len(names):
            raise SparseLensError(f"the axes must be different and begin with 'layer', got {names}")
        if index_df is not None and index_df.empty:
            raise SparseLensError("index_df has no rows; there is nothing to patch")
        rows = None if index_df is None else torch.tensor(index_df.to_numpy(dtype="int64"))
        return cls(name, tuple(_SAME_AXIS.get(axis, axis) for axis in names), rows, setter)

    def hook(self, layer: int) -> str:
        """The hook's name in a layer."""
        if "hook_" in self.activation_name:
            return f"blocks.{layer}.{self.activation_name}"
        return get_act_name(self.activation_name, layer)

    def layers(self, n_layers: int) -> list[int]:
        """The layers it patches."""
        if self.rows is None:
            return list(range(n_layers))
        layers = self.rows[:, 0].unique().tolist()
        if not 0 <= layers[0] <= layers[-1] < n_layers:
            raise SparseLensError(f"index_df names layers {layers[0]} to {layers[-1]}, this model has 0 to {n_layers - 1}")
        return layers

    def sizes(self, cfg: Any, activation: Tensor) -> dict[str, int]:
        """How many indices there are along each axis that it may have."""
        sizes = {
            "layer": int(cfg.n_layers),
            **dict(zip(site_axes(self.activation_name, activation), activation.shape[1:], strict=True)),
        }
        if self.setter is None:
            return sizes
        length = sizes.get("pos", activation.shape[-1])  # a setter reads indices as it likes
        return {"pos": length, "src_pos": length, "dest_pos": length, "head": int(cfg.n_heads), **sizes}


@torch.no_grad()
def filled(
    model: Any,
    tokens: Tensor,
    cache: Cache,
    metric: Metric,
    tables: Sequence[PatchTable],
    *,
    batch_size: int | None,
    progress: bool,
) -> list[Tensor]:
    """The tables, filled; all from one recorded run."""
    if batch_size is not None and batch_size < 1:
        raise SparseLensError(f"batch_size must be at least 1 sequence, got {batch_size}")
    tokens = checked_tokens(model, tokens)
    hooks = sorted({table.hook(layer) for table in tables for layer in table.layers(int(model.cfg.n_layers))})
    for hook in hooks:
        hook_point(model, hook)  # a wrong name is told as one, not as a gap in the cache
    clean = {hook: _clean(cache, hook) for hook in hooks}
    with lock_of(model):
        reruns = Reruns(model, tokens, hooks)
        for hook in hooks:
            _check_shape(hook, clean[hook], reruns.recording.activations[hook])
        unpatched = reruns.score(metric)
        fillings = [_Filling(table, reruns, clean, unpatched) for table in tables]
        n_runs = 1 if reruns.one_by_one else max(1, (batch_size or _default_batch_size(model, tokens)) // len(tokens))
        with tqdm(total=sum(len(filling.rows) for filling in fillings), desc="patches", disable=not progress) as bar:
            for filling in fillings:
                filling.run(metric, n_runs, bar)
    return [filling.result.to(model.cfg.device) for filling in fillings]


class _Filling:
    """A table under way."""

    def __init__(self, table: PatchTable, reruns: Reruns, clean: Mapping[str, Tensor], unpatched: float) -> None:
        self.table, self.reruns, self.clean = table, reruns, clean
        self.activations = reruns.recording.activations
        first = self.activations[table.hook(0 if table.rows is None else int(table.rows[0, 0]))]
        sizes = table.sizes(reruns.model.cfg, first)
        if table.rows is None:
            shape = [sizes[axis] for axis in _known(table, sizes)]
            self.rows = torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape))
        else:
            shape = [len(table.rows)]
            self.rows = table.rows
        if table.setter is None:
            _check_rows(table.axes, self.rows, [sizes[axis] for axis in _known(table, sizes)])
            names = ("batch", *site_axes(table.activation_name, first))
            self.where = [names.index(axis) for axis in table.axes[1:]]
        self.flat = torch.full((len(self.rows),), unpatched)
        self.result = self.flat.view(shape)

    def run(self, metric: Metric, n_runs: int, bar: Any) -> None:
        """Fill the table, layer by layer and batch by batch."""
        every = self.table.setter is not None or self.reruns.recording.random
        for layer in self.rows[:, 0].unique().tolist():
            hook = self.table.hook(layer)
            mine = (self.rows[:, 0] == layer).nonzero().flatten()
            numbers = mine if every else mine[self._changes(hook, self.rows[mine, 1:])]
            bar.update(len(mine) - len(numbers))
            for chunk in numbers.split(n_runs) if len(numbers) else ():  # split gives one empty chunk
                edit = self._set(hook, self.rows[chunk]) if self.table.setter else self._edit(hook, self.rows[chunk, 1:])
                self.flat[chunk] = torch.tensor(self.reruns.scores(hook, edit, len(chunk), metric))
                bar.update(len(chunk))

    def _changes(self, hook: str, indices: Int[Tensor, "row axis"]) -> Bool[Tensor, " row"]:
        """For each index, whether the patch puts in anything that is not there already."""
        differs = self.activations[hook] != self.clean[hook].to(self.activations[hook].device)
        order = sorted(self.where)
        found = (differs.sum([axis for axis in range(differs.ndim) if axis not in order]) > 0).cpu()
        return found[tuple(indices[:, self.where.index(axis)] for axis in order)].expand(len(indices))

    def _edit(self, hook: str, indices: Int[Tensor, "run axis"]) -> Edit:
        """The clean activation, at an index of its own in every run."""
        clean = self.clean[hook]

        def edit(activation: Tensor) -> None:
            new = clean.to(activation).expand(activation.shape)
            index: list[Any] = [torch.arange(len(activation)), *[slice(None)] * (activation.ndim - 1)]
            for axis, column in zip(self.where, indices.T, strict=True):
                index[1 + axis] = column
            # Index arrays apart from each other: the indexed axes come first on both sides.
            activation[tuple(index)] = new[tuple(index)]

        return edit

    def _set(self, hook: str, rows: Int[Tensor, "run axis"]) -> Edit:
        """What the user's setter makes of every run."""
        clean, setter = self.clean[hook], self.table.setter
        assert setter is not None

        def edit(activation: Tensor) -> None:
            new = clean.to(activation)
            for run, row in zip(activation, rows.tolist(), strict=True):
                if (patched := setter(run, row, new)) is not None:
                    run.copy_(patched)

        return edit


def site_axes(name: str, activation: Tensor) -> tuple[str, ...]:
    """The names of a site's axes after the batch."""
    if name.endswith(("pattern", "attn_scores")):
        return _PATTERN_AXES
    if name.endswith("sink"):
        return ("head", "pos")
    return ("pos", "head", "channel") if activation.ndim == 4 else ("pos", "channel")


def checked_tokens(model: Any, tokens: Any) -> Int[Tensor, "batch pos"]:
    """Token ids on the model's device; raises `SparseLensError` for anything else."""
    if not isinstance(tokens, Tensor):
        raise SparseLensError(f"corrupted_tokens must be token ids [batch pos], got {type(tokens).__name__}; use bridge.to_tokens")
    if tokens.is_floating_point() or tokens.ndim not in (1, 2) or tokens.numel() == 0:
        raise SparseLensError(f"corrupted_tokens must be token ids [batch pos], got {tokens.dtype} of shape {tuple(tokens.shape)}")
    return (tokens[None] if tokens.ndim == 1 else tokens).to(model.cfg.device)


def _known(table: PatchTable, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The table's axes; raises `UnknownNameError` for one that the site does not have."""
    for axis in table.axes:
        if axis not in sizes:
            raise UnknownNameError(f"axis of {table.activation_name}", axis, sizes)
    return table.axes


def _check_rows(axes: Sequence[str], rows: Int[Tensor, "row axis"], sizes: list[int]) -> None:
    """Indices may count from the end."""
    limits = torch.tensor(sizes)
    wrong = ((rows < -limits) | (rows >= limits)).any(1).nonzero().flatten()
    if len(wrong):
        named = dict(zip(axes, rows[wrong[0]].tolist(), strict=True))
        raise SparseLensError(f"no index {named}: the axes {', '.join(axes)} have the sizes {sizes}")


def _clean(cache: Cache, hook: str) -> Tensor:
    try:
        return cache[hook]
    except KeyError:
        raise SparseLensError(f"the clean cache does not hold {hook}; cache it too: run_with_cache(clean_tokens)") from None


def _check_shape(hook: str, clean: Tensor, corrupted: Tensor) -> None:
    if clean.shape[1:] != corrupted.shape[1:] or clean.shape[0] not in (1, corrupted.shape[0]) or clean.ndim != corrupted.ndim:
        raise SparseLensError(
            f"the clean cache holds {hook} of shape {tuple(clean.shape)}, the corrupted run {tuple(corrupted.shape)}; clean and "
            "corrupted prompts must have the same number of tokens and come in the same order"
        )


def _default_batch_size(model: Any, tokens: Tensor) -> int:
    """Sequences in a pass: enough to be busy, few enough for memory."""
    cfg, length = model.cfg, tokens.shape[1]
    width = int(cfg.d_vocab) + 16 * int(cfg.d_model) + 4 * int(cfg.d_mlp or 0) + 4 * int(cfg.n_heads) * length
    at_once = _TOKENS_OF_A_PASS.get(torch.device(cfg.device or "cpu").type, _TOKENS_OF_A_PASS["cuda"])
    return max(1, min(at_once, _NUMBERS_OF_A_PASS // width) // length)
