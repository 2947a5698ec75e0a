"""What a search's target is measured in: task loss, or divergence from the model's own output; calibrated or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import answer_differences, answer_logits, task_loss
from sparse_lens.circuits.search.calibration import Calibration, fit_calibration
from sparse_lens.circuits.weights import WeightGraph
from sparse_lens.errors import CircuitError, ConfigError, UnknownNameError
from sparse_lens.tasks import AnyTask, Metric, metric_name

TargetKind = Literal["task", "kl"]

Run = Callable[[Prompts], Float[Tensor, "row vocab"]]
"""Logits at the answer position of every prompt."""


@dataclass(frozen=True)
class Measured:
    """`loss` in the target's kind and `task_loss` (equal to it for the kind "task"), means over prompts, in nats.

    With a calibration both are calibrated, and `uncalibrated` is the task loss without it.
    """

    loss: float
    task_loss: float
    calibration: Calibration | None = None
    uncalibrated: float | None = None

    def as_record(self) -> dict[str, Any] | None:
        """The calibration for a circuit's record; None without one."""
        if self.calibration is None:
            return None
        return {"scale": self.calibration.scale, "shift": self.calibration.shift, "uncalibrated_loss": self.uncalibrated}


@dataclass(frozen=True)
class Objective:
    """The kind of a target: "task" is the two-token cross-entropy, "kl" is KL(model, circuit) over the vocabulary.

    Both are at the answer position, in nats, means over prompts. `calibrate` fits scale and shift of the logit difference on the
    search prompts before a circuit, or the whole model, is scored. Raises `UnknownNameError` for another kind and `ConfigError`
    for a calibrated KL: a difference of two logits is not what it is measured on. A task's own `metric` takes the place of the
    cross-entropy, and cannot be calibrated either.
    """

    kind: TargetKind = "task"
    calibrate: bool = False
    metric: Metric | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(TargetKind):
            raise UnknownNameError("kind of target", self.kind, get_args(TargetKind))
        if self.kind == "kl" and self.calibrate:
            raise ConfigError("calibration acts on the two answers' logits, a KL target on all of them; choose one of the two")
        if self.metric is not None and self.calibrate:
            raise ConfigError("calibration acts on the two answers' logits, the task has a metric of its own; choose one")

    def on(self, task: AnyTask) -> Objective:
        """The objective as a task asks for it: with the task's own metric, if it has one and the target is the task's."""
        metric = getattr(task, "metric", None) if self.kind == "task" else None
        return self if metric is None else replace(self, metric=metric)

    def prepared(self, bridge: Any, prompts: Prompts) -> Prompts:
        """Prompts with what the objective needs to know of the whole model's output on them."""
        if self.kind == "task":
            return prompts
        whole = _in_chunks(lambda chunk: answer_logits(bridge, chunk, [], alike=True).log_softmax(-1), prompts)
        return replace(prompts, model_log_probs=whole)

    def graph(self, graph: WeightGraph) -> WeightGraph:
        """A task's weights up to the logits that the objective reads: the two answers', or those of the whole vocabulary."""
        if self.kind == "task" and self.metric is None:
            return graph
        return replace(graph, answers=tuple(range(len(graph.unembedding))))

    def losses(self, logits: Float[Tensor, "row vocab"], prompts: Prompts) -> Float[Tensor, " row"]:
        """What masks are learned on, one value for each prompt: differentiable, never calibrated."""
        if self.metric is not None:
            return _checked(self.metric(logits, prompts.right, prompts.wrong), self.metric, len(prompts))
        if self.kind == "task":
            return task_loss(answer_differences(logits, prompts))
        assert prompts.model_log_probs is not None
        return F.kl_div(logits.log_softmax(-1), prompts.model_log_probs, reduction="none", log_target=True).sum(-1)

    def measure(self, run: Run, search: Prompts, evaluation: Prompts) -> Measured:
        """Losses on the evaluation prompts; a calibration is fitted on the search prompts."""

        def both(chunk: Prompts) -> Float[Tensor, "row 2"]:
            logits = run(chunk)
            return torch.stack([answer_differences(logits, chunk), self.losses(logits, chunk)], dim=-1)

        differences, losses = _in_chunks(both, evaluation).T.contiguous()
        plain = float(task_loss(differences).mean())
        if not self.calibrate:
            return Measured(float(losses.mean()), plain)
        fitted = fit_calibration(_in_chunks(lambda chunk: answer_differences(run(chunk), chunk), search), search)
        loss = float(task_loss(fitted.apply(differences, evaluation)).mean())
        return Measured(loss, loss, fitted, plain)


def _checked(losses: Any, metric: Metric, n_prompts: int) -> Float[Tensor, " row"]:
    """The losses of a user's metric; raises `CircuitError` where they are not one finite number for each prompt."""
    if not isinstance(losses, Tensor) or losses.shape != (n_prompts,):
        seen = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise CircuitError(f"the metric {metric_name(metric)!r} must give one loss a prompt, ({n_prompts},), got {seen}")
    if not bool(losses.isfinite().all()):
        raise CircuitError(f"the metric {metric_name(metric)!r} gave a loss that is not finite; no circuit can be searched by it")
    return losses


TASK_LOSS = Objective()
"""The two-token task loss as it is."""


def objective_of(circuit: Circuit) -> Objective:
    """The objective that a circuit was found under; task loss where that is not recorded, as for derived circuits.

    A metric of the task's own is not in the record but its name: `Objective.on` takes it from the task.

    Raises `CircuitError` for a record of something else.
    """
    kind = circuit.search.get("target_kind", "task")
    if kind not in get_args(TargetKind):
        raise CircuitError(f"the circuit's record names the kind of target {kind!r}, which is not known here; find it again")
    return Objective(kind, circuit.search.get("calibration") is not None)


@torch.no_grad()
def _in_chunks(function: Callable[[Prompts], Tensor], prompts: Prompts, *, size: int = 128) -> Tensor:
    return torch.cat([function(prompts.rows(slice(start, start + size))) for start in range(0, len(prompts), size)])
