"""What is measured of a circuit on a curve: its divergence from its own model, here and elsewhere, and under other ablations.

| name | KL(model, circuit) in nats, whole vocabulary |
|---|---|
| `kl_search` | at the answer, on prompts of the search templates that no mask was learned on |
| `kl_heldout` | at the answer, on held-out templates and words |
| `kl_rephrased` | at the answer, on held-out templates behind unrelated lines, with other names: shifted prompts |
| `kl_natural` | at all positions of windows of real files |
| `kl_mean`, `kl_zero`, `kl_counterfactual` | as `kl_heldout`, with everything outside the circuit set that way |
| `kl_adversarial` | with everything outside at the worst mixture of its mean and its own value, found on search prompts |
| `kl_random` | as `kl_heldout`, of random circuits as large at every site, with the same error nodes: mean and range of three |

`loss_...` are two-token task losses of the same runs, `loss_model` that of the whole model. `null` of a KL is that of everything
ablated in the same way. Searched edges stay cut: over them flow the means that they were found with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits import Ablation, AblationKind, Circuit, both_sides, mask_hooks
from sparse_lens.circuits.compiled.masked import masked_model, node_circuit
from sparse_lens.circuits.compiled.nodes import Logits
from sparse_lens.circuits.edges.latents import hooked_mask
from sparse_lens.circuits.prompts import Prompts, per_pair
from sparse_lens.circuits.scoring import answer_differences, answer_logits, task_loss
from sparse_lens.circuits.search.problems import SearchProblem
from sparse_lens.circuits.sites import NodeSpace, full_mask
from sparse_lens.circuits.trust.draws import random_like
from sparse_lens.circuits.trust.mixtures import worst_mixture
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.results import Result, bootstrap_mean
from sparse_lens.tasks import get_task

ATTACK_PAIRS = 16
"""Search pairs that the adversarial mixture is fitted on."""

RANDOM_DRAWS = 3
"""Random circuits that each circuit is held against."""

SURVIVAL: tuple[AblationKind, ...] = ("mean", "zero", "counterfactual")

_ROWS, _WINDOWS = 128, 8


@dataclass(frozen=True, eq=False)
class CurvePrompts:
    """What a curve's circuits are measured on; the same for all points, and, but for `attack`, for all search seeds."""

    search: Prompts
    attack: Prompts
    heldout: Prompts
    rephrased: Prompts
    windows: Int[np.ndarray, "window pos"]

    @classmethod
    def sample(cls, problem: SearchProblem, task: str, windows: np.ndarray, n_pairs: int, *, seed: int) -> CurvePrompts:
        """Held-out and rephrased prompts of a task, beside those of a search."""
        tokenizer = problem.bridge.tokenizer
        heldout, rephrased = (
            both_sides(get_task(task).sample(tokenizer, n_pairs, seed=seed, split=split)) for split in ("heldout", "rephrased")
        )
        chosen = problem.search_prompts.pair.unique()[:ATTACK_PAIRS]
        attack = problem.search_prompts.rows(torch.isin(problem.search_prompts.pair, chosen).nonzero().flatten())
        return cls(problem.evaluation_prompts, replace(attack, model_log_probs=None), heldout, rephrased, windows)


@torch.no_grad()
def model_accuracy(bridge: Any, prompts: Prompts) -> Result:
    """Share of prompts on which the whole model puts the right answer first."""
    right = [(answer_differences(answer_logits(bridge, chunk, [], alike=True), chunk) > 0).float() for chunk in _chunks(prompts)]
    return bootstrap_mean(per_pair(torch.cat(right), prompts), null=0.5)


@dataclass(frozen=True, eq=False)
class CurveMeasures:
    """All measures of the table for the circuits of one search; what does not depend on the circuit is computed once."""

    bridge: Any
    space: NodeSpace
    ablation: Ablation
    prompts: CurvePrompts

    @torch.no_grad()
    def of(self, circuit: Circuit) -> dict[str, Result]:
        """The measures of one circuit."""
        found: dict[str, Result] = {"kl_natural": self._on_text(circuit)}
        for name in ("search", "heldout", "rephrased"):
            found |= self._on_prompts(name, circuit, circuit.mask, name, "mean")
        for kind in SURVIVAL:
            found |= self._on_prompts(kind, circuit, circuit.mask, "heldout", kind)
        mixture = worst_mixture(CircuitRuns(self.bridge, circuit, self.prompts.attack))
        found |= self._on_prompts("adversarial", circuit, mixture, "heldout", "mean")
        if circuit.edges is None:
            found["kl_random"] = self._at_random(circuit)
        _, loss = self._losses(None, full_mask(self.space), "heldout", "mean")
        return found | {"loss_model": bootstrap_mean(loss)}

    def _at_random(self, circuit: Circuit) -> Result:
        """KL of random circuits of the same size, site by site; the draws are the same for every circuit."""
        generator = torch.Generator().manual_seed(0)
        masks = [random_like(circuit, generator, same_errors=True) for _ in range(RANDOM_DRAWS)]
        found = [float(self._losses(None, mask, "heldout", "mean")[0].mean()) for mask in masks]
        return Result(float(np.mean(found)), min(found), max(found), self._nothing["heldout", "mean"][0], RANDOM_DRAWS)

    def _on_prompts(self, name: str, circuit: Circuit, mask: Tensor, where: str, kind: AblationKind) -> dict[str, Result]:
        """KL and task loss at the answer, with what everything ablated gives as the null of both."""
        kl, loss = self._losses(circuit, mask, where, kind)
        no_kl, no_loss = self._nothing[where, kind]
        return {f"kl_{name}": bootstrap_mean(kl, null=no_kl), f"loss_{name}": bootstrap_mean(loss, null=no_loss)}

    @cached_property
    def _nothing(self) -> dict[tuple[str, AblationKind], tuple[float, float]]:
        """Mean KL and task loss with everything ablated, by prompts and ablation."""
        none, found = full_mask(self.space, keep=False), {}
        places: list[tuple[str, AblationKind]] = [("search", "mean"), ("rephrased", "mean")]
        for where, kind in places + [("heldout", kind) for kind in SURVIVAL]:
            kl, loss = self._losses(None, none, where, kind)
            found[where, kind] = (float(kl.mean()), float(loss.mean()))
        return found

    @cached_property
    def _whole(self) -> dict[str, list[Tensor]]:
        """The model's log probabilities at the answer, by prompts and chunk."""
        places = {name: getattr(self.prompts, name) for name in ("search", "heldout", "rephrased")}
        return {
            name: [answer_logits(self.bridge, chunk, [], alike=True).log_softmax(-1) for chunk in _chunks(prompts)]
            for name, prompts in places.items()
        }

    def _losses(self, circuit: Circuit | None, mask: Tensor, where: str, kind: AblationKind) -> tuple[np.ndarray, np.ndarray]:
        """KL and task loss of each pair, with the circuit's searched edges cut, or with all edges of the model."""
        ablation, prompts = Ablation(self.ablation.means, kind), getattr(self.prompts, where)
        if circuit is not None and circuit.edges is not None:
            mask = hooked_mask(self.space, mask)
        divergences, losses, whole_model = [], [], self._whole[where]  # before anything is cut
        with self._cut(circuit):
            run = self._compiled(ablation, mask) or self._hooked(ablation, mask)
            found = [run(chunk) for chunk in _chunks(prompts)]
        for chunk, logits, whole in zip(_chunks(prompts), found, whole_model, strict=True):
            divergences.append(_divergence(logits, whole))
            losses.append(task_loss(answer_differences(logits, chunk)))
        return per_pair(torch.cat(divergences), prompts), per_pair(torch.cat(losses), prompts)

    def _compiled(self, ablation: Ablation, mask: Tensor) -> Logits | None:
        """The masked model compiled, with the edges that are cut at the moment; None where that is not possible."""
        if mask.dtype == torch.bool:
            return node_circuit(self.bridge, self.space, mask, ablation)
        model = masked_model(self.bridge, self.space, ablation)
        return None if model is None else lambda chunk: model.logits(mask, chunk)

    def _hooked(self, ablation: Ablation, mask: Tensor) -> Logits:
        """The masked model under hooks, for what cannot be compiled."""
        return lambda chunk: answer_logits(
            self.bridge, chunk, ablation.hooks(self.bridge, self.space, mask, chunk), alike=ablation.fixed
        )

    def _on_text(self, circuit: Circuit) -> Result:
        """KL at all positions of windows of text; windows are independent, tokens are not."""
        mask = circuit.mask if circuit.edges is None else hooked_mask(self.space, circuit.mask)
        return bootstrap_mean(self._text_divergences(mask, circuit), null=self._text_null)

    @cached_property
    def _text_null(self) -> float:
        return float(self._text_divergences(full_mask(self.space, keep=False), None).mean())

    @cached_property
    def _text_whole(self) -> list[tuple[Tensor, Tensor]]:
        """Tokens and the model's log probabilities on them, a few windows at a time."""
        windows = torch.from_numpy(self.prompts.windows.astype(np.int64))
        return [(tokens, self.bridge(tokens).log_softmax(-1)) for tokens in windows.split(_WINDOWS)]

    def _text_divergences(self, mask: Tensor, circuit: Circuit | None) -> np.ndarray:
        """Mean KL of each window."""
        whole_model = self._text_whole  # before anything is hooked or cut
        with self._cut(circuit), self.bridge.hooks(fwd_hooks=mask_hooks(self.space, mask, self.ablation.means)):
            found = [_divergence(self.bridge(tokens), whole).mean(-1) for tokens, whole in whole_model]
        return torch.cat(found).double().numpy()

    def _cut(self, circuit: Circuit | None) -> AbstractContextManager[Any]:
        return nullcontext() if circuit is None or circuit.edges is None else circuit.edges.cut_in(self.bridge)


def _divergence(logits: Float[Tensor, "*rows vocab"], whole: Float[Tensor, "*rows vocab"]) -> Float[Tensor, " *rows"]:
    """KL(model, circuit) from the circuit's logits and the model's log probabilities."""
    return F.kl_div(logits.log_softmax(-1), whole, reduction="none", log_target=True).sum(-1)


def _chunks(prompts: Prompts) -> Iterator[Prompts]:
    for start in range(0, len(prompts), _ROWS):
        yield prompts.rows(slice(start, start + _ROWS))
