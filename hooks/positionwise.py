"""Components that treat each position by itself: computed only where their input is not the recorded one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from sparse_lens.hooks.recording import Call

_MOST = 0.8
"""Share of positions above which picking them out costs more than it saves."""


def is_positionwise(module: nn.Module, call: Call) -> bool:
    """Whether the module gives at some positions alone what it gave there among all."""
    tensors = [leaf for leaf in call.leaves if isinstance(leaf, Tensor)]
    if not isinstance(call.output, Tensor) or not tensors or any(leaf.shape[:2] != call.output.shape[:2] for leaf in tensors):
        return False
    few = [leaf[:, ::2].flatten(0, 1)[None] if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]
    args, kwargs = tree_unflatten(few, call.structure)
    return same(module.forward(*args, **kwargs), call.output[:, ::2].flatten(0, 1)[None])


def changes_only(module: nn.Module, call: Call, n_runs: int, wanted: list[int] | None) -> Callable[..., Tensor]:
    """The module's forward pass for a batch of runs, with recorded values where its input is the recorded one.

    Also at positions that are not `wanted`, where it is none of anyone's business what it gives; None: all are.
    """
    forward = module.forward
    asked: Any = True
    if wanted is not None:
        asked = torch.zeros(call.output.shape[1], dtype=torch.bool, device=call.output.device)
        asked[wanted] = True

    def run(*args: Any, **kwargs: Any) -> Tensor:
        leaves, structure = tree_flatten((args, kwargs))
        changed = _changed(leaves, call.leaves, n_runs) & asked
        at = changed.flatten(0, 1).nonzero(as_tuple=True)
        if len(at[0]) > _MOST * changed.numel():
            return forward(*args, **kwargs)
        result = repeated(call.output, n_runs)
        if len(at[0]):
            few_args, few_kwargs = tree_unflatten(
                [leaf[at][None] if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
            )
            result[at] = forward(*few_args, **few_kwargs)[0]
        return result

    return run


def _changed(leaves: list[Any], recorded: list[Any], n_runs: int) -> Bool[Tensor, "run batch pos"]:
    """Where any of a component's inputs differs from the recorded ones in any bit."""
    pairs = [(new, old) for new, old in zip(leaves, recorded, strict=True) if isinstance(new, Tensor)]
    return torch.stack([_differs(new.unflatten(0, (n_runs, -1)).flatten(3), old.flatten(2)) for new, old in pairs]).any(0)


def _differs(
    new: Shaped[Tensor, "run batch pos channel"], old: Shaped[Tensor, "batch pos channel"]
) -> Bool[Tensor, "run batch pos"]:
    """Eight bytes at a time where that is possible: this comparison is what picking out positions costs."""
    if _in_words(new) and _in_words(old):
        new, old = new.view(torch.int64), old.view(torch.int64)
    differs = new != old
    return (differs.view(torch.int64) if _in_words(differs) else differs).any(-1)


def _in_words(tensor: Tensor) -> bool:
    bytes_each = tensor.element_size()
    return tensor.is_contiguous() and (tensor.shape[-1] * bytes_each) % 8 == 0 and (tensor.storage_offset() * bytes_each) % 8 == 0


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding."""
    if found.shape != expected.shape:
        return False
    return expected.numel() == 0 or torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def repeated(output: Any, n_runs: int) -> Any:
    """What a component gave, once for each run; each may be changed in place."""
    return tree_map_only(Tensor, lambda tensor: tensor.repeat(n_runs, *[1] * (tensor.ndim - 1)), output)
