"""Runs of a model again and again with one activation changed, computing only what the change reaches.

One run is recorded. Runs with a change at some hook point then go through the model many in a batch, and take from the record

- whatever was finished before that hook point fired: earlier layers, and earlier parts of its layer;
- linear layers and MLPs at positions where their input is, bit by bit, what it was;
- in the last block, what no logit that the metric reads depends on.

The model's own forward pass stays in charge: masks, positions and all between the components are its own. What is assumed of a
component (that it treats each position by itself, that only its own position's logits depend on it) is tried on the recorded run
first. A model without `blocks`, or one that calls a block twice, has nothing to take from and runs whole.

Hooks that others have set may remember something from one call to the next, or hand it on to each other. With them every changed
run is a pass of its own, and nothing with a hook inside is taken from the record, so that they are called as in a run alone. Nor
is anything in a model that draws random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparse_lens.hooks.instrumenting import add_hook, forward_as, hook_point
from sparse_lens.hooks.lazy_logits import Logits, Metric, measured, one_number
from sparse_lens.hooks.positionwise import changes_only, is_positionwise, repeated, same
from sparse_lens.hooks.recording import Recording, blocks_of, components

Edit = Callable[[Float[Tensor, "run batch *site"]], None]
"""Changes, in place, the activations of the runs of one batch."""

_READ_AT_OWN_POSITION = ("attn.q", "attn.o", "mlp")
"""Parts of the last block that may matter to the logits of their own position alone."""


class Reruns:
    """A run of `model` on `tokens` under its present hooks, and changed runs that start where the change is made.

    Raises `UnknownNameError` for a hook that the model does not have and `SparseLensError` for one that does not fire.
    """

    def __init__(self, model: Any, tokens: Int[Tensor, "batch pos"], hooks: Iterable[str]) -> None:
        self.model, self.tokens = model, tokens
        self._points = {name: hook_point(model, name) for name in hooks}
        self.recording = Recording(model, tokens, self._points)
        calls = self.recording.calls
        self._positionwise = [m for m in components(model) if m in calls and is_positionwise(m, calls[m])]
        self._blocks = blocks_of(model)
        self._read: list[int] | None = None
        self._read_at_own_position: list[nn.Module] = []

    @property
    def one_by_one(self) -> bool:
        """Whether each changed run has to be a pass of its own."""
        return self.recording.watched or self.recording.random

    def score(self, metric: Metric) -> float:
        """The metric of the recorded run; of the changed runs to come, only the logits that it reads here are computed at first."""
        recorded = self.recording.logits
        everywhere = list(range(self.tokens.shape[1]))
        logits = Logits(everywhere, recorded.clone(), recorded.shape, recorded.clone)
        value = measured(metric, logits)
        read = sorted(logits.read) or [0]  # no model takes an empty prompt
        if not self.one_by_one and read != everywhere and self._tail_is_positionwise(read):
            self._read = read
            parts = [_inside(self._blocks[-1], path) for path in _READ_AT_OWN_POSITION]
            self._read_at_own_position = [m for m in parts if m in self._positionwise and self._serves_own_position(m, read)]
        return value

    def scores(self, hook: str, edit: Edit, n_runs: int, metric: Metric) -> list[float]:
        """The metric of `n_runs` runs that differ from the recorded one by the edit at one hook.

        If it reads other positions than it did in the recorded run, these runs are made again, and from then on all wholly.
        """
        read = self._read
        if read is None:
            return [one_number(metric(run)) for run in self._whole(hook, edit, n_runs)]

        @cache
        def whole() -> Tensor:
            self._read = None  # what is left out for the sake of `read` is wrong elsewhere
            return self._whole(hook, edit, n_runs)

        with self._changed_at(hook, edit, n_runs):
            residual = self._last_block(n_runs)
        some = self._tail(residual, read, n_runs)
        shape = self.recording.logits.shape
        return [measured(metric, Logits(read, some[run], shape, lambda run=run: whole()[run])) for run in range(n_runs)]

    def _whole(self, hook: str, edit: Edit, n_runs: int) -> Float[Tensor, "run batch pos vocab"]:
        """All logits of changed runs."""
        with self._changed_at(hook, edit, n_runs):
            return self._forward(self.tokens.repeat(n_runs, 1)).unflatten(0, (n_runs, -1))

    def _forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, return_type="logits")

    @contextmanager
    def _changed_at(self, hook: str, edit: Edit, n_runs: int) -> Iterator[None]:
        """The model, ready for a batch of `n_runs` changed runs."""
        calls = self.recording.calls
        done = set(self.recording.finished_before(hook))
        with ExitStack() as stack:
            for module in done:
                stack.enter_context(forward_as(module, _always(calls[module].output, n_runs)))
            for module in self._positionwise:
                if module not in done and self._points[hook] not in module.modules():
                    done.update(module.modules())  # the parts of an MLP need no look of their own
                    wanted = self._read if module in self._read_at_own_position else None
                    stack.enter_context(forward_as(module, changes_only(module, calls[module], n_runs, wanted)))
            add_hook(stack, self._points[hook], lambda tensor: _edited(tensor, edit, n_runs))
            yield

    def _last_block(self, n_runs: int) -> Any:
        """What the last block gives."""
        last, kept = self._blocks[-1], []
        forward = last.forward

        def stop(*args: Any, **kwargs: Any) -> Any:
            kept.append(forward(*args, **kwargs))
            raise _Stop

        with forward_as(last, stop), suppress(_Stop):
            self._forward(self.tokens.repeat(n_runs, 1))
        return kept[0]

    def _tail(self, residual: Any, positions: list[int], n_runs: int) -> Float[Tensor, "run batch read vocab"]:
        """Logits at some positions, from what the last block gives: the model run on these tokens alone, past its blocks."""
        rows, length = n_runs * len(self.tokens), self.tokens.shape[1]
        at = torch.tensor(positions, device=self.tokens.device)
        short = tree_map_only(Tensor, lambda t: t[:, at] if t.shape[:2] == (rows, length) else t, residual)
        with ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(forward_as(block, _always(short, 1)))
            return self._forward(self.tokens[:, at].repeat(n_runs, 1)).unflatten(0, (n_runs, -1))

    def _tail_is_positionwise(self, positions: list[int]) -> bool:
        """Whether logits at some positions alone come out as they do among all positions."""
        call = self.recording.calls.get(self._blocks[-1]) if self._blocks else None
        return call is not None and same(self._tail(call.output, positions, 1)[0], self.recording.logits[:, positions])

    def _serves_own_position(self, module: nn.Module, positions: list[int]) -> bool:
        """Whether the last block's output at some positions stays when this part of it gives something else at all others."""
        calls = self.recording.calls
        other = calls[module].output + calls[module].output.std()
        other[:, positions] = calls[module].output[:, positions]
        with ExitStack() as stack:
            for block in self._blocks[:-1]:
                if block in calls:
                    stack.enter_context(forward_as(block, _always(calls[block].output, 1)))
            stack.enter_context(forward_as(module, _always(other, 1)))
            found, expected = (tree_leaves(output)[0] for output in (self._last_block(1), calls[self._blocks[-1]].output))
        return same(found[:, positions], expected[:, positions])


class _Stop(Exception):
    """The last block is done."""


def _always(output: Any, n_runs: int) -> Callable[..., Any]:
    """A forward pass that gives what is known already."""
    return lambda *_, **__: repeated(output, n_runs)


def _inside(block: nn.Module, path: str) -> Any:
    """A component within a block, None if it has no such part."""
    found: Any = block
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _edited(tensor: Tensor, edit: Edit, n_runs: int) -> Tensor:
    """The tensor, changed in place where it can be, as TransformerLens does it: what else holds the tensor sees the change."""
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        tensor = tensor.clone()
    edit(tensor.unflatten(0, (n_runs, -1)))
    return tensor
