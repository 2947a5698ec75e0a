"""Binary masks over a frozen model's weights: what they are made of, models under them, random ones, overlaps.

Of a sparse model's zeros there is nothing to keep: masks lie within the nonzero weights, and shares are shares of those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sparse_lens.errors import DataError, UnknownNameError

Masks = dict[str, Tensor]
"""For each masked parameter, by name, a Boolean tensor of its shape: what is kept."""

Run = Callable[[Tensor], Tensor]
"""From inputs to logits, under masks."""

Units = Literal["weights", "rows"]

SITES = ("attn", "mlp")
"""Parts of a transformer whose matrices are masked; embeddings, norms, biases and the unembedding stay."""

REFERENCE_SIZE = 5000
"""Masked weights at which `MaskConfig.price` is the price of one weight; another model's is scaled to its own number."""


class MaskConfig(BaseModel):
    """How masks are learned: the same numbers for every model that is compared.

    The paper trains for 90 epochs at a rate of 1e-4; the rate here is for a few hundred steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    units: Units = Field(default="weights", description="what is kept or ablated: weights, or whole rows (outputs) of a matrix")
    steps: int = Field(default=300, gt=0, description="optimizer steps")
    batch_size: int = Field(default=32, gt=0, description="prompts per step")
    learning_rate: float = Field(default=0.01, gt=0, description="of Adam, on s")
    from_layer: int = Field(
        default=0,
        ge=0,
        description="the first block that is masked (`l0_stages` in the paper: 0, 2 or 3); where both subroutines share early "
        "layers, ablating a mask there takes everything",
    )
    start: float = Field(default=0.05, description="s of every unit at the beginning; -.05, 0, .05, .1 in the paper")
    beta_max: float = Field(default=200.0, gt=1, description="steepness of the sigmoid at the end")
    price: float = Field(
        default=1e-4, ge=0, description="of a weight kept, in nats, among 5,000; the sum is price * 5,000 * the share kept"
    )


CHEAP = MaskConfig(units="rows", steps=60, batch_size=16)
"""For a first look and for continuous integration: whole rows, few steps."""


def maskable(model: nn.Module, sites: Sequence[str] | None = SITES, from_layer: int = 0) -> Masks:
    """The nonzero weights of the model's matrices that lie in a part named in `sites` and in a block from `from_layer` on.

    `sites` of None takes every matrix, a `from_layer` of 0 those outside blocks, too. Raises `UnknownNameError` for a site that the
    model has no matrix in (a bridge in sparse execution has none: open it with `execution="dense"`), `DataError` if there is no
    nonzero weight at all.
    """
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2}
    for site in sites or ():
        if not any(site in name.split(".") for name in matrices):
            raise UnknownNameError("site of weights", site, sorted({part for name in matrices for part in name.split(".")}))
    chosen = [name for name in matrices if sites is None or set(sites) & set(name.split("."))]
    chosen = [name for name in chosen if from_layer == 0 or _layer(name) >= from_layer]
    masks = {name: matrices[name].detach() != 0 for name in chosen}
    if not any(bool(mask.any()) for mask in masks.values()):
        raise DataError(
            f"the model has no nonzero matrix weight to mask from layer {from_layer} on; is it trained, and are the sites right?"
        )
    return masks


def _layer(name: str) -> int:
    """The block that a parameter lies in: the first number in its name; -1 outside of all."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


def n_kept(masks: Masks) -> int:
    """Number of weights kept."""
    return sum(int(mask.sum()) for mask in masks.values())


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Run:
    """The model with other weights under some names, without a change of its own.

    A bridge holds its modules under several names, which torch takes for tied weights; with `tie_weights` it would not put the own
    ones back.
    """

    def run(inputs: Tensor) -> Any:
        return torch.func.functional_call(model, dict(weights), (inputs,), tie_weights=False)

    return run


def under_masks(model: nn.Module, masks: Masks) -> Run:
    """The model with the weights outside the masks set to zero; parameters without a mask are whole."""
    weights = dict(model.named_parameters())
    return with_weights(model, {name: weights[name].detach() * mask for name, mask in masks.items()})


def without(allowed: Masks, masks: Masks) -> Masks:
    """What is left of `allowed` when `masks` are ablated."""
    return {name: allowed[name] & ~masks[name] for name in allowed}


def random_masks(masks: Masks, among: Masks, generator: torch.Generator, units: Units = "weights") -> Masks | None:
    """As many units of every matrix as `masks` keep, drawn from `among`; None where a matrix has not as many."""
    drawn: Masks = {}
    for name, mask in masks.items():
        by_row = units == "rows"
        kept, free = (part.any(1) if by_row else part.flatten() for part in (mask, among[name]))
        places, count = free.nonzero().flatten(), int(kept.sum())
        if count > len(places):
            return None
        chosen = torch.zeros_like(free)
        chosen[places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]] = True
        drawn[name] = chosen[:, None] & among[name] if by_row else chosen.view(mask.shape)
    return drawn


def overlap(first: Masks, second: Masks) -> float:
    """Weights that both keep over weights that either keeps (intersection over union); 0 for two empty masks."""
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    either = sum(int((first[name] | second[name]).sum()) for name in first)
    return both / either if either else 0.0


def chance_overlap(first: Masks, second: Masks, allowed: Masks) -> float:
    """The overlap expected of independent masks that keep as many weights of every matrix."""
    both = either = 0.0
    for name, mask in allowed.items():
        n, a, b = int(mask.sum()), int(first[name].sum()), int(second[name].sum())
        common = a * b / n if n else 0.0
        both, either = both + common, either + a + b - common
    return both / either if either else 0.0


def units_of(allowed: Bool[Tensor, "out in"], units: Units) -> tuple[Tensor, Tensor]:
    """Flat places of the allowed weights of a matrix, and the number of the unit of each, counted from 0."""
    places = allowed.flatten().nonzero().flatten()
    if units == "weights":
        return places, torch.arange(len(places), device=places.device)
    return places, (places // allowed.shape[1]).unique(return_inverse=True)[1]
