"""Changes to a model that last for a block of code and leave nothing behind, and whether someone else has made any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from sparse_lens.errors import UnknownNameError

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


_HARMLESS = ("transformer_lens.", "transformers.")
"""TransformerLens reads the residual stream by a hook before ln1 and ln2, transformers collects outputs where asked to."""


def lock_of(model: nn.Module) -> Any:
    """A lock for changes to this model: two threads would see each other's. A thread that has it may take it again."""
    return _LOCKS.setdefault(model, RLock())


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module with another forward pass; its hooks stay its own."""
    before = vars(module).get("forward")
    object.__setattr__(module, "forward", forward)  # past the bridge, which would set it on the wrapped module
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(module, "forward")
        else:
            object.__setattr__(module, "forward", before)


def add_hook(stack: ExitStack, point: HookPoint, function: Callable[[Tensor], Tensor | None]) -> None:
    """A hook after those that are there, until the stack closes."""
    point.add_hook(lambda tensor, hook: function(tensor))  # noqa: ARG005 - TransformerLens' signature
    handle = point.fwd_hooks[-1]

    def remove() -> None:
        handle.hook.remove()
        point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]

    stack.callback(remove)


def hook_point(model: Any, name: str) -> HookPoint:
    """The hook point of that name; raises `UnknownNameError` for one that the model does not have."""
    hooks = model.hook_dict
    if name not in hooks:
        raise UnknownNameError("hook", name, hooks)
    return hooks[name]


def watched_modules(model: Any) -> set[nn.Module]:
    """The modules with a forward hook that someone has set: hook points with any, other modules with one of torch's."""
    original = getattr(model, "original_model", None)
    modules = {*model.modules(), *(original.modules() if isinstance(original, nn.Module) else ())}
    return {module for module in modules if _is_watched(module)}


def _is_watched(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if isinstance(module, HookPoint):
        return bool(hooks)
    return any(not str(getattr(hook, "__module__", "")).startswith(_HARMLESS) for hook in hooks)
