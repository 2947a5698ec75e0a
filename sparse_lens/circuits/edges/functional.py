"""The functional graph of a circuit's MLP nodes: how much each depends on those of earlier layers, and how few of these edges do.

An edge runs from a kept neuron or latent to one of a later layer; its effect is total: with the first ablated, attention, norms and
residual stream between them are computed anew. Neurons and latents go through the same function. Under edge patching a node sees
another at its ablation value if the edge between them is not kept, and the rest of the circuit as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.masking import Hook, Reference, flat_channels, mask_hooks
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import answer_logits
from sparse_lens.circuits.search.objectives import TASK_LOSS, Objective
from sparse_lens.circuits.sites import Site, full_mask
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result, exact, not_measurable

FAITHFUL = 0.9
"""Share of what the circuit does that the kept edges must give."""

LEAST_GAIN = 1e-3
"""Nats by which a circuit must be better than nothing, so that a share of that can be taken."""

Values = dict[str, Tensor]
"""By site, the values of all its latents on every token, `[row pos latent]`."""


@dataclass(frozen=True, eq=False)
class FunctionalGraph:
    """The kept MLP nodes of a circuit, the effect of each on every later one, and the fewest edges that are faithful.

    `effects[i, j]` is the mean change of node j, over prompts and positions up to the answer, if node i is ablated, as a share of
    j's own mean distance from its ablation value. `kept` are the largest effects, as many as it takes for a `faithfulness` of
    `FAITHFUL`: `(L(0) - L(edges)) / (L(0) - L(circuit))`, 0 being everything ablated. Error nodes are no nodes here: the circuit's
    are computed anew throughout.
    """

    nodes: tuple[tuple[str, int], ...]
    effects: Float[Tensor, "node node"]
    kept: Bool[Tensor, "node node"]
    faithfulness: Result

    @property
    def n_edges(self) -> Result:
        """The number of kept edges; not measurable where faithfulness is not."""
        if not self.faithfulness.measurable:
            return not_measurable(self.faithfulness.reason or "", n=self.faithfulness.n)
        return exact(int(self.kept.sum()), n=self.faithfulness.n)

    @property
    def n_possible(self) -> int:
        """Pairs of nodes, the first in an earlier layer."""
        layers = torch.tensor([int(site.partition(".")[2]) for site, _ in self.nodes])
        return int((layers[:, None] < layers).sum())


def functional_graph(
    bridge: Any,
    circuit: Circuit,
    prompts: Prompts,
    *,
    objective: Objective = TASK_LOSS,
    faithful: float = FAITHFUL,
    on_run: Callable[[], Any] = lambda: None,
) -> FunctionalGraph:
    """Effects between the circuit's kept MLP nodes on `prompts`, and the fewest edges at a faithfulness of `faithful`.

    The number is found by bisection along the ranking, so it is the fewest where more edges never do worse. One run of the model a
    node for the effects, one a node and bisection step for the patching. Raises `CircuitError` for an ablation that depends on the
    prompts, for a circuit with searched edges (give its nodes), and without prompts.
    """
    if not circuit.how_ablated.fixed:
        raise CircuitError(f"functional edges are cut to fixed values, not under {circuit.ablation} ablation; find a mean one")
    if circuit.edges is not None or len(prompts) == 0:
        raise CircuitError("functional edges are those of a circuit of nodes, on at least one prompt; drop its edges first")
    with torch.no_grad():
        runs = _Runs(bridge, circuit, objective.prepared(bridge, prompts), objective, on_run)
        effects = runs.effects()
        order = effects.flatten().argsort(descending=True, stable=True)[: int((effects > 0).sum())]
        kept, share = _fewest(runs, effects, order, faithful)
    return FunctionalGraph(runs.nodes, effects, kept, share)


def _fewest(runs: _Runs, effects: Tensor, order: Tensor, faithful: float) -> tuple[Tensor, Result]:
    """The shortest prefix of the ranking that is faithful, by bisection, and its faithfulness."""
    nothing, alone = runs.loss(full_mask(runs.circuit.space, keep=False)), runs.loss(runs.circuit.mask)
    n = len(runs.prompts) // 2
    if nothing - alone <= LEAST_GAIN:
        return torch.zeros_like(effects, dtype=torch.bool), not_measurable("the circuit is no better than nothing", n=n)

    def edges(size: int) -> Tensor:
        chosen = torch.zeros(effects.numel(), dtype=torch.bool)
        chosen[order[:size]] = True
        return chosen.view_as(effects)

    def share(size: int) -> float:
        return (nothing - runs.patched_loss(edges(size))) / (nothing - alone)

    low, high = -1, len(order)
    best = share(high)
    while high - low > 1:
        middle = (low + high) // 2
        if (found := share(middle)) >= faithful:
            high, best = middle, found
        else:
            low = middle
    return edges(high), exact(best, n=n)


class _RunEndedError(Exception):
    """All values that a run is for have been seen: the rest of the model, unembedding above all, need not be run."""


class _Runs:
    """Runs of one circuit in which single nodes are ablated, or see each other only over some edges."""

    def __init__(self, bridge: Any, circuit: Circuit, prompts: Prompts, objective: Objective, on_run: Callable[[], Any]) -> None:
        self.bridge, self.circuit, self.prompts, self.objective, self.on_run = bridge, circuit, prompts, objective, on_run
        self.sites = [site for site in circuit.space.sites if site.kind == "mlp_neuron"]
        self.reference = circuit.how_ablated.fixed_values()
        kept = circuit.space.split(circuit.mask)
        self.of_site = {site.name: kept[site.name][: site.n_latents].nonzero().flatten() for site in self.sites}
        self.nodes = tuple((name, int(index)) for name, indices in self.of_site.items() for index in indices)
        self.start: dict[str, int] = {}
        for name in self.of_site:
            self.start[name] = sum(len(self.of_site[earlier]) for earlier in self.start)
        self.counted = torch.arange(prompts.tokens.shape[1]) <= prompts.position[:, None]

    def values(self, mask: Tensor, reference: Mapping[str, Reference], last: Site | None = None) -> Values:
        """Values of the MLP nodes, before they are masked, up to those of the site `last` (default: of all): there the run ends."""
        found: Values = {}
        end = last or self.sites[-1]
        recorded = self.sites[: self.sites.index(end) + 1]
        own = [(site.dictionary.hook_in, self._recorder(site, found, stop=site is end)) for site in recorded]
        hooks = mask_hooks(self.circuit.space, mask, reference)
        here = [entry for entry, site in zip(own, recorded, strict=True) if not site.reads_elsewhere]
        elsewhere = [entry for entry, site in zip(own, recorded, strict=True) if site.reads_elsewhere]
        with suppress(_RunEndedError):
            answer_logits(self.bridge, self.prompts, [*here, *hooks, *elsewhere])
        self.on_run()
        return found

    def loss(self, mask: Tensor, reference: Mapping[str, Reference] | None = None) -> float:
        """Mean loss of the masked model."""
        hooks = mask_hooks(self.circuit.space, mask, reference or self.reference)
        losses = self.objective.losses(answer_logits(self.bridge, self.prompts, hooks), self.prompts)
        self.on_run()
        return float(losses.mean())

    def effects(self) -> Float[Tensor, "node node"]:
        """The mean change of every later node by ablating an earlier one, as a share of its distance from its ablation value."""
        alone = self.values(self.circuit.mask, self.reference)
        found = torch.zeros(len(self.nodes), len(self.nodes))
        for site in self.sites[:-1]:
            later = self.sites[self.sites.index(site) + 1 :]
            for place, index in enumerate(self.of_site[site.name].tolist()):
                mask = self.circuit.mask.clone()
                mask[self.circuit.space.slices[site.name].start + index] = False
                values = self.values(mask, self.reference)
                for other in later:
                    change = self._mean(values, alone, other)
                    start = self.start[other.name]
                    found[self.start[site.name] + place, start : start + len(change)] = change
        for site in self.sites:
            part = slice(self.start[site.name], self.start[site.name] + len(self.of_site[site.name]))
            own = self._mean(alone, {site.name: self.reference[site.name].latents}, site)
            found[:, part] = torch.where(own > 0, found[:, part] / own.clamp(min=1e-12), found[:, part].sign())
        return found

    def patched_loss(self, edges: Bool[Tensor, "node node"]) -> float:
        """Mean loss with every node at the value that it has over its kept edges alone."""
        values: Values = {}
        for site in self.sites:
            before = [earlier for earlier in self.sites if earlier.name in values]
            columns = torch.arange(self.start[site.name], self.start[site.name] + len(self.of_site[site.name]))
            own = torch.zeros(*self.prompts.tokens.shape, site.n_latents)
            for parents, members in _alike(edges[:, columns]):
                found = self.values(self._without(before), self._seen(values, before, parents), site)
                chosen = self.of_site[site.name][members]
                own[..., chosen] = found[site.name][..., chosen]
            values[site.name] = own
        everything = torch.ones(len(self.nodes), dtype=torch.bool)
        return self.loss(self._without(self.sites), self._seen(values, self.sites, everything))

    def _without(self, sites: list[Site]) -> Bool[Tensor, " node"]:
        """The circuit without the MLP nodes of some layers: they come from the reference."""
        mask = self.circuit.mask.clone()
        for site in sites:
            start = self.circuit.space.slices[site.name].start
            mask[start : start + site.n_latents] = False
        return mask

    def _seen(self, values: Values, sites: list[Site], parents: Bool[Tensor, " node"]) -> dict[str, Reference]:
        """The reference, with the values of `parents` in it."""
        found = dict(self.reference)
        for site in sites:
            kept, start = self.of_site[site.name], self.start[site.name]
            chosen = kept[parents[start : start + len(kept)]]
            latents = self.reference[site.name].latents.expand_as(values[site.name]).clone()
            latents[..., chosen] = values[site.name][..., chosen]
            error = self.reference[site.name].error
            found[site.name] = Reference(latents, error.expand(*latents.shape[:-1], *error.shape))
        return found

    def _mean(self, values: Values, others: Values, site: Site) -> Float[Tensor, " node"]:
        """Mean absolute difference of the site's kept nodes over all tokens up to the answer."""
        kept = self.of_site[site.name]
        difference = (values[site.name] - others[site.name])[..., kept].abs()
        return difference[self.counted].mean(0) if len(kept) else torch.zeros(0)

    def _recorder(self, site: Site, found: Values, *, stop: bool) -> Hook:
        def hook(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens passes it by name
            found[site.name] = site.dictionary.encode(flat_channels(tensor, site))
            if stop:
                raise _RunEndedError

        return hook


def _alike(columns: Bool[Tensor, "node member"]) -> list[tuple[Bool[Tensor, " node"], list[int]]]:
    """The different columns, and which members have each: they share a run."""
    groups: dict[bytes, list[int]] = {}
    for member, column in enumerate(columns.T):
        groups.setdefault(column.numpy().tobytes(), []).append(member)
    return [(columns[:, members[0]], members) for members in groups.values()]
