"""Continuous sparsification (arXiv:1912.04427; 2301.10884, section 3): masks under which a frozen model keeps one loss low.

A number `s` stands for every weight, or every row; its weights are multiplied by `sigmoid(beta * s)`, and `beta` grows
exponentially from 1 to `beta_max`, so that the soft mask ends as the hard one, `s > 0` (a tie is ablated). The loss is the task's
plus a price per weight kept.

Fast form: all `s` lie in one vector, zeros of the model have none, and the chain rule from weights to `s` is written out, so that
a step costs little beside the model's own forward and backward pass. The tests hold it to the plain form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparse_lens.circuits.search.learning import frozen
from sparse_lens.comparisons.compositionality.weight_masks import (
    REFERENCE_SIZE,
    MaskConfig,
    Masks,
    Run,
    Units,
    units_of,
    with_weights,
)
from sparse_lens.errors import ConfigError

LossOf = Callable[[Run, torch.Generator], Float[Tensor, ""]]
"""Draws a batch from the generator and gives the mean loss in nats, by `run(inputs) -> logits`."""


def learn_weight_masks(model: nn.Module, allowed: Masks, loss_of: LossOf, config: MaskConfig, *, seed: int) -> Masks:
    """Masks, within `allowed`, under which `loss_of` is small; the model is left as it was.

    The seed draws the batches; equal seeds give equal masks. Raises `ConfigError` if the loss is no number.
    """
    scores, flat = learned_scores(model, allowed, loss_of, config, seed=seed)
    return flat.masks(scores > 0)


def learned_scores(
    model: nn.Module, allowed: Masks, loss_of: LossOf, config: MaskConfig, *, seed: int
) -> tuple[Float[Tensor, " unit"], MaskedWeights]:
    """`s` of every unit after the last step, and what units they are."""
    generator, flat = torch.Generator().manual_seed(seed), MaskedWeights.of(model, allowed, config.units)
    scores = nn.Parameter(torch.full((len(flat.sizes),), config.start, device=flat.sizes.device))
    optimizer = torch.optim.Adam([scores], lr=config.learning_rate)
    growth = config.beta_max ** (1 / max(1, config.steps - 1))
    price = config.price * REFERENCE_SIZE / float(flat.sizes.sum())
    with frozen(model):
        for step in range(config.steps):
            beta = growth**step
            soft = torch.sigmoid(beta * scores.detach())
            loss, slopes = flat.loss_and_slopes(soft, lambda run: loss_of(run, generator))
            if not bool(loss.isfinite()):
                raise ConfigError(f"the loss under masks is {float(loss)} at step {step}; lower learning_rate or beta_max")
            scores.grad = (slopes + price * flat.sizes) * beta * soft * (1 - soft)
            optimizer.step()
    return scores.detach(), flat


@dataclass(frozen=True, eq=False)
class MaskedWeights:
    """The weights of a model that masks lie over, flat and in the order of `allowed`, and the unit of each."""

    model: nn.Module
    allowed: Masks
    places: list[Tensor]
    values: Float[Tensor, " weight"]
    unit: Int[Tensor, " weight"]
    sizes: Float[Tensor, " unit"]

    @classmethod
    def of(cls, model: nn.Module, allowed: Masks, units: Units) -> MaskedWeights:
        parameters = dict(model.named_parameters())
        found = [units_of(mask, units) for mask in allowed.values()]
        values = [parameters[name].detach().flatten()[at] for name, (at, _) in zip(allowed, found, strict=True)]
        numbers, n_units = [], 0
        for _, number in found:
            numbers.append(number + n_units)
            n_units += int(number.max()) + 1 if len(number) else 0
        unit = torch.cat(numbers)
        sizes = torch.bincount(unit, minlength=n_units).float()
        return cls(model, allowed, [at for at, _ in found], torch.cat(values).float(), unit, sizes)

    def loss_and_slopes(
        self, soft: Float[Tensor, " unit"], loss_of: Callable[[Run], Tensor]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " unit"]]:
        """The loss with every unit's weights times `soft`, and its derivative by `soft`."""
        parameters = dict(self.model.named_parameters())
        masked = {}
        for (name, mask), at, part in zip(
            self.allowed.items(), self.places, self._split(self.values * soft[self.unit]), strict=True
        ):
            weight = torch.zeros(mask.numel(), dtype=parameters[name].dtype, device=mask.device)
            weight[at] = part.to(weight)
            masked[name] = weight.view(mask.shape).requires_grad_()
        with torch.enable_grad():
            loss = loss_of(with_weights(self.model, masked))
        slopes = torch.autograd.grad(loss, list(masked.values()), allow_unused=True, materialize_grads=True)
        by_weight = torch.cat([slope.flatten()[at].float() for slope, at in zip(slopes, self.places, strict=True)])
        return loss.detach(), torch.zeros_like(soft).index_add_(0, self.unit, by_weight * self.values)

    def masks(self, kept: Bool[Tensor, " unit"]) -> Masks:
        """Masks that keep the weights of some units."""
        found = {}
        for (name, mask), at, part in zip(self.allowed.items(), self.places, self._split(kept[self.unit]), strict=True):
            chosen = torch.zeros_like(mask).flatten()
            chosen[at] = part
            found[name] = chosen.view(mask.shape)
        return found

    def _split(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split([len(at) for at in self.places])
