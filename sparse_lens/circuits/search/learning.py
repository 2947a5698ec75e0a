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
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.compiled.masked import masked_model
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import answer_logits
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.interrupting import SearchInterrupted
from sparse_lens.circuits.search.objectives import TASK_LOSS, Objective
from sparse_lens.circuits.sites import NodeSpace


@dataclass(frozen=True, eq=False)
class LearnedMask:
    """A ranking of all nodes (larger is kept longer), the mask it ends with, and masks met along the way.

    `smallest` is the smallest mask at which the running loss met the target, None if it never did; `allowed` are the gates that
    may be open at all.
    """

    ranking: Float[Tensor, " gate"]
    mask: Bool[Tensor, " gate"]
    smallest: Bool[Tensor, " gate"] | None
    snapshots: tuple[Bool[Tensor, " gate"], ...]
    penalty: float
    seed: int
    allowed: Bool[Tensor, " gate"]


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
    objective: Objective = TASK_LOSS,
    forbid: Bool[Tensor, " node"] | None = None,
    require: Bool[Tensor, " node"] | None = None,
    on_step: Callable[[], Any] = lambda: None,
) -> LearnedMask:
    """Fit one gate per node so that the masked model's loss is near `target` with as few nodes as possible.

    The gates of the nodes in `forbid` stay closed; the nodes of `require` are there and have none.
    """
    generator = torch.Generator().manual_seed(seed)
    start = 0.1 + 0.01 * torch.randn(space.n_nodes, generator=generator)
    if require is not None:
        forbid = require if forbid is None else forbid | require

    compiled = masked_model(bridge, space, ablation)

    def run(mask: Tensor, batch: Prompts) -> Tensor:
        mask = mask if require is None else torch.maximum(mask, require.to(mask.dtype))
        if compiled is not None:
            return objective.losses(compiled.logits(mask, batch), batch)
        logits = answer_logits(bridge, batch, ablation.hooks(bridge, space, mask, batch), alike=ablation.fixed)
        return objective.losses(logits, batch)

    options: dict[str, Any] = {"penalty": penalty, "seed": seed, "generator": generator, "forbid": forbid, "on_step": on_step}
    with frozen(bridge):
        return learn_gates(run, start, prompts, target, config, **options)


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
    forbid: Bool[Tensor, " gate"] | None = None,
    on_step: Callable[[], Any] = lambda: None,
) -> LearnedMask:
    """Fit gates, from `start`, so that the mean of `run(mask, batch)` is near `target` with as few open as possible.

    `run` gives losses `[row]`, differentiable in the mask; `generator` draws the batches; gates in `forbid` stay closed. Raises
    `SearchInterrupted` with the mask as it is if a Ctrl-C comes in between.
    """
    gates = _Gates(start, torch.ones(len(start), dtype=torch.bool) if forbid is None else ~forbid, target, config, penalty)
    try:
        with torch.enable_grad():
            for step, batch in zip(range(config.steps), _minibatches(prompts, config.pairs_per_step, generator), strict=False):
                gates.step(step, lambda mask, batch=batch: run(mask, batch).mean())
                on_step()
    except KeyboardInterrupt:
        raise SearchInterrupted([gates.learned(seed)]) from None
    return gates.learned(seed)


class _Gates:
    """One gate per node or edge, their optimizer and price, and what is recorded of them."""

    def __init__(self, start: Tensor, allowed: Tensor, target: float, config: SearchConfig, penalty: float) -> None:
        self.gate, self.allowed, self.config = start.clone().requires_grad_(), allowed, config
        self.optimizer = torch.optim.AdamW(
            [self.gate], lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.first_penalty, self.steering = penalty, _Steering(penalty, target)
        self.record = _Record(config, target)
        self.average = start.clone()

    def step(self, step: int, loss_of: Callable[[Tensor], Tensor]) -> None:
        """One optimizer step on `loss_of(mask)` and the price of what is open."""
        config, gate = self.config, self.gate
        cooling = _rate(step, config)
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * cooling
        mask = _Heaviside.apply(gate, config.temperature)
        assert isinstance(mask, Tensor)
        mask = mask * self.allowed  # closed gates cost nothing and get no gradient
        loss = loss_of(mask)
        self.optimizer.zero_grad()
        (loss + self.steering.penalty * mask.sum()).backward()
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_([gate], config.gradient_clip)
        self.optimizer.step()
        self.steering.update(float(loss.detach()), cooling if config.method == "steered" else 0.0)
        self.record.add(step, mask.detach() > 0, self.steering.loss)
        with torch.no_grad():
            gate.clamp_(-1, 1)
            self.average.lerp_(gate, 0.05)

    def learned(self, seed: int) -> LearnedMask:
        """The ranking and the masks as they are now."""
        gate, record = self.gate.detach(), self.record
        ranking = self.average if self.config.method == "steered" else gate
        mask, snapshots = (gate >= 0) & self.allowed, tuple(record.snapshots)
        return LearnedMask(ranking, mask, record.smallest, snapshots, self.first_penalty, seed, self.allowed)


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
