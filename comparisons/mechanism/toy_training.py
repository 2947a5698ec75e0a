"""Training of many toy models at once under budgets of nonzero weights, by the recipe of the family's sparse models.

As there, the gradient is divided by its root mean square (each model's own), Adam's epsilon beside it is 0.1, only the largest
magnitudes stay after each step, and weights shrink after that. With an epsilon as large, what matters little moves little, so that
magnitudes tell importance; with Adam's usual one they do not, and the projection drops important features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparse_lens.comparisons.mechanism.toy_model import draw_features, toy_losses
from sparse_lens.errors import ConfigError
from sparse_lens.training import TopK
from sparse_lens.training.schedules import density_at

_ANNEAL = TopK(density=1.0, anneal_exponent=3)
_BETAS, _EPS, _WEIGHT_DECAY, _DECAY_START = (0.9, 0.95), 0.1, 0.1, 0.4


@dataclass(frozen=True)
class ToyConfig:
    """What all toy models share; the features' activity and importance, and the budget, are each one's own."""

    n_features: int = 20
    n_neurons: int = 5
    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 3e-2

    def __post_init__(self) -> None:
        if min(self.n_features, self.n_neurons, self.steps, self.batch_size) < 1 or not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"a toy model needs sizes from 1 and a rate above 0, got {self}")

    @property
    def entries(self) -> int:
        """Entries of W, the largest budget."""
        return self.n_neurons * self.n_features


@dataclass(frozen=True, eq=False)
class ToyCells:
    """Toy models to train: how active and how important the features of each are, and how many weights it may keep.

    Raises `ConfigError` for an activity outside (0, 1], or a budget or an importance below 0.
    """

    activity: Float[Tensor, " cell"]
    importance: Float[Tensor, "cell feature"]
    budget: Int64[Tensor, " cell"]

    def __post_init__(self) -> None:
        if not bool(((self.activity > 0) & (self.activity <= 1)).all()):
            raise ConfigError(f"an activity is a probability above 0, got {self.activity.unique().tolist()}")
        if not bool((self.importance >= 0).all()):
            raise ConfigError(f"an importance is 0 or more, got {float(self.importance.min())}")
        if not bool((self.budget >= 0).all()):
            raise ConfigError(f"a budget is 0 weights or more, got {int(self.budget.min())}")


def train_cells(
    config: ToyConfig, cells: ToyCells, *, seed: int = 0
) -> tuple[Float[Tensor, "cell neuron feature"], Float[Tensor, "cell feature"]]:
    """Weights and biases of every cell after training; all start from the same weights and see the same uniform draws."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(config.n_neurons, config.n_features, generator=generator) * config.n_neurons**-0.5
    W = start.repeat(len(cells.budget), 1, 1).requires_grad_()
    b = torch.zeros_like(cells.importance).requires_grad_()
    mean = (cells.activity / 2)[:, None]
    optimizer = torch.optim.Adam([W, b], lr=config.learning_rate, betas=_BETAS, eps=_EPS)
    for step in range(config.steps):
        rate = config.learning_rate * min(1.0, (1 - step / config.steps) / (1 - _DECAY_START))
        optimizer.param_groups[0]["lr"] = rate
        x = draw_features(torch.rand(config.batch_size, config.n_features, generator=generator), cells.activity)
        gradients = torch.autograd.grad(toy_losses(W, b, x, cells.importance).sum(), [W, b])
        W.grad, b.grad = _scaled(*gradients)
        optimizer.step()
        with torch.no_grad():
            W *= largest_entries(W, _kept(cells.budget, config.entries, (step + 1) / config.steps)) * (1 - _WEIGHT_DECAY * rate)
            b.copy_(torch.where(W.any(1), b, mean))  # the best without weights; a ReLU that had died would never get there
    return W.detach(), b.detach()


def _scaled(
    of_W: Float[Tensor, "cell neuron feature"], of_b: Float[Tensor, "cell feature"]
) -> tuple[Float[Tensor, "cell neuron feature"], Float[Tensor, "cell feature"]]:
    """Gradients divided by each cell's root mean square."""
    rms = torch.cat([of_W.flatten(1), of_b], dim=1).square().mean(1).sqrt().clamp_min(1e-12)
    return of_W / rms[:, None, None], of_b / rms[:, None]


def _kept(budget: Int64[Tensor, " cell"], entries: int, progress: float) -> Int64[Tensor, " cell"]:
    """How many entries each cell keeps after the share `progress` of the steps."""
    above = density_at(_ANNEAL, 0.0, progress)
    return budget + (above * (entries - budget).clamp_min(0)).long()


def largest_entries(W: Float[Tensor, "cell neuron feature"], kept: Int64[Tensor, " cell"]) -> Bool[Tensor, "cell neuron feature"]:
    """Mask of the largest magnitudes of every cell, as many as it keeps: `kernels.projection_mask` for many matrices at once."""
    order = W.detach().abs().flatten(1).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(order.shape[1]) < kept[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen).view_as(W)
