"""Activations of a bridge at chosen hooks, one batch of tokens after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparse_lens.errors import DataError, UnknownNameError


@runtime_checkable
class Bridge(Protocol):
    """What is used of a `TransformerBridge`: its hook points by name, its configuration, its forward pass."""

    @property
    def hook_dict(self) -> Mapping[str, nn.Module]:
        """Hook points by name, aliases included."""
        ...

    @property
    def cfg(self) -> Any:
        """TransformerLens' configuration; `n_ctx`, `model_name` and `device` are read."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass."""
        ...


@torch.no_grad()
def harvest_activations(
    bridge: Bridge, hooks: Sequence[str], token_batches: Iterable[Any], *, whole: bool = False
) -> Iterator[dict[str, Float[Tensor, "token width"]]]:
    """Yield, for each batch of token ids `[batch, pos]`, the activations at `hooks`, flattened over positions.

    Batches are integer tensors or arrays, no longer than the model's context. Negative ids at the end of a row (-1, -100) are
    padding: a causal model's other positions do not see it, and nothing is yielded for it. Hooks of the user stay on and take
    effect; the ones set here are gone whenever the generator is not running.

    A forward pass ends where all of the hooks have fired, each for the first time, unless it is to be `whole`, for what hooks of
    the user or a bridge of one's own do further on. Raises `UnknownNameError` for a hook that the bridge does not have, and
    `DataError` for tokens or activations of another shape, and for padding elsewhere.
    """
    points = _points(bridge, hooks)
    ends_with = None if whole else len(points)
    for batch in token_batches:
        tokens = _checked_tokens(batch, bridge.cfg)
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name, point in points.items():
                stack.callback(point.register_forward_hook(_recorder(name, seen, ends_with)).remove)
            stack.enter_context(suppress(_AllSeen))
            bridge(tokens.clamp(min=0), return_type=None)
        yield {name: _flat(name, seen, tokens >= 0) for name in points}


def refuse_padding(tokens: Any) -> None:
    """Raise `DataError` where a batch has padding: for what goes by windows, not token by token."""
    if bool((torch.as_tensor(tokens) < 0).any()):
        raise DataError("negative token ids are padding, which this does not leave out; give windows that are whole")


def _points(bridge: Bridge, hooks: Sequence[str]) -> dict[str, nn.Module]:
    known = bridge.hook_dict
    for name in hooks:
        if name not in known:
            raise UnknownNameError("hook", name, known)
    return {name: known[name] for name in hooks}


class _AllSeen(Exception):
    """Ends a forward pass: what comes after the last hook, the unembedding among it, is often most of the work."""


def _recorder(name: str, seen: dict[str, Tensor], ends_with: int | None) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, output: Tensor) -> None:  # noqa: ARG001 - torch's signature
        seen.setdefault(name, output.detach())
        if len(seen) == ends_with:
            raise _AllSeen

    return record


def _checked_tokens(batch: Any, config: Any) -> Tensor:
    tokens = torch.as_tensor(batch)
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.is_complex() or tokens.numel() == 0:
        raise DataError(f"a batch of token ids is an integer [batch, pos], got {tokens.dtype} {tuple(tokens.shape)}")
    n_ctx = getattr(config, "n_ctx", None)
    if n_ctx and tokens.shape[1] > n_ctx:
        raise DataError(
            f"sequences of {tokens.shape[1]} tokens are longer than the model's context of {n_ctx}; "
            "cut them (of context + 1 tokens the last is a label only: batch[:, :-1])"
        )
    if bool(((tokens[:, :-1] < 0) & (tokens[:, 1:] >= 0)).any()) or not bool((tokens >= 0).any()):
        raise DataError("negative token ids are padding and stand at the end of a row; give rows that begin with their tokens")
    return tokens.long().to(getattr(config, "device", None) or "cpu")


def _flat(name: str, seen: dict[str, Tensor], kept: Bool[Tensor, "batch pos"]) -> Tensor:
    if name not in seen:
        raise DataError(f"hook {name!r} did not run in the model's forward pass; choose one that does")
    if seen[name].ndim != 3:
        raise DataError(
            f"hook {name!r} gives {tuple(seen[name].shape)}, not [batch, pos, width]; choose one with one vector per position"
        )
    return seen[name].flatten(0, 1) if bool(kept.all()) else seen[name][kept.to(seen[name].device)]
