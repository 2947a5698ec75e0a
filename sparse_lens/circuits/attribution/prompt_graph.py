"""The attribution graph of one prompt: its nodes, pruned to a share of all influence, and their direct effects on each other.

A node is a channel (or latent) of a site at a position. With norm scales, activation functions, choices of AbsTopK and attention
patterns held still, each node is the sum of the effects on it (`direct_effects`), and in the graph that is written it still is:
what is pruned stays as one error node for each site and position, and biases and positions as one "constants" node for each
position. Queries and keys act through patterns alone, so they never have influence here.

Influence is that of "Circuit Tracing" (Ameisen et al., transformer-circuits.pub, 2025): a node hands its influence on to those that
feed it, in proportion to the size of their effects. It starts at the first answer's logit, or at its difference to the second's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.circuits.attribution.direct_effects import DirectEffects, LinearRun, linear_run
from sparse_lens.circuits.attribution.prompt_nodes import Marks, written_graph
from sparse_lens.circuits.attribution.prompt_tokens import EncodedPrompt, encode_prompt
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.exchange.attribution_graph import AttributionGraph, LogitTarget
from sparse_lens.circuits.sites import NodeSpace, full_mask, model_fingerprint, node_space
from sparse_lens.errors import CircuitError
from sparse_lens.tasks.batch import PromptPair


def attribute_prompt(
    bridge: Any,
    prompt: str | PromptPair | Sequence[int],
    answers: Sequence[str | int] = (),
    *,
    circuit: Circuit | None = None,
    space: NodeSpace | None = None,
    keep: float = 0.8,
    smallest: float = 1e-3,
) -> AttributionGraph:
    """Who drove whom on one prompt, as a graph that `write_graph_json` writes.

    The prompt is a text (read behind an end-of-text token, as in tasks), token ids, or a task's pair, whose clean side is explained
    and whose two answers are the targets. `answers` are one or two tokens, texts or ids; by default the likeliest next token. Nodes
    are kept, the most influential first, until they have the share `keep` of all influence; those with less than `smallest` of it,
    where the targets have 1, are not looked behind. With a `circuit` the model runs as that circuit and only its nodes are shown.
    `space` has dictionaries, if any. Works on any decoder that `node_space` takes.

    Raises `CircuitError` for impossible shares, answers that are not one token each, prompts longer than the context, and a
    circuit of another model or of an ablation that depends on the prompts.
    """
    if not (0 < keep <= 1 and 0 < smallest <= 1):
        raise CircuitError(f"keep and smallest are shares in (0, 1], got {keep} and {smallest}")
    encoded = encode_prompt(bridge, prompt, answers)
    if circuit is not None:
        space, mask = circuit.space, circuit.mask
    else:
        space = node_space(bridge) if space is None else space
        mask = full_mask(space)
    run = linear_run(bridge, space, torch.tensor([encoded.tokens]), circuit)
    probabilities = run.logits[0, -1].detach().softmax(-1)
    if not encoded.answers:
        encoded = replace(encoded, answers=(int(probabilities.argmax()),))
    kept = _kept_nodes(run, encoded, _candidates(run, mask), keep, smallest)
    nodes, edges = written_graph(run, encoded, kept)
    targets = tuple(LogitTarget(t, encoded.text_of(t), float(probabilities[t])) for t in encoded.answers)
    layers = 1 + max(site.layer for site in space.sites if site.layer is not None)
    name = str(getattr(bridge.cfg, "model_name", "") or model_fingerprint(bridge))
    return AttributionGraph(name, layers, encoded.texts, nodes, edges, targets, "".join(encoded.texts))


def _candidates(run: LinearRun, mask: Bool[Tensor, " node"]) -> Marks:
    """By site, the latents that may be shown: those in `mask`, at the positions at which they are not zero."""
    parts = run.space.split(mask)
    return {site.name: (run.leaves[site.name][0].detach() != 0) & parts[site.name][: site.n_latents] for site in run.space.sites}


def _starting(run: LinearRun, prompt: EncodedPrompt) -> DirectEffects:
    """Effects on the first answer's logit, or on its difference to the second's, as on one target."""
    effects = run.of_logits(len(prompt.tokens) - 1, prompt.answers)
    signs = torch.tensor([1.0, -1.0][: len(prompt.answers)])

    def joined(part: Tensor) -> Tensor:
        return torch.tensordot(signs, part, dims=1)[None]

    nodes, rest = ({name: joined(part) for name, part in parts.items()} for parts in (effects.nodes, effects.rest))
    return DirectEffects(joined(effects.value), nodes, rest, joined(effects.tokens), joined(effects.constant))


def _size(effects: DirectEffects) -> Float[Tensor, " target"]:
    """Sum of the sizes of all effects on each target, never zero."""
    parts = [*effects.nodes.values(), *effects.rest.values(), effects.tokens, effects.constant[:, None]]
    return torch.stack([part.abs().flatten(1).sum(1) for part in parts]).sum(0).clamp(min=1e-30)


def _kept_nodes(run: LinearRun, prompt: EncodedPrompt, candidates: Marks, keep: float, smallest: float) -> Marks:
    """The most influential candidates, until they have, with the tokens, the share `keep` of all influence."""
    influence = {name: torch.zeros(marks.shape) for name, marks in candidates.items()}
    elsewhere = 0.0

    def hand_on(effects: DirectEffects, share: Float[Tensor, " target"]) -> float:
        weights = share / _size(effects)
        for name, part in effects.nodes.items():
            influence[name] += torch.tensordot(weights, part.abs(), dims=1)
        return float(weights @ effects.tokens.abs().sum(1))

    elsewhere += hand_on(_starting(run, prompt), torch.ones(1))
    for site in reversed(run.space.sites):
        index = (candidates[site.name] & (influence[site.name] >= smallest)).nonzero()
        start = 0
        for effects in run.of_nodes(site.name, index):
            some = index[start : start + len(effects.value)]
            elsewhere += hand_on(effects, influence[site.name][some[:, 0], some[:, 1]])
            start += len(some)
    return _largest(influence, candidates, keep, smallest, elsewhere)


def _largest(influence: dict[str, Tensor], candidates: Marks, keep: float, smallest: float, elsewhere: float) -> Marks:
    """Candidates in order of influence until they and what is `elsewhere` make up the share `keep`."""
    flat = torch.cat([(part * candidates[name]).flatten() for name, part in influence.items()])
    order = flat.argsort(descending=True, stable=True)
    wanted = keep * (float(flat.sum()) + elsewhere) - elsewhere
    n = int((flat[order].cumsum(0) < wanted).sum()) + 1 if wanted > 0 else 0
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[:n]] = True
    chosen &= flat >= smallest
    sizes = [part.numel() for part in influence.values()]
    return {name: part.view(influence[name].shape) for name, part in zip(influence, chosen.split(sizes), strict=True) if part.any()}
