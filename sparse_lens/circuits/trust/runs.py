"""The runs that all tests of one circuit share: its model masked in some way, on one set of prompts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.compiled.masked import masked_model, node_circuit
from sparse_lens.circuits.edges.latents import hooked_mask
from sparse_lens.circuits.prompts import Prompts, per_pair
from sparse_lens.circuits.scoring import answer_differences, logit_differences, recovered_share, task_loss
from sparse_lens.circuits.sites import NodeSpace, full_mask
from sparse_lens.results import Result

Mask = Float[Tensor, " node"] | Bool[Tensor, " node"]


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """A circuit in its model on `prompts`; every run is logit differences `[row]`, the right answer's less the wrong one's.

    `batch_size` is the most prompts in one pass; results do not depend on it (but under resample ablation, whose partners come
    from the batch). A circuit of edges is run with its cut edges cut; `model` leaves all edges in.
    """

    bridge: Any
    circuit: Circuit
    prompts: Prompts
    batch_size: int = 64

    @property
    def space(self) -> NodeSpace:
        return self.circuit.space

    @property
    def n_pairs(self) -> int:
        return len(self.prompts.pair.unique())

    def of_pairs(self, n_pairs: int, *, start: int = 0) -> CircuitRuns:
        """The same on the pairs `start` to `start + n_pairs` only, or on as many of them as there are."""
        chosen = self.prompts.pair.unique()[start : start + n_pairs]
        return replace(self, prompts=self.prompts.rows(torch.isin(self.prompts.pair, chosen).nonzero().flatten()))

    @torch.no_grad()
    def model(self, mask: Mask, ablation: Ablation | None = None) -> Float[Tensor, " row"]:
        """The model with everything outside `mask` ablated as the circuit is, or by `ablation`; all edges are kept.

        It is compiled where that is possible.
        """
        ablation = self.circuit.how_ablated if ablation is None else ablation
        if mask.dtype != torch.bool:
            mixed = self.mixed(ablation)
            return torch.cat([mixed(mask, chunk) for chunk in self.chunks()])
        run = node_circuit(self.bridge, self.space, mask, ablation)
        if run is None:
            return torch.cat([self.differences(mask, chunk, ablation) for chunk in self.chunks()])
        return torch.cat([answer_differences(run(chunk), chunk) for chunk in self.chunks()])

    def mixed(self, ablation: Ablation | None = None) -> Callable[[Mask, Prompts], Float[Tensor, " row"]]:
        """`differences` for real masks, with the edges that are cut at the moment; compiled once where that is possible."""
        ablation = self.circuit.how_ablated if ablation is None else ablation
        compiled = masked_model(self.bridge, self.space, ablation)
        if compiled is None:
            return lambda mask, prompts: self.differences(mask, prompts, ablation)
        return lambda mask, prompts: answer_differences(compiled.logits(mask, prompts), prompts)

    @torch.no_grad()
    def within(self, mask: Mask, ablation: Ablation | None = None) -> Float[Tensor, " row"]:
        """As `model`, without the edges that the circuit cuts; of a circuit with edges of latents these stay as they are."""
        if self.circuit.edges is not None:
            mask = hooked_mask(self.space, mask)
        with self.edges_cut():
            return self.model(mask, ablation)

    def edges_cut(self) -> AbstractContextManager[Any]:
        """Run the model inside the block without the edges that the circuit cuts."""
        return nullcontext() if self.circuit.edges is None else self.circuit.edges.cut_in(self.bridge)

    def chunks(self) -> list[Prompts]:
        """The prompts in passes of `batch_size` rows."""
        return [self.prompts.rows(slice(start, start + self.batch_size)) for start in range(0, len(self.prompts), self.batch_size)]

    def differences(self, mask: Mask, prompts: Prompts, ablation: Ablation | None = None) -> Float[Tensor, " row"]:
        """Logit differences on some prompts, differentiable in a real `mask`."""
        ablation = self.circuit.how_ablated if ablation is None else ablation
        return logit_differences(self.bridge, prompts, ablation.hooks(self.bridge, self.space, mask, prompts))

    @cached_property
    def whole(self) -> Float[Tensor, " row"]:
        """The whole model."""
        return self.model(full_mask(self.space))

    @cached_property
    def nothing(self) -> Float[Tensor, " row"]:
        """Everything ablated."""
        return self.model(full_mask(self.space, keep=False))

    @cached_property
    def alone(self) -> Float[Tensor, " row"]:
        """The circuit."""
        return self.within(self.circuit.mask)

    @cached_property
    def without(self) -> Float[Tensor, " row"]:
        """The model without the circuit: its nodes ablated, or, where it has edges, those edges cut."""
        if self.circuit.edges is None:
            return self.model(~self.circuit.mask)
        with self.circuit.edges.removed_from(self.bridge):
            return self.model(full_mask(self.space))

    def losses(self, differences: Float[Tensor, " row"]) -> np.ndarray:
        """Two-token task loss of each pair, in nats."""
        return per_pair(task_loss(differences), self.prompts)

    def recovered(self, differences: Float[Tensor, " row"]) -> Result:
        """`(L(0) - L(run)) / (L(0) - L(M))`: 1 as good as the model, 0 as bad as with everything ablated."""
        nothing = self.losses(self.nothing)
        return recovered_share(nothing - self.losses(differences), nothing - self.losses(self.whole))

    def right(self, differences: Float[Tensor, " row"]) -> np.ndarray:
        """Share of each pair's prompts on which the right answer is ahead."""
        return per_pair((differences > 0).float(), self.prompts)

    def toward_first(self, differences: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The same differences, as the lead of whichever answer has the smaller token id: what is said, not whether it is right."""
        return torch.where(self.prompts.right < self.prompts.wrong, differences, -differences)
