"""Circuits as OpenAI published them: `viz_data.pt`, read without believing it, and put into this package's terms.

Source of the schema: openai/circuit_sparsity, `circuit_sparsity/viz.py`. No published file was at hand: what that viewer reads is
all that is known of the format. It does not use `pair_data_connections`, and `samples` only to show the documents that activate a
node; neither is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.masking import Reference, mean_reference
from sparse_lens.circuits.search.nodes import DEFAULT_TARGET, default_windows
from sparse_lens.circuits.sites import NodeSpace, Site, full_mask, model_fingerprint, node_space
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.hooks.names import reference_hook_name

BIAS = "bias"
"""What a pair's last source or target is called when it is the constant."""

PublishedNode = tuple[str, int | str]
"""A location and a channel there, or `BIAS`."""


@dataclass(frozen=True)
class PublishedEdge:
    """One edge; `delta` is a difference of task losses on the file's scale, which the viewer does not halve."""

    source: PublishedNode
    target: PublishedNode
    delta: float


@dataclass(frozen=True, eq=False)
class PublishedPair:
    """The edges between two locations: `deltas [source target]`, zero where there is none."""

    source: str
    target: str
    sources: tuple[int | str, ...]
    targets: tuple[int | str, ...]
    deltas: Float[Tensor, "source target"]

    def edges(self) -> Iterator[PublishedEdge]:
        """The edges that are not zero, source by source."""
        for i, j in self.deltas.nonzero().tolist():
            yield PublishedEdge((self.source, self.sources[i]), (self.target, self.targets[j]), float(self.deltas[i, j]))


@dataclass(frozen=True, eq=False)
class PublishedCircuit:
    """A published circuit: `kept` nodes by the reference's location ("2.mlp.post_act"), and what was measured of them.

    Losses stand as in the file: two-sided sums in nats. The viewer calls every stored loss twice the true one and halves `loss`
    (before pruning), `interv_loss` (after pruning) and the losses without one node (`node_losses`), **but not** those without one
    sublayer (`layer_losses`, by "2.attn", "2.mlp"): check their scale on the file at hand. Properties named `halved_...` are what
    the viewer shows. Node and layer losses are losses, not differences; the deltas of edges are differences.

    `task_prompts` are token ids without the padding (id 0) on the right, the first half of one answer, the second of the other.
    `task_activations` are `[prompt pos]` by location and channel, mapped to the file; `search_losses` are (step, loss).
    """

    kept: Mapping[str, tuple[int, ...]]
    loss: float
    interv_loss: float
    node_losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    layer_losses: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[PublishedPair, ...] = ()
    task_prompts: tuple[tuple[int, ...], ...] = ()
    task_activations: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    search_losses: tuple[tuple[float, float], ...] = ()
    n_total_nodes: int | None = None
    prune_config: Mapping[str, Any] = field(default_factory=dict)
    model_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_nodes(self) -> int:
        """The circuit's size k."""
        return sum(len(channels) for channels in self.kept.values())

    @property
    def halved_loss(self) -> float:
        """Loss of the whole model, in nats per prompt."""
        return self.loss / 2

    @property
    def halved_interv_loss(self) -> float:
        """Loss of the circuit, in nats per prompt."""
        return self.interv_loss / 2

    @property
    def halved_node_losses(self) -> dict[str, tuple[float, ...]]:
        """Loss of the circuit without each of its nodes, in nats per prompt, in the order of `kept`."""
        return {name: tuple(loss / 2 for loss in losses) for name, losses in self.node_losses.items()}

    def edges(self) -> Iterator[PublishedEdge]:
        """All edges that are not zero, those from biases included."""
        for pair in self.pairs:
            yield from pair.edges()

    def to_circuit(
        self,
        bridge: Any,
        *,
        task: str,
        reference: Mapping[str, Reference] | None = None,
        windows: Int[np.ndarray, "window pos"] | None = None,
        target_loss: float = DEFAULT_TARGET,
        progress: bool = False,
    ) -> Circuit:
        """This circuit in `bridge`, which has to be the model it was found in, ready for `score_circuit`.

        The file holds no ablation values: `reference` gives them by site, or they are the means over `windows` (token ids; by
        default those that come with the model). The circuit's loss is the published one, halved: of other prompts than this
        package's task of that name. Raises `CircuitError` if locations or channels do not exist in the bridge. Nothing in the file
        identifies the model's weights: another model of the same shape cannot be told apart.
        """
        space = node_space(bridge)
        mask = _mask(self.kept, space)
        if reference is None:
            reference = mean_reference(bridge, space, default_windows(bridge) if windows is None else windows, progress=progress)
        search = {
            "source": "published viz_data.pt",
            "loss_before_pruning": self.halved_loss,
            "nodes_to_choose_from": self.n_total_nodes,
            "prune_config": dict(self.prune_config),
        }
        fingerprint = model_fingerprint(bridge)
        return Circuit(mask, space, reference, task, fingerprint, target_loss, self.halved_interv_loss, search)


def _mask(kept: Mapping[str, tuple[int, ...]], space: NodeSpace) -> Bool[Tensor, " node"]:
    """The nodes at the reference's locations; raises `CircuitError` for those that the space does not have."""
    sites, mask = _sites_by_location(space), full_mask(space, keep=False)
    for location, channels in kept.items():
        if (site := sites.get(location)) is None:
            raise CircuitError(
                f"the published circuit keeps nodes at {location!r}, which this bridge does not have (its last site but one is "
                f"{space.sites[-2].name!r}); load the model that the circuit was found in"
            )
        if beyond := [channel for channel in channels if not 0 <= channel < site.n_latents]:
            raise CircuitError(
                f"the published circuit keeps channel {beyond[0]} at {location!r}, where this bridge has {site.n_latents}; "
                "load the model that the circuit was found in"
            )
        mask[space.slices[site.name]][list(channels)] = True
    return mask


def _sites_by_location(space: NodeSpace) -> dict[str, Site]:
    """The sites by the reference's names of their hooks; raises `CircuitError` for decoders that it has no names for."""
    try:
        return {reference_hook_name(site.hook): site for site in space.sites}
    except UnknownNameError as error:
        raise CircuitError(
            f"published circuits are of weight-sparse transformers, this bridge is another decoder: {error}"
        ) from error
