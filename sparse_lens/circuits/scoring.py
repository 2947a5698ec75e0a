"""Scores of a masked model on a task's prompts: two-token loss, accuracy, sufficiency, necessity."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.latents import hooked_mask
from sparse_lens.circuits.prompts import Prompts, both_sides, per_pair
from sparse_lens.circuits.shared_prefixes import share_prefixes, takes_branches
from sparse_lens.circuits.sites import NodeSpace, full_mask
from sparse_lens.results import Result, bootstrap_mean
from sparse_lens.tasks import TaskBatch


def answer_logits(
    bridge: Any, prompts: Prompts, hooks: list[tuple[str, Any]], *, alike: bool = False
) -> Float[Tensor, "row vocab"]:
    """Logits at the answer position of every prompt, under `hooks`.

    Hooks that treat every token of every prompt `alike` allow what both sides of a pair begin with to be run once.
    """
    shared = share_prefixes(prompts) if alike and takes_branches(bridge) else None
    with bridge.hooks(fwd_hooks=hooks):
        if shared is None:
            return bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.position]
        logits = bridge(shared.tokens, attention_mask=shared.looks, position_ids=shared.positions)
    return logits[shared.sequence, shared.answer]


def answer_differences(logits: Float[Tensor, "row vocab"], prompts: Prompts) -> Float[Tensor, " row"]:
    """Right answer's logit minus the wrong one's."""
    row = torch.arange(len(prompts))
    return logits[row, prompts.right] - logits[row, prompts.wrong]


def logit_differences(bridge: Any, prompts: Prompts, hooks: list[tuple[str, Any]], *, alike: bool = False) -> Float[Tensor, " row"]:
    """Right answer's logit minus the wrong one's at the answer position of every prompt, under `hooks` (see `answer_logits`)."""
    return answer_differences(answer_logits(bridge, prompts, hooks, alike=alike), prompts)


def task_loss(differences: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Two-token cross-entropy of each prompt, in nats: `-log softmax` of the right answer among the two."""
    return F.softplus(-differences)


@torch.no_grad()
def masked_differences(
    bridge: Any,
    space: NodeSpace,
    mask: Bool[Tensor, " node"],
    ablation: Ablation,
    prompts: Prompts,
    *,
    batch_size: int = 128,
) -> Float[Tensor, " row"]:
    """Logit differences of the model with everything outside `mask` ablated."""
    chunks = [prompts.rows(slice(start, start + batch_size)) for start in range(0, len(prompts), batch_size)]
    hooks = [ablation.hooks(bridge, space, mask, chunk) for chunk in chunks]
    return torch.cat([logit_differences(bridge, *run, alike=ablation.fixed) for run in zip(chunks, hooks, strict=True)])


@dataclass(frozen=True)
class CircuitScores:
    """How far a circuit can be trusted, on one set of prompts.

    Losses are two-token task losses in nats. With `L` the mean loss, `M` the model, `C` the circuit, `0` everything ablated:
    `sufficiency = (L(0) - L(C)) / (L(0) - L(M))`, `necessity = (L(M without C) - L(M)) / (L(0) - L(M))`; the whole
    model scores 1 on both, the empty circuit 0. For a circuit with edges, `M without C` is the model with those edges cut.
    """

    circuit_loss: Result
    full_loss: Result
    ablated_loss: Result
    complement_loss: Result
    accuracy: Result
    full_accuracy: Result
    sufficiency: Result
    necessity: Result


def score_circuit(bridge: Any, circuit: Circuit, prompts: TaskBatch | Prompts) -> CircuitScores:
    """Score `circuit` in its model on `prompts` (for instance `get_task(name).sample(..., split="heldout")`)."""
    prompts = prompts if isinstance(prompts, Prompts) else both_sides(prompts)
    space = circuit.check_model(bridge)

    def differences(mask: Tensor) -> Tensor:
        return masked_differences(bridge, space, mask, circuit.how_ablated, prompts)

    edges, everything = circuit.edges, full_mask(space)
    with nullcontext() if edges is None else edges.cut_in(bridge):
        runs = {"circuit": differences(circuit.mask if edges is None else hooked_mask(space, circuit.mask))}
    with nullcontext() if edges is None else edges.removed_from(bridge):
        runs["complement"] = differences(~circuit.mask if edges is None else everything)
    runs |= {"full": differences(everything), "ablated": differences(full_mask(space, keep=False))}
    losses = {name: per_pair(task_loss(run), prompts) for name, run in runs.items()}
    right = {name: per_pair((run > 0).float(), prompts) for name, run in runs.items()}
    return CircuitScores(
        circuit_loss=bootstrap_mean(losses["circuit"]),
        full_loss=bootstrap_mean(losses["full"]),
        ablated_loss=bootstrap_mean(losses["ablated"]),
        complement_loss=bootstrap_mean(losses["complement"]),
        accuracy=bootstrap_mean(right["circuit"], null=0.5),
        full_accuracy=bootstrap_mean(right["full"], null=0.5),
        sufficiency=recovered_share(losses["ablated"] - losses["circuit"], losses["ablated"] - losses["full"]),
        necessity=recovered_share(losses["complement"] - losses["full"], losses["ablated"] - losses["full"]),
    )


def recovered_share(part: np.ndarray, whole: np.ndarray, *, n_resamples: int = 1000) -> Result:
    """Ratio of means with a paired bootstrap interval; not measurable where the model gains nothing over full ablation."""
    if whole.mean() <= 1e-3:
        return Result(None, n=len(whole), measurable=False, reason="the model is no better than with everything ablated")
    picks = np.random.default_rng(0).integers(0, len(part), (n_resamples, len(part)))
    ratios = part[picks].mean(1) / np.maximum(whole[picks].mean(1), 1e-3)
    lo, hi = np.percentile(ratios, [2.5, 97.5])
    return Result(float(part.mean() / whole.mean()), float(lo), float(hi), 0.0, len(part))
