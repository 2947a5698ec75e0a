"""What every node is worth to a task: by one backward pass, by several, by relevance, or exactly, by ablating one after the other.

| method | score of a node | passes | arXiv |
|---|---|---|---|
| `eap` | slope of the loss at the whole model, times the change | 1 backward | 2310.10348 |
| `eap_ig` | the same, averaged while the node's site goes from ablated to kept | steps × sites | 2403.17806, 2403.19647 |
| `relp` | as `eap`, with the propagation rules of `relevance` in the place of slopes | 1 backward | 2508.21258 |
| `exact` | the loss with the node ablated, less the loss of the model | 1 forward a node | |

All have one sign and unit: the rise of the task loss, in nats, if this node alone is ablated; negative where ablating it helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.ablation import Ablation, AblationKind, frozen_norm_hooks
from sparse_lens.circuits.attribution.exact_ablation import Values, exact_effects, rows_of
from sparse_lens.circuits.attribution.relevance import relevance_hooks, silent_norms
from sparse_lens.circuits.circuit import NOT_MEASURED, Circuit
from sparse_lens.circuits.masking import Hook, Reference, Source, flat_channels, mean_reference
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.scoring import logit_differences, task_loss
from sparse_lens.circuits.search.learning import frozen
from sparse_lens.circuits.search.nodes import DEFAULT_TARGET, default_windows
from sparse_lens.circuits.sites import NodeSpace, Site, full_mask, model_fingerprint, node_space
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.tasks import AnyTask, TaskBatch, get_task

if TYPE_CHECKING:
    import pandas as pd

AttributionMethod = Literal["eap", "eap_ig", "relp", "exact"]


@dataclass(frozen=True, eq=False)
class NodeAttribution:
    """Scores of all nodes of `space`, in nats of task loss, for every pair of prompts (`per_pair`, the mean of its two sides)."""

    per_pair: Float[Tensor, "pair node"]
    space: NodeSpace
    ablation: Ablation
    task: str
    model: str
    method: str

    @property
    def scores(self) -> Float[Tensor, " node"]:
        """Rise of the mean task loss, in nats, if a node is ablated."""
        return self.per_pair.mean(0)

    @property
    def ranking(self) -> Int[Tensor, " node"]:
        """Indices of the nodes, those first whose ablation costs most; equal ones in the order of the space."""
        return self.scores.argsort(descending=True, stable=True)

    def circuit(self, n_nodes: int, *, target_loss: float = DEFAULT_TARGET) -> Circuit:
        """The circuit of the first `n_nodes` of the ranking, not measured; raises `CircuitError` for an impossible number."""
        if not 0 <= n_nodes <= self.space.n_nodes:
            raise CircuitError(f"a circuit of this space has 0 to {self.space.n_nodes} nodes, {n_nodes} were asked for")
        mask = full_mask(self.space, keep=False)
        mask[self.ranking[:n_nodes]] = True
        return Circuit(
            mask=mask,
            space=self.space,
            reference=self.ablation.means,
            task=self.task,
            model=self.model,
            target_loss=target_loss,
            loss=NOT_MEASURED,
            search={"source": "attribution", "method": self.method, "pairs": len(self.per_pair)},
            ablation=self.ablation.kind,
            frozen_norms=self.ablation.frozen_norms,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a node, the dearest first: `site`, `layer` (-1: final_resid), `kind`, `hook`, `index`, `latent`, `score`."""
        frame = Circuit(full_mask(self.space), self.space, self.ablation.means, self.task, self.model, 0.0, 0.0).to_frame()
        return frame.assign(score=self.scores.numpy()).iloc[self.ranking.numpy()].reset_index(drop=True)


def attribute_nodes(
    bridge: Any,
    task: str | AnyTask | TaskBatch | Prompts,
    *,
    method: str = "eap_ig",
    space: NodeSpace | None = None,
    ablation: Ablation | AblationKind = "mean",
    n_pairs: int = 64,
    steps: int = 5,
    freeze_patterns: bool = False,
    windows: np.ndarray | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> NodeAttribution:
    """The score of every node of `space` (by default all channels of all sites) on a task, `n_pairs` pairs of it, or given prompts.

    Works on any decoder that `node_space` takes. `steps` are those of `eap_ig`, `freeze_patterns` is RelP's AH-rule; `windows` give
    the means, by default those that come with the model. No result depends on `batch_size`, the most sequences in one pass. Raises
    `UnknownNameError` for another method, task or ablation, `CircuitError` where no windows fit.
    """
    if method not in get_args(AttributionMethod):
        raise UnknownNameError("attribution method", method, get_args(AttributionMethod))
    if min(n_pairs, steps, batch_size) < 1:
        raise CircuitError(f"pairs, steps and batch size must be at least 1, got {n_pairs}, {steps} and {batch_size}")
    prompts, name = task_prompts(bridge, task, n_pairs, seed)
    space = node_space(bridge) if space is None else space
    if not isinstance(ablation, Ablation):
        means = mean_reference(bridge, space, default_windows(bridge) if windows is None else windows, progress=progress)
        ablation = Ablation(means, ablation, seed=seed)
    values = ablation._values(bridge, space, prompts)
    if method == "exact":
        effects = exact_effects(bridge, space, ablation, values, prompts, batch_size=batch_size, progress=progress)
    else:
        slopes = _Slopes(bridge, space, ablation, values, relp=method == "relp", freeze_patterns=freeze_patterns)
        effects = slopes.effects(prompts, steps if method == "eap_ig" else 0, batch_size, progress=progress)
    return NodeAttribution(_per_pair(effects, prompts), space, ablation, name, model_fingerprint(bridge), method)


def task_prompts(bridge: Any, task: str | AnyTask | TaskBatch | Prompts, n_pairs: int, seed: int) -> tuple[Prompts, str]:
    """Prompts as rows and the task's name; of a task, `n_pairs` pairs of its search templates."""
    if isinstance(task, Prompts):
        return task, "prompts"
    if isinstance(task, TaskBatch):
        return both_sides(task), "prompts"
    if bridge.tokenizer is None:
        raise CircuitError("the model has no tokenizer, so no prompts can be made; give prompts as token ids (a TaskBatch)")
    task = get_task(task) if isinstance(task, str) else task
    return both_sides(task.sample(bridge.tokenizer, n_pairs, seed=seed, split="search")), task.name


def _per_pair(effects: Float[Tensor, "row node"], prompts: Prompts) -> Float[Tensor, "pair node"]:
    """The mean of each pair's rows."""
    _, pair = prompts.pair.unique(return_inverse=True)
    counts = torch.bincount(pair)
    return torch.zeros(len(counts), effects.shape[1]).index_add_(0, pair, effects) / counts[:, None]


class _Slopes:
    """Slopes of each prompt's loss in gates on the nodes: 1 keeps a node, 0 ablates it."""

    def __init__(
        self, bridge: Any, space: NodeSpace, ablation: Ablation, values: Values, *, relp: bool, freeze_patterns: bool
    ) -> None:
        self.bridge, self.space, self.ablation, self.values = bridge, space, ablation, values
        self.rules = relevance_hooks(bridge, freeze_patterns=freeze_patterns) if relp else []

    def effects(self, prompts: Prompts, steps: int, batch_size: int, *, progress: bool) -> Float[Tensor, "row node"]:
        """At the whole model, all sites at once; with `steps`, one site after the other on its way from ablated to kept."""
        sites = [[site] for site in self.space.sites] if steps else [list(self.space.sites)]
        levels = [(step + 0.5) / steps for step in range(steps)] or [1.0]
        effects = torch.zeros(len(prompts), self.space.n_nodes)
        chunks = torch.arange(len(prompts)).split(batch_size)
        with frozen(self.bridge), torch.enable_grad(), silent_norms():
            for rows in tqdm(chunks, desc="attribution", disable=not progress):
                chunk = prompts.rows(rows)
                hooks = frozen_norm_hooks(self.bridge, chunk.tokens) if self.ablation.frozen_norms else []
                values = rows_of(self.values, rows, chunk)
                for some in sites:
                    for level in levels:
                        for site, slope in zip(some, self._slopes(chunk, some, level, values, hooks), strict=True):
                            effects[rows, self.space.slices[site.name]] -= slope / len(levels)
        return effects

    def _slopes(
        self, prompts: Prompts, sites: Sequence[Site], level: float, values: Values, hooks: list[tuple[str, Hook]]
    ) -> list[Float[Tensor, "row node"]]:
        gates = [torch.full((len(prompts), 1, site.n_nodes), level, requires_grad=True) for site in sites]
        gated: list[tuple[str, Hook]] = []
        for site, gate in zip(sites, gates, strict=True):
            source = Source(site)
            gated += [*source.hooks(), (site.hook, _gated(site, source, gate, values[site.name]))]
        loss = task_loss(logit_differences(self.bridge, prompts, [*self.rules, *hooks, *gated])).sum()
        # With patterns frozen, nothing depends on queries and keys.
        return [slope[:, 0] for slope in torch.autograd.grad(loss, gates, materialize_grads=True)]


def _gated(site: Site, source: Source, gate: Float[Tensor, "row 1 node"], reference: Reference) -> Hook:
    """As `mask_hooks`, with another gate for every row."""
    dictionary, n = site.dictionary, site.n_latents

    def hook(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
        flat = flat_channels(tensor, site).to(gate.dtype)
        latents = dictionary.encode(source.of(flat))
        blended = source.decoded(torch.lerp(reference.latents.expand_as(latents), latents, gate[..., :n]), flat)
        if not dictionary.exact:
            error = flat - source.decoded(latents, flat)
            blended = blended + torch.lerp(reference.error.expand_as(error), error, gate[..., n:])
        return blended.view(tensor.shape).to(tensor.dtype)

    return hook
