"""One run of a model, recorded: what every component of every block took and gave, and in which order with the hook points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import LinearBridge, MLPBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from sparse_lens.errors import SparseLensError
from sparse_lens.hooks.instrumenting import add_hook, forward_as, watched_modules

_POSITIONWISE = (LinearBridge, MLPBridge)
"""Components that usually treat each position by itself."""


@dataclass(eq=False)
class Call:
    """What a module gave, and when it was done; what it took (`leaves` of `structure`) if it may treat each position by itself."""

    output: Any
    finished: int
    leaves: list[Any]
    structure: Any


class Recording:
    """A run of `model` on `tokens` under its present hooks.

    `logits` `[batch pos vocab]`; `activations` and `fired` by the names of `points`; `calls` by module, without those that were
    called twice, that give something else than `[batch pos ...]`, or that someone watches. `watched`: whether anyone watches
    anything; `random`: whether the run drew random numbers, as dropout does, so that no other is like it.

    Raises `SparseLensError` if one of the `points` does not fire.
    """

    logits: Float[Tensor, "batch pos vocab"]

    def __init__(self, model: Any, tokens: Int[Tensor, "batch pos"], points: Mapping[str, HookPoint]) -> None:
        self.tokens = tokens
        self.activations: dict[str, Tensor] = {}
        self.fired: dict[str, int] = {}
        self.calls: dict[nn.Module, Call] = {}
        self._twice: set[nn.Module] = set()
        self._clock = 0
        others = watched_modules(model)
        self.watched = bool(others)
        before = _random_state(tokens.device)
        with ExitStack() as stack:
            for module in components(model):
                stack.enter_context(forward_as(module, self._recorder(module)))
            for name, point in points.items():
                add_hook(stack, point, lambda tensor, name=name: self._remember(name, tensor))
            self.logits = model(tokens, return_type="logits")
        self.random = not torch.equal(before, _random_state(tokens.device))
        for module in list(self.calls):
            if self.random or module in self._twice or not others.isdisjoint(module.modules()):
                del self.calls[module]
        if silent := [name for name in points if name not in self.activations]:
            raise SparseLensError(f"{silent[0]} does not fire in this model as it is set; switch on what computes it")

    def finished_before(self, hook: str) -> list[nn.Module]:
        """The modules that were done when the hook fired."""
        return [module for module, call in self.calls.items() if call.finished < self.fired[hook]]

    def _recorder(self, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        @wraps(forward)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            leaves, structure = tree_flatten((args, kwargs) if isinstance(module, _POSITIONWISE) else ())
            leaves = tree_map_only(Tensor, torch.clone, leaves)  # a hook may yet change them in place
            output = forward(*args, **kwargs)
            self._clock += 1
            if module in self.calls:
                self._twice.add(module)
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            batched = all(tensor.shape[:1] == self.tokens.shape[:1] for tensor in tensors)
            if tensors and batched and tensors[0].shape[:2] == self.tokens.shape:
                kept = tree_map_only(Tensor, torch.clone, output)
                self.calls[module] = Call(kept, self._clock, leaves, structure)
            return output

        return recorded

    def _remember(self, name: str, tensor: Tensor) -> None:
        self._clock += 1
        self.fired.setdefault(name, self._clock)
        self.activations.setdefault(name, tensor.clone())


def blocks_of(model: Any) -> list[nn.Module]:
    """The model's layers."""
    return list(getattr(model, "blocks", None) or [])


def components(model: Any) -> list[nn.Module]:
    """The blocks, and all bridge components inside them, each once."""
    found = (module for block in blocks_of(model) for module in block.modules())
    return list(dict.fromkeys(module for module in found if isinstance(module, GeneralizedComponent)))


def _random_state(device: torch.device) -> Tensor:
    """States of the generators that a run on this device may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "mps":
        states.append(torch.mps.get_rng_state())
    elif device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return torch.cat(states)
