"""Exhaustive activation patching: the tensors of `transformer_lens.patching`, many patched runs at a time.

Every function has the name, the arguments and the result of TransformerLens' own, and takes further keywords:

| keyword | meaning |
|---|---|
| `batch_size` | most sequences (patched runs times prompts) in one forward pass; default by the model's size |
| `progress` | whether to show a progress bar (default True) |

What makes it faster, none of which changes a result by more than rounding: patched runs share forward passes; a run starts at the
layer, and within it behind the last component, that the patch cannot reach; a patch that puts in what is there already costs
nothing (in causal models all before the first differing token); and only logits that the metric reads are computed.

Hooks that are on the bridge (its own, torch's, those of a circuit or a dictionary) stay in effect, before the patch. As they may
remember things, every patched run is then a forward pass of its own; so it is with dropout. A model whose blocks cannot be taken
from a recorded run is run whole for every batch. All this is correct, and slower.

The metric gets the logits of one patched run, `[batch pos vocab]`, and must depend on nothing else; it is also called once on the
run without a patch, as are hooks. Nothing here has gradients: results are those that TransformerLens has under `torch.no_grad()`.
Prompts are token ids of one length; there is no attention mask here, nor in TransformerLens' functions. Two threads that patch one
bridge wait for each other; whatever else uses it meanwhile sees the patches.

All functions raise `UnknownNameError` for an unknown site or axis, and `SparseLensError` for a cache that lacks a hook or
holds another shape than the corrupted run, and for a metric that is not one number. Source: arXiv:2202.05262 (causal tracing).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.hooks.lazy_logits import Metric
from sparse_lens.hooks.patch_tables import Cache, PatchSetter, PatchTable, filled


@runtime_checkable
class PatchFunction(Protocol):
    """What all `get_act_patch_*` of one site are: a table of the metric, patch by patch."""

    def __call__(
        self,
        model: Any,
        corrupted_tokens: Tensor,
        clean_cache: Cache,
        patching_metric: Metric,
        *,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Tensor: ...


def activation_patch(
    model: Any,
    corrupted_tokens: Int[Tensor, "*batch pos"],
    clean_cache: Cache,
    patching_metric: Metric,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "*index"]:
    """The metric after each patch of one kind of site: one dimension for each axis, or one entry for each row of `index_df`.

    `activation_name` is TransformerLens' short name ("resid_pre", "z", "pattern", "post") or a hook's name within its block
    ("attn.hook_act_in"). The first axis is "layer"; after it any of the site's own in any order: "pos" and "channel", with "head"
    between them for heads, or "head", "dest_pos" and "src_pos" for patterns and scores. Axes left out are patched whole.

    Example: `activation_patch(bridge, corrupt, cache, metric, "post", ("layer", "channel"))` patches every neuron at all positions,
    `[layer channel]`.
    """
    table = PatchTable.of(activation_name, index_axis_names, index_df)
    arguments = (model, corrupted_tokens, clean_cache, patching_metric, [table])
    return filled(*arguments, batch_size=batch_size, progress=progress)[0]


def generic_activation_patch(
    model: Any,
    corrupted_tokens: Int[Tensor, "*batch pos"],
    clean_cache: Cache,
    patching_metric: Metric,
    patch_setter: PatchSetter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> Any:
    """TransformerLens' function of that name: `activation_patch` with a setter of one's own, called for one run after the other.

    With `return_index_df` also the table of indices, one row for each patch.
    """
    table = PatchTable.of(activation_name, index_axis_names, index_df, patch_setter)
    arguments = (model, corrupted_tokens, clean_cache, patching_metric, [table])
    result = filled(*arguments, batch_size=batch_size, progress=progress)[0]
    if not return_index_df:
        return result
    if index_df is None:
        index_df = pd.DataFrame(list(itertools.product(*map(range, result.shape))), columns=list(index_axis_names or ()))
    return result, index_df


def _function(name: str, activation_name: str, axes: tuple[str, ...], what: str) -> PatchFunction:
    def patch(
        model: Any,
        corrupted_tokens: Tensor,
        clean_cache: Cache,
        patching_metric: Metric,
        *,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Tensor:
        return activation_patch(
            model,
            corrupted_tokens,
            clean_cache,
            patching_metric,
            activation_name,
            axes,
            batch_size=batch_size,
            progress=progress,
        )

    patch.__name__ = patch.__qualname__ = f"get_act_patch_{name}"
    patch.__doc__ = f"The metric with {what} patched, `[{' '.join(axes)}]`; as `transformer_lens.patching.get_act_patch_{name}`."
    return patch


_AT_POS, _HEAD, _HEAD_AT_POS = ("layer", "pos"), ("layer", "head"), ("layer", "pos", "head")

get_act_patch_resid_pre = _function("resid_pre", "resid_pre", _AT_POS, "the residual stream before a layer at a position")
get_act_patch_resid_mid = _function("resid_mid", "resid_mid", _AT_POS, "the residual stream before an MLP at a position")
get_act_patch_attn_out = _function("attn_out", "attn_out", _AT_POS, "an attention layer's output at a position")
get_act_patch_mlp_out = _function("mlp_out", "mlp_out", _AT_POS, "an MLP's output at a position")
get_act_patch_attn_head_out_by_pos = _function("attn_head_out_by_pos", "z", _HEAD_AT_POS, "a head's z at a position")
get_act_patch_attn_head_q_by_pos = _function("attn_head_q_by_pos", "q", _HEAD_AT_POS, "a head's query at a position")
get_act_patch_attn_head_k_by_pos = _function("attn_head_k_by_pos", "k", _HEAD_AT_POS, "a head's key at a position")
get_act_patch_attn_head_v_by_pos = _function("attn_head_v_by_pos", "v", _HEAD_AT_POS, "a head's value at a position")
get_act_patch_attn_head_pattern_by_pos = _function(
    "attn_head_pattern_by_pos", "pattern", ("layer", "head", "dest_pos"), "a head's pattern at a destination"
)
get_act_patch_attn_head_pattern_dest_src_pos = _function(
    "attn_head_pattern_dest_src_pos", "pattern", ("layer", "head", "dest_pos", "src_pos"), "one entry of a head's pattern"
)
get_act_patch_attn_head_out_all_pos = _function("attn_head_out_all_pos", "z", _HEAD, "a head's z at all positions")
get_act_patch_attn_head_q_all_pos = _function("attn_head_q_all_pos", "q", _HEAD, "a head's queries at all positions")
get_act_patch_attn_head_k_all_pos = _function("attn_head_k_all_pos", "k", _HEAD, "a head's keys at all positions")
get_act_patch_attn_head_v_all_pos = _function("attn_head_v_all_pos", "v", _HEAD, "a head's values at all positions")
get_act_patch_attn_head_pattern_all_pos = _function("attn_head_pattern_all_pos", "pattern", _HEAD, "a head's whole pattern")


def get_act_patch_block_every(
    model: Any,
    corrupted_tokens: Int[Tensor, "*batch pos"],
    clean_cache: Cache,
    metric: Metric,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "patch_type layer pos"]:
    """Residual stream before a layer, attention output, MLP output at a position, `[3 layer pos]`, as TransformerLens has it."""
    tables = [PatchTable(name, _AT_POS) for name in ("resid_pre", "attn_out", "mlp_out")]
    return torch.stack(filled(model, corrupted_tokens, clean_cache, metric, tables, batch_size=batch_size, progress=progress))


def get_act_patch_attn_head_all_pos_every(
    model: Any,
    corrupted_tokens: Int[Tensor, "*batch pos"],
    clean_cache: Cache,
    metric: Metric,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "patch_type layer head"]:
    """A head's z, q, k, v and pattern at all positions, `[5 layer head]`, as TransformerLens has it.

    Where keys and values have fewer heads than queries, the rest of their tables is 0.
    """
    tables = [PatchTable(name, _HEAD) for name in ("z", "q", "k", "v", "pattern")]
    return _stacked(filled(model, corrupted_tokens, clean_cache, metric, tables, batch_size=batch_size, progress=progress))


def get_act_patch_attn_head_by_pos_every(
    model: Any,
    corrupted_tokens: Int[Tensor, "*batch pos"],
    clean_cache: Cache,
    metric: Metric,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "patch_type layer pos head"]:
    """A head's z, q, k, v and pattern (by destination) at a position, `[5 layer pos head]`, as TransformerLens has it.

    Where keys and values have fewer heads than queries, the rest of their tables is 0.
    """
    tables = [PatchTable(name, _HEAD_AT_POS) for name in ("z", "q", "k", "v")]
    tables.append(PatchTable("pattern", ("layer", "dest_pos", "head")))
    return _stacked(filled(model, corrupted_tokens, clean_cache, metric, tables, batch_size=batch_size, progress=progress))


def _stacked(tables: list[Tensor]) -> Tensor:
    n_head = tables[0].shape[-1]
    return torch.stack([F.pad(table, (0, n_head - table.shape[-1])) for table in tables])
