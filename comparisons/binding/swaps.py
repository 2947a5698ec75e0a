"""Interventions on bindings: exchange what binds two variables, in the residual stream (arXiv:2310.17191).

The difference vectors `d_E = mean[act(E1) - act(E0)]` and `d_A = mean[act(A1) - act(A0)]` of the entities (the names' tokens) and
attributes (the values' tokens) of the first two variables are added to variable 0 and subtracted from variable 1. If bindings are
vectors that add to what is bound, the answers change places when either is done, and are restored when both are done; random
vectors of the same length change nothing.

Small models may bind otherwise: by writing the name itself next to its value. No mean over random names finds that, hence the
*exchange*: activations of the same program with its first two names exchanged are put in the place of the program's own. Where
AbsTopK reads the stream, it drops what is small of an added vector; changes are therefore given in logits as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_lens.comparisons.binding.prompts import BindingPrompts, answer_logits
from sparse_lens.dictionaries import harvest_activations

Activations = dict[str, Float[Tensor, "row pos d_model"]]
"""By hook."""

PARTS = ("attribute", "entity", "both")
"""What is intervened on: the values' tokens, the names' tokens, both."""


def stream_hooks(bridge: Any) -> list[str]:
    """What each layer reads of the residual stream."""
    return [f"blocks.{layer}.hook_resid_pre" for layer in range(int(bridge.cfg.n_layers))]


def stream(bridge: Any, prompts: BindingPrompts, hooks: Sequence[str]) -> Activations:
    """Activations at the hooks, on all prompts at once."""
    (found,) = harvest_activations(bridge, hooks, [prompts.tokens])
    return {name: values.view(*prompts.tokens.shape, -1).cpu() for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class BindingVectors:
    """The mean differences between variable 1 and variable 0, by hook, at the names' tokens and at the values'."""

    entity: Mapping[str, Float[Tensor, " d_model"]]
    attribute: Mapping[str, Float[Tensor, " d_model"]]

    def random(self, seed: int) -> BindingVectors:
        """Random vectors of the same lengths."""
        generator = torch.Generator().manual_seed(seed)

        def drawn(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: random_like(vector, generator) for name, vector in vectors.items()}

        return BindingVectors(drawn(self.entity), drawn(self.attribute))


def random_like(vectors: Float[Tensor, "*rows d"], generator: torch.Generator) -> Float[Tensor, "*rows d"]:
    """Vectors of random direction, each as long as its own."""
    drawn = torch.randn(vectors.shape, generator=generator, dtype=vectors.dtype)
    return drawn * (vectors.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))


def binding_vectors(bridge: Any, prompts: BindingPrompts, hooks: Sequence[str]) -> BindingVectors:
    """The vectors of a sample of prompts; estimate them on other prompts than they are tested on."""
    sums: dict[str, dict[str, Tensor]] = {"entity": {}, "attribute": {}}
    for batch in prompts.batches():
        activations, row = stream(bridge, batch, hooks), torch.arange(len(batch))
        for part, at in (("entity", batch.name_at), ("attribute", batch.value_at)):
            for name, values in activations.items():
                difference = (values[row, at[:, 1]].double() - values[row, at[:, 0]].double()).sum(0)
                sums[part][name] = sums[part].get(name, 0) + difference
    means = {part: {name: total / len(prompts) for name, total in by_hook.items()} for part, by_hook in sums.items()}
    return BindingVectors(means["entity"], means["attribute"])


def places(prompts: BindingPrompts, part: str) -> Int[Tensor, "row place"]:
    """The tokens of the first two variables that an intervention on `part` writes to."""
    found = {"entity": prompts.name_at[:, :2], "attribute": prompts.value_at[:, :2]}
    return torch.cat(list(found.values()), 1) if part == "both" else found[part]


def swap_logits(
    bridge: Any, prompts: BindingPrompts, hooks: Sequence[str], vectors: Mapping[str, BindingVectors]
) -> dict[str, dict[str, Float[Tensor, "row var"]]]:
    """The answers' logits when each of `vectors` is swapped at all `hooks`, by its name and by what was intervened on."""
    found: dict[str, dict[str, list[Tensor]]] = {name: {part: [] for part in PARTS} for name in vectors}
    for batch in prompts.batches():
        activations = stream(bridge, batch, hooks)
        for name, used in vectors.items():
            for part in PARTS:
                changed = _added(activations, batch, used, part)
                found[name][part].append(_logits_with(bridge, batch, changed, places(batch, part)))
    return {name: {part: torch.cat(rows) for part, rows in parts.items()} for name, parts in found.items()}


def exchange_logits(
    bridge: Any, prompts: BindingPrompts, exchanged: BindingPrompts, hook: str, *, seed: int
) -> dict[str, dict[str, Float[Tensor, "row var"]]]:
    """The same (`own`) when the stream at the hook comes from the programs with their first two names `exchanged`, row by row.

    `random`: a random vector is added instead, as long as the difference that the exchange makes there.
    """
    found: dict[str, dict[str, list[Tensor]]] = {name: {part: [] for part in PARTS[:2]} for name in ("own", "random")}
    generator = torch.Generator().manual_seed(seed)
    for batch, other in zip(prompts.batches(), exchanged.batches(), strict=True):
        before, after = (stream(bridge, part, [hook])[hook] for part in (batch, other))
        noisy = before + random_like(after - before, generator).nan_to_num()  # where nothing differs there is nothing to add
        for name, values in (("own", after), ("random", noisy)):
            for part in PARTS[:2]:
                found[name][part].append(_logits_with(bridge, batch, {hook: values}, places(batch, part)))
    return {name: {part: torch.cat(rows) for part, rows in parts.items()} for name, parts in found.items()}


def _added(activations: Activations, prompts: BindingPrompts, vectors: BindingVectors, part: str) -> Activations:
    """The activations with the vectors added to variable 0 and subtracted from variable 1."""
    row = torch.arange(len(prompts))
    changed = {name: values.clone() for name, values in activations.items()}
    for which, at, by_hook in (
        ("entity", prompts.name_at, vectors.entity),
        ("attribute", prompts.value_at, vectors.attribute),
    ):
        if part in (which, "both"):
            for name, vector in by_hook.items():
                changed[name][row, at[:, 0]] += vector.to(changed[name])
                changed[name][row, at[:, 1]] -= vector.to(changed[name])
    return changed


def _logits_with(
    bridge: Any, prompts: BindingPrompts, replacements: Activations, at: Int[Tensor, "row place"]
) -> Float[Tensor, "row var"]:
    """The answers' logits with the stream at the tokens `at` replaced, at every hook of `replacements`."""
    with ExitStack() as stack:
        for name, values in replacements.items():
            stack.callback(bridge.hook_dict[name].register_forward_hook(_writer(values, at)).remove)
        return answer_logits(bridge, prompts)


def _writer(values: Tensor, at: Tensor) -> Callable[..., Tensor]:
    row = torch.arange(len(at))[:, None]

    def write(module: nn.Module, args: Any, output: Tensor) -> Tensor:  # noqa: ARG001 - torch's signature
        changed = output.clone()
        changed[row, at] = values[row, at].to(output)
        return changed

    return write
