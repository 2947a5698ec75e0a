"""Direct effects of nodes on nodes in one prompt's run, with all that is not linear held still.

The run is exact, and its backward pass is that of `relevance` with all rules: norm scales, activation functions, choices of
AbsTopK and attention patterns are constants. Every site is cut: what it hands on is a leaf. So a node is a linear function of the
leaves that are read between their site and its own, and a constant: its value is the sum of `gradient × leaf`, its direct effects
(as in "Circuit Tracing", transformer-circuits.pub, 2025), and of biases and positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.attribution.relevance import relevance_hooks, silent_norms
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.masking import Hook, Source, flat_channels, with_sources
from sparse_lens.circuits.search.learning import frozen
from sparse_lens.circuits.sites import NodeSpace, Site

_AT_ONCE = 64
"""Copies of the prompt in the run: so many nodes' direct effects come from one backward pass, each from a copy of its own."""


@dataclass(frozen=True, eq=False)
class DirectEffects:
    """What some nodes of one site owe to others.

    `nodes[site] [target pos latent]` are the effects of nodes, `tokens` those of the prompt's tokens, `rest[site]` those of
    dictionaries' errors, `constant` what biases and positions give. They add up to the targets' `value`.
    """

    value: Float[Tensor, " target"]
    nodes: Mapping[str, Float[Tensor, "target pos _"]]
    rest: Mapping[str, Float[Tensor, "target pos"]]
    tokens: Float[Tensor, "target pos"]
    constant: Float[Tensor, " target"]


@dataclass(eq=False)
class LinearRun:
    """Copies of one prompt's run, cut at every site: `values` on the graph, `leaves` what was handed on in their place.

    By site, or one for each table of tokens; the last axis is the site's latents, its channels for `errors`.
    """

    space: NodeSpace
    values: dict[str, Float[Tensor, "copy pos _"]] = field(default_factory=dict)
    leaves: dict[str, Float[Tensor, "copy pos _"]] = field(default_factory=dict)
    errors: dict[str, Float[Tensor, "copy pos _"]] = field(default_factory=dict)
    tokens: list[Float[Tensor, "copy pos _"]] = field(default_factory=list)
    logits: Float[Tensor, "copy pos vocab"] = field(default_factory=lambda: torch.zeros(0, 0, 0))

    def of_nodes(self, site: str, index: Int[Tensor, "target 2"]) -> Iterator[DirectEffects]:
        """Effects on nodes of one site, `index` their positions and latents, some at a time in that order."""
        for some in index.split(_AT_ONCE) if len(index) else ():
            yield self._effects(self.values[site][torch.arange(len(some)), some[:, 0], some[:, 1]])

    def of_logits(self, position: int, tokens: Sequence[int]) -> DirectEffects:
        """Effects on the logits of at most 64 tokens at a position."""
        return self._effects(self.logits[torch.arange(len(tokens)), position, list(tokens)])

    def _effects(self, targets: Float[Tensor, " target"]) -> DirectEffects:
        leaves = [*self.leaves.values(), *self.errors.values(), *self.tokens]
        slopes = torch.autograd.grad(targets.sum(), leaves, retain_graph=True, materialize_grads=True)
        parts = [(slope * leaf.detach())[: len(targets)] for slope, leaf in zip(slopes, leaves, strict=True)]
        n, e = len(self.leaves), len(self.errors)
        nodes = dict(zip(self.leaves, parts[:n], strict=True))
        rest = {name: part.sum(-1) for name, part in zip(self.errors, parts[n : n + e], strict=True)}
        tokens = torch.stack([part.sum(-1) for part in parts[n + e :]]).sum(0)
        known = sum(part.flatten(1).sum(1) for part in (*nodes.values(), *rest.values(), tokens))
        return DirectEffects(targets.detach(), nodes, rest, tokens, targets.detach() - known)


def linear_run(bridge: Any, space: NodeSpace, tokens: Int[Tensor, "1 pos"], circuit: Circuit | None = None) -> LinearRun:
    """Run `bridge`, as `circuit` if there is one, on a prompt, and keep what direct effects are computed from.

    Raises `CircuitError` for a circuit of another model, and for one whose ablation depends on the prompts.
    """
    run = LinearRun(space)
    cuts = with_sources(space, lambda site, source: _cut(run, site, source))
    hooks = [*relevance_hooks(bridge, freeze_patterns=True), *cuts]
    hooks += [(name, _cut_tokens(run)) for name in ("embed.hook_out", "bigram.hook_out") if name in bridge.hook_dict]
    as_circuit = nullcontext() if circuit is None else circuit.applied(bridge)
    with frozen(bridge), torch.enable_grad(), silent_norms(), as_circuit, bridge.hooks(fwd_hooks=hooks):
        run.logits = bridge(tokens.expand(_AT_ONCE, -1))
    return run


def _cut(run: LinearRun, site: Site, source: Source) -> Hook:
    """A hook that keeps a site's latents and hands on leaves with their values."""
    dictionary = site.dictionary

    def hook(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
        flat = flat_channels(tensor, site)
        latents = dictionary.encode(source.of(flat))
        leaf = run.leaves[site.name] = latents.detach().clone().requires_grad_()
        run.values[site.name] = latents
        handed_on = source.decoded(leaf, flat)
        if not dictionary.exact:
            error = run.errors[site.name] = (flat - handed_on).detach().requires_grad_()
            handed_on = handed_on + error
        return handed_on.view(tensor.shape)

    return hook


def _cut_tokens(run: LinearRun) -> Hook:
    """A hook that hands on a leaf in the place of what a table says of the tokens."""

    def hook(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
        run.tokens.append(tensor.detach().clone().requires_grad_())
        return run.tokens[-1]

    return hook
