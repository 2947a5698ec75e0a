"""What every single node is worth, by brute force: one run for each node, with that node ablated and all others as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.ablation import Ablation, frozen_norm_hooks
from sparse_lens.circuits.attribution.relevance import silent_norms
from sparse_lens.circuits.masking import Reference, flat_channels
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import task_loss
from sparse_lens.circuits.sites import FINAL_SITE, NodeSpace, Site
from sparse_lens.errors import CircuitError
from sparse_lens.hooks.instrumenting import lock_of
from sparse_lens.hooks.reruns import Edit, Reruns

Values = Mapping[str, Reference]
"""By site, what stands in for ablated nodes; with `[row pos]` first where it depends on the prompts."""


@torch.no_grad()
def exact_effects(
    bridge: Any, space: NodeSpace, ablation: Ablation, values: Values, prompts: Prompts, *, batch_size: int, progress: bool
) -> Float[Tensor, "row node"]:
    """Rise of each prompt's task loss, in nats, if a node is ablated, for every node of the space; raises for transcoders."""
    if elsewhere := [site.name for site in space.sites if site.reads_elsewhere]:
        raise CircuitError(f"transcoder latents ({', '.join(elsewhere)}) are not ablated one by one; use another method than exact")
    effects = torch.zeros(len(prompts), space.n_nodes)
    with tqdm(total=len(prompts) * space.n_nodes, desc="ablations", disable=not progress) as bar:
        for rows in equally_long(prompts, batch_size):
            chunk = prompts.rows(rows)
            frozen = frozen_norm_hooks(bridge, chunk.tokens) if ablation.frozen_norms else []
            with lock_of(bridge), silent_norms(), bridge.hooks(fwd_hooks=frozen) if frozen else nullcontext():
                part = _Chunk(bridge, space, rows_of(values, rows, chunk), chunk)
                for site in space.sites:
                    effects[rows, space.slices[site.name]] = part.effects(site, max(1, batch_size // len(chunk)))
                    bar.update(len(chunk) * site.n_nodes)
    return effects


def equally_long(prompts: Prompts, most: int) -> Iterator[Tensor]:
    """Indices of rows that have their answer at the same position, at most so many at a time."""
    for position in prompts.position.unique().tolist():
        yield from (prompts.position == position).nonzero().flatten().split(most)


def rows_of(values: Values, rows: Tensor, chunk: Prompts) -> Values:
    """The values for some of the prompts; those that are the same for all prompts as they are."""
    length = chunk.tokens.shape[1]

    def cut(tensor: Tensor) -> Tensor:
        return tensor if tensor.ndim == 1 else tensor[rows, :length]

    return {name: Reference(cut(value.latents), cut(value.error)) for name, value in values.items()}


class _Chunk:
    """Some prompts of one length, their run recorded."""

    def __init__(self, bridge: Any, space: NodeSpace, values: Values, prompts: Prompts) -> None:
        self.prompts, self.values, self.losses = prompts, values, []
        inside = [site.hook for site in space.sites if site.kind != FINAL_SITE]
        self.reruns = Reruns(bridge, prompts.tokens, inside)
        # What reads the end of the residual stream is no part of a rerun that stops where the last block does.
        self.ends = Reruns(bridge, prompts.tokens, [site.hook for site in space.sites if site.kind == FINAL_SITE])
        self.reruns.score(self._metric)
        self.unchanged = self.losses.pop()

    def _metric(self, logits: Tensor) -> float:
        """Keeps each row's loss; the number itself is not used."""
        row = torch.arange(len(self.prompts))
        at_answer = logits[:, int(self.prompts.position[0])]
        self.losses.append(task_loss(at_answer[row, self.prompts.right] - at_answer[row, self.prompts.wrong]))
        return 0.0

    def effects(self, site: Site, n_runs: int) -> Float[Tensor, "row node"]:
        """The rise of each row's loss for each node of a site, `n_runs` nodes at a time."""
        reruns = self.ends if site.kind == FINAL_SITE else self.reruns
        activation, reference = reruns.recording.activations[site.hook], self.values[site.name]
        found = torch.zeros(len(self.prompts), site.n_nodes)
        nodes = _changing(activation, site, reference).nonzero().flatten()
        for some in nodes.split(1 if reruns.one_by_one else n_runs) if len(nodes) else ():
            self.losses.clear()
            reruns.scores(site.hook, _without(some.tolist(), site, reference), len(some), self._metric)
            found[:, some] = torch.stack(self.losses, dim=1) - self.unchanged[:, None]
        return found


def _parts(activation: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """Latents and error of a site's activation."""
    flat = flat_channels(activation, site)
    latents = site.dictionary.encode(flat)
    return latents, flat - site.dictionary.decode(latents)


def _changing(activation: Tensor, site: Site, reference: Reference) -> Bool[Tensor, " node"]:
    """Nodes that anywhere have another value than when ablated."""
    latents, error = _parts(activation, site)
    differs = (latents != reference.latents).flatten(0, 1).any(0)
    whole = torch.ones(site.n_nodes - site.n_latents, dtype=torch.bool)
    return torch.cat([differs, whole & bool((error != reference.error).any())])


def _without(nodes: Sequence[int], site: Site, reference: Reference) -> Edit:
    """An edit that ablates another node in every run."""

    def edit(activation: Tensor) -> None:
        latents, error = _parts(activation[0].clone(), site)  # the same in all runs, and about to change in the first
        decoded = site.dictionary.decode(latents)
        for run, node in zip(activation, nodes, strict=True):
            if node == site.n_latents:
                flat = decoded + reference.error
            else:
                fewer = latents.clone()
                fewer[..., node] = reference.latents[..., node]
                flat = site.dictionary.decode(fewer) + error
            run.copy_(flat.expand(*latents.shape[:-1], -1).view_as(run))

    return edit
