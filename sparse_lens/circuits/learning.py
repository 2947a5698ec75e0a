"""Learning which nodes to keep: one Heaviside gate per node with a straight-through gradient, mean ablation, a price per node.

After arXiv:2511.13653, Appendix A.5, as read by its replications: `m = H(tau)` forward, `sigma'(tau / T) / T` backward, loss =
task loss + penalty * kept nodes, `tau` clipped to [-1, 1]. Own change: the penalty is steered so that the task loss stays near
its target, since no fixed price suits models of different width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import logit_differences, task_loss
from sparse_lens.circuits.sites import NodeSpace


class SearchConfig(BaseModel):
    """Effort of a circuit search; the same for every column of a comparison.

    `method` is this package's own ("steered") or that of arXiv:2511.13653, Appendix A.5, as its replication reads it ("published",
    with the values of `SearchConfig.published()`): a fixed price, a linear decay, and a bisection along the ranking.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["steered", "published"] = Field(
        default="steered", description="steered price and many candidates, or as published"
    )
    steps: int = Field(default=240, gt=0, description="optimizer steps of each mask")
    pairs_per_step: int = Field(default=16, gt=0, description="prompt pairs per step (two sequences each)")
    restarts: int = Field(default=1, gt=0, description="masks learned from different initial gates")
    penalties: tuple[float, ...] = Field(
        # Far below its final value of about 1e-2: at a high first price all nodes go before any has shown its use.
        default=(3e-5,),
        min_length=1,
        description="initial prices of a node, in nats; one mask each",
    )
    learning_rate: float = Field(default=0.03, gt=0, description="of Adam, on the gates")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW, on the gates")
    gradient_clip: float | None = Field(default=None, gt=0, description="largest norm of the gates' gradient")
    warm_up: float = Field(default=0.0, ge=0, lt=1, description="share of the steps in which the published rate rises from 0")
    temperature: float = Field(default=1.0, gt=0, description="width of the straight-through gradient")
    snapshots: int = Field(default=4, ge=0, description="masks along the way that are candidates too")
    evaluations: int = Field(default=24, gt=0, description="candidate circuits scored per mask")
    search_pairs: int = Field(default=512, gt=0, description="prompt pairs that the masks are learned on")
    evaluation_pairs: int = Field(default=128, gt=0, description="further prompt pairs on which the target loss must be met")

    @classmethod
    def published(cls, **changes: Any) -> SearchConfig:
        """The published values, where they are known; in their place, those of the replication (its Table 2 has the warm-up)."""
        values: dict[str, Any] = {"method": "published", "steps": 2000, "pairs_per_step": 64, "penalties": (1e-4,)}
        values |= {"learning_rate": 3e-3, "weight_decay": 1e-3, "gradient_clip": 1.0, "warm_up": 0.05, "snapshots": 0}
        return cls(**(values | changes))

    @property
    def masks(self) -> int:
        """Masks learned in one search."""
        return self.restarts * len(self.penalties)


@dataclass(frozen=True, eq=False)
class LearnedMask:
    """A ranking of all nodes (larger is kept longer), the mask it ends with, and masks met along the way.

    `smallest` is the smallest mask at which the running loss met the target, None if it never did.
    """

    ranking: Float[Tensor, " gate"]
    mask: Bool[Tensor, " gate"]
    smallest: Bool[Tensor, " gate"] | None
    snapshots: tuple[Bool[Tensor, " gate"], ...]
    penalty: float
    seed: int


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, temperature: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(gate)
        ctx.temperature = temperature
        return (gate >= 0).to(gate.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gate,) = ctx.saved_tensors
        soft = torch.sigmoid(gate / ctx.temperature)
        return grad * soft * (1 - soft) / ctx.temperature, None


def learn_mask(
    bridge: Any,
    space: NodeSpace,
    ablation: Ablation,
    prompts: Prompts,
    target: float,
    config: SearchConfig,
    *,
    penalty: float,
    seed: int,
    on_step: Callable[[], Any] = lambda: None,
) -> LearnedMask:
    """Fit one gate per node so that the masked model's task loss is near `target` with as few nodes as possible."""
    generator = torch.Generator().manual_seed(seed)
    start = 0.1 + 0.01 * torch.randn(space.n_nodes, generator=generator)

    def run(mask: Tensor, batch: Prompts) -> Tensor:
        return logit_differences(bridge, batch, ablation.hooks(bridge, space, mask, batch))

    with frozen(bridge):
        return learn_gates(run, start, prompts, target, config, penalty=penalty, seed=seed, generator=generator, on_step=on_step)


def learn_gates(
    run: Callable[[Tensor, Prompts], Tensor],
    start: Float[Tensor, " gate"],
    prompts: Prompts,
    target: float,
    config: SearchConfig,
    *,
    penalty: float,
    seed: int,
    generator: torch.Generator,
    on_step: Callable[[], Any] = lambda: None,
) -> LearnedMask:
    """Fit gates, from `start`, so that the task loss of `run(mask, batch)` is near `target` with as few open as possible.

    `run` gives logit differences `[row]`, differentiable in the mask; `generator` draws the batches.
    """
    gate = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([gate], lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    steering = _Steering(penalty, target)
    record = _Record(config, target)
    average = gate.detach().clone()
    with torch.enable_grad():
        for step, batch in zip(range(config.steps), _minibatches(prompts, config.pairs_per_step, generator), strict=False):
            cooling = _rate(step, config)
            optimizer.param_groups[0]["lr"] = config.learning_rate * cooling
            mask = _Heaviside.apply(gate, config.temperature)
            assert isinstance(mask, Tensor)
            loss = task_loss(run(mask, batch)).mean()
            optimizer.zero_grad()
            (loss + steering.penalty * mask.sum()).backward()
            if config.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_([gate], config.gradient_clip)
            optimizer.step()
            steering.update(float(loss.detach()), cooling if config.method == "steered" else 0.0)
            record.add(step, mask.detach() > 0, steering.loss)
            with torch.no_grad():
                gate.clamp_(-1, 1)
                average.lerp_(gate, 0.05)
            on_step()
    ranking = average if config.method == "steered" else gate.detach()
    return LearnedMask(ranking, gate.detach() >= 0, record.smallest, tuple(record.snapshots), penalty, seed)


def _rate(step: int, config: SearchConfig) -> float:
    """Factor on learning rate and steering: 1 until two thirds of the steps, then linearly down to a tenth; or as published."""
    if config.method == "steered":
        return min(1.0, 0.1 + 0.9 * 3 * (1 - step / config.steps))
    rising = int(config.warm_up * config.steps)
    return (step + 1) / rising if step < rising else (config.steps - step) / (config.steps - rising)


class _Steering:
    """The price of a node: up while the running task loss is below 90 % of the target, down while it is above.

    The change is proportional to the distance and at most 6 % a step; it cools with the learning rate, so that the run does not
    end on a swing.
    """

    def __init__(self, penalty: float, target: float) -> None:
        self.penalty, self.target, self.loss = penalty, 0.9 * target, math.inf

    def update(self, loss: float, cooling: float) -> None:
        self.loss = loss if math.isinf(self.loss) else 0.9 * self.loss + 0.1 * loss
        distance = min(max(2 * (self.target - self.loss) / self.target, -1.0), 1.0)
        self.penalty = min(max(self.penalty * math.exp(0.06 * distance * cooling), 1e-7), 1.0)


class _Record:
    """Masks worth scoring from the last part of a run, when most nodes have gone."""

    START = 0.4
    """Share of the steps before which nothing is recorded."""

    def __init__(self, config: SearchConfig, target: float) -> None:
        self.steps, self.target = config.steps, target
        first = int(self.START * config.steps)
        self.at = {first + (config.steps - first) * i // (config.snapshots + 1) for i in range(1, config.snapshots + 1)}
        self.smallest: Tensor | None = None
        self.snapshots: list[Tensor] = []

    def add(self, step: int, mask: Tensor, running_loss: float) -> None:
        if step in self.at:
            self.snapshots.append(mask)
        met = step >= self.START * self.steps and running_loss <= self.target
        if met and (self.smallest is None or mask.sum() < self.smallest.sum()):
            self.smallest = mask


def _minibatches(prompts: Prompts, n_pairs: int, generator: torch.Generator) -> Iterator[Prompts]:
    """Endless random batches of whole pairs, each cut to its longest prompt."""
    rows_of_pair = prompts.pair.argsort(stable=True).view(-1, 2)
    while True:
        order = torch.randperm(len(rows_of_pair), generator=generator)
        for start in range(0, len(order) - min(n_pairs, len(order)) + 1, n_pairs):
            yield prompts.rows(rows_of_pair[order[start : start + n_pairs]].flatten())


@contextmanager
def frozen(bridge: Any) -> Iterator[None]:
    """The bridge without weight gradients; they are asked for again at the end."""
    parameters = [parameter for parameter in bridge.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
