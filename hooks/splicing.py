"""`splice`: put dictionaries into a model's hook points, with an exact forward pass and true gradients.

With the input `s` at `hook_in`, the activation `t` at `hook_out`, latents `f = encode(s)`, error `e = t - decode(f)` (of a skip
transcoder less `skip(s)`, which stays as it is in every mode):

| mode | output | gradient |
|---|---|---|
| read | `t` exactly | reaches `f` and `e` as leaves of their own, and `t` as if nothing were spliced |
| edit | `decode(f') + e'` with `(f', e') = edit(f, e)` | reaches the edit only, nothing flows on to `t` |
| learn | the same, with `f` and `e` on the graph | the true one, through every spliced site |

Use read for attribution, edit for patching and steering at one site, learn to fit masks at several sites at once (in
edit mode an upstream mask would get no gradient through a downstream site). Where the edit changes nothing, the output
is `t`, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.dictionaries import Dictionary, skipped
from sparse_lens.errors import SparseLensError, UnknownNameError
from sparse_lens.hooks.names import is_split_by_head

Mode = Literal["read", "edit", "learn"]
Edit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From latents `[*rows latent]` and error `[*rows d_out]` to those to go on with."""


@dataclass(frozen=True)
class Blend:
    """The edit `m*f + (1-m)*f_ref`, `m_e*e + (1-m_e)*e_ref`: keep what the masks keep, put references for the rest."""

    mask: Tensor | float = 1.0
    reference: Tensor | float = 0.0
    error_mask: Tensor | float = 1.0
    error_reference: Tensor | float = 0.0

    def __call__(self, latents: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.mask * latents + (1 - self.mask) * self.reference
        return kept, self.error_mask * error + (1 - self.error_mask) * self.error_reference


@dataclass(frozen=True)
class SplicedSite:
    """What one dictionary saw in the last forward pass; in read mode `latents` and `error` collect gradients.

    Heads are flat: `hook_q`, `hook_k`, `hook_v` and `hook_z` give `[batch pos head*d_head]`.
    """

    latents: Float[Tensor, "*rows latent"]
    error: Float[Tensor, "*rows d_out"]
    activation: Float[Tensor, "*rows d_out"]


@contextmanager
def splice(
    bridge: TransformerBridge,
    dictionaries: Sequence[Dictionary],
    mode: Mode = "read",
    edit: Edit | Mapping[str, Edit] | None = None,
) -> Iterator[dict[str, SplicedSite]]:
    """Run the bridge with `dictionaries` in their hook points; yields what each saw, by the dictionary's name.

    `edit` is one function for all dictionaries or one for each name (those without keep what they read). A dictionary
    may read at one hook and write at another that comes later (a transcoder). Other hooks stay alive; hooks at the same
    point that were there before run first. On leaving, also by an exception, exactly the hooks set here are removed.

    Raises `SparseLensError` for an impossible combination, `UnknownNameError` for a hook that the bridge does not have.

    Example: `with splice(bridge, [sae]) as sites: bridge(tokens)[0, -1, 5].backward()`, then
    `sites[sae.name].latents.grad`.
    """
    edits = _checked_edits(dictionaries, mode, edit)
    seen: dict[str, SplicedSite] = {}
    with ExitStack() as stack:
        for dictionary in dictionaries:
            point = _hook_point(bridge, dictionary.hook_out)
            splicer = _Splicer(dictionary, mode, edits.get(dictionary.name), seen)
            if (source := _hook_point(bridge, dictionary.hook_in)) is not point:
                splicer.reads_elsewhere = True
                stack.callback(source.register_forward_hook(splicer.capture).remove)
            stack.callback(point.register_forward_hook(splicer.replace).remove)
        yield seen


@dataclass
class _Splicer:
    """One dictionary's torch hooks; TransformerLens' own would be dropped by any `reset_hooks` inside the context."""

    dictionary: Dictionary
    mode: Mode
    edit: Edit | None
    seen: dict[str, SplicedSite]
    reads_elsewhere: bool = False
    captured: list[Tensor] = field(default_factory=list)

    def capture(self, module: Any, args: Any, output: Tensor) -> None:  # noqa: ARG002 - torch's signature
        self.captured[:] = [_flat(self.dictionary.hook_in, output)]

    def replace(self, module: Any, args: Any, output: Tensor) -> Tensor:  # noqa: ARG002 - torch's signature
        flat = _flat(self.dictionary.hook_out, output)
        return self._replaced(self._input() if self.reads_elsewhere else flat, flat).view_as(output)

    def _replaced(self, source: Tensor, output: Tensor) -> Tensor:
        if self.mode != "learn":
            source = source.detach()
        activation = output if self.mode == "learn" else output.detach()
        dtype = self._check_width(output)
        latents = self.dictionary.encode(source.to(dtype))
        decoded = self.dictionary.decode(latents)
        error = activation.to(dtype) - decoded - skipped(self.dictionary, source.to(dtype))
        if self.mode == "read":
            latents, error = latents.detach().requires_grad_(), error.detach().requires_grad_()
        self.seen[self.dictionary.name] = SplicedSite(latents, error, activation)
        if self.mode == "read":
            total = self.dictionary.decode(latents) + error
            return output + (total - total.detach()).to(output.dtype)
        if self.edit is None:
            return activation
        new_latents, new_error = self.edit(latents, error)
        change = self.dictionary.decode(new_latents) - decoded + (new_error - error)
        return activation + change.to(output.dtype)

    def _input(self) -> Tensor:
        if not self.captured:
            raise SparseLensError(
                f"dictionary {self.dictionary.name!r} reads at {self.dictionary.hook_in!r}, which did not run before "
                f"{self.dictionary.hook_out!r}; swap hook_in and hook_out"
            )
        return self.captured.pop()

    def _check_width(self, output: Tensor) -> Any:
        """The dictionary's dtype, if it writes as wide as the hook is."""
        if (width := self.dictionary.W_dec.shape[-1]) != output.shape[-1]:
            raise SparseLensError(
                f"dictionary {self.dictionary.name!r} writes {width} channels, hook {self.dictionary.hook_out!r} has "
                f"{output.shape[-1]}; give it a hook of its width"
            )
        return self.dictionary.W_dec.dtype


def _checked_edits(dictionaries: Sequence[Dictionary], mode: str, edit: Edit | Mapping[str, Edit] | None) -> dict[str, Edit]:
    """The edit of each dictionary, by name."""
    if mode not in ("read", "edit", "learn"):
        raise UnknownNameError("splice mode", str(mode), ("read", "edit", "learn"))
    if mode == "read" and edit is not None:
        raise SparseLensError("mode='read' leaves the forward pass alone, yet an edit is given; use 'edit' or 'learn'")
    names = [dictionary.name for dictionary in dictionaries]
    for what, values in (("name", names), ("hook_out", [dictionary.hook_out for dictionary in dictionaries])):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise SparseLensError(f"two dictionaries have one {what}: {', '.join(twice)}; splice them separately")
    if isinstance(edit, Mapping):
        for name in edit:
            if name not in names:
                raise UnknownNameError("dictionary", name, names)
        return dict(edit)
    return {} if edit is None else dict.fromkeys(names, edit)


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Heads as one vector, as dictionaries take them."""
    return tensor.flatten(-2) if is_split_by_head(name) and tensor.ndim == 4 else tensor


def _hook_point(bridge: TransformerBridge, name: str) -> HookPoint:
    hooks = bridge.hook_dict
    if name not in hooks:
        raise UnknownNameError("hook", name, hooks)
    return hooks[name]
