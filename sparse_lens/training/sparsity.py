"""Ways of making a model weight-sparse, as data: what each keeps, when, and where the idea comes from.

All of them end with the same number of nonzeros for equal densities, so that they can be compared at equal nonzeros. The code of
each is in `sparse_lens.training.sparsifiers`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Budget = Literal["matrix", "fan_in", "fan_out"]
"""Within what the largest weights are chosen."""


class SparsityConfig(BaseModel):
    """What every method has: how many weights are kept in the end, and which matrices count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    density: float = Field(gt=0, le=1, description="final share of nonzeros in every matrix of a block")
    embedding_density: float = Field(default=1.0, gt=0, le=1, description="final share of nonzeros in embedding and unembedding")
    unembedding_density: float | None = Field(
        default=None, gt=0, le=1, description="of the unembedding, where it differs from the embedding's"
    )
    sparse_biases: bool = Field(
        default=False, description="whether biases are made sparse too: the paper says so, the released script leaves them dense"
    )
    min_alive: int = Field(
        default=4,
        ge=0,
        description="weights kept per neuron before all others, counted in the density: per row of the query-key-value and MLP "
        "input matrices, per column of both output matrices",
    )

    def of_unembedding(self) -> float:
        """The unembedding's final density."""
        return self.embedding_density if self.unembedding_density is None else self.unembedding_density


class _Annealed(SparsityConfig):
    """A density that falls from 1 during a part of the run."""

    anneal_start: float = Field(default=0.01, ge=0, le=1, description="share of the steps before the density starts to fall")
    anneal_end: float = Field(default=0.5, gt=0, le=1, description="share of the steps after which the final density is reached")
    anneal_shape: Literal["linear", "power_law"] = Field(
        default="linear",
        description="linear: the distance to the final density falls as (1 - t) ** anneal_exponent; power_law: a line in log "
        "density against log step",
    )
    anneal_exponent: float = Field(default=1.0, gt=0, description="1 is the released script's; 3 spends more steps at low density")

    @model_validator(mode="after")
    def _in_order(self) -> _Annealed:
        if self.anneal_end < self.anneal_start:
            raise ValueError(f"anneal_end ({self.anneal_end}) lies before anneal_start ({self.anneal_start}); swap or correct them")
        if self.anneal_shape == "power_law" and self.anneal_start == 0:
            raise ValueError("a power law has no density at step 0: anneal_start must be above 0")
        return self


class TopK(_Annealed):
    """Projection on the largest magnitudes after every optimizer step (arXiv:2511.13653; openai/circuit_sparsity, `train.py`).

    `budget` says within what the magnitudes compete: the whole matrix, each output channel's inputs (fan-in) or each input
    channel's outputs (fan-out). Within fans `min_alive` is not kept, and embeddings have the whole-matrix budget always.
    """

    method: Literal["top_k"] = "top_k"
    budget: Budget = Field(default="matrix", description="within what the largest are chosen")
    sharkfin_floor: float = Field(
        default=0.0, ge=0, le=1, description="least factor sqrt(final density / density now) on the learning rate"
    )


class RandomMask(SparsityConfig):
    """A mask drawn at the start and never changed: the control for every method that chooses."""

    method: Literal["random"] = "random"
    mask_seed: int = Field(default=0, ge=0, description="seeds the mask")


class RigL(SparsityConfig):
    """Drop the smallest weights, grow where the gradient is largest (arXiv:1911.11134, algorithm 1)."""

    method: Literal["rigl"] = "rigl"
    mask_seed: int = Field(default=0, ge=0, description="seeds the first mask, a random one")
    update_every: int = Field(default=100, gt=0, description="steps between updates of the mask")
    update_share: float = Field(default=0.3, gt=0, lt=1, description="share of the kept weights that the first update replaces")
    update_end: float = Field(
        default=0.75, gt=0, le=1, description="share of the steps after which the mask stays; cosine until then"
    )


class MagnitudePruning(SparsityConfig):
    """Train densely, keep the largest weights, train on; once, or in rounds (arXiv:1506.02626; rate restarts of arXiv:2003.02389).

    The steps are split into a dense cycle and `rounds` more, each with the whole learning-rate schedule. After cycle i the
    density is `density ** (i / rounds)`.
    """

    method: Literal["magnitude"] = "magnitude"
    rounds: int = Field(default=1, gt=0, description="prunings; 1 is one-shot")
    dense_share: float = Field(default=0.5, gt=0, lt=1, description="share of the steps before the first pruning")


class LotteryTicket(SparsityConfig):
    """As magnitude pruning, but every pruning winds the kept weights back to an early step (arXiv:1803.03635, 1903.01611).

    The learning rate starts over with its warm-up, where the second paper winds the schedule back to that step as well.
    """

    method: Literal["lottery"] = "lottery"
    rounds: int = Field(default=1, gt=0, description="prunings")
    dense_share: float = Field(default=0.5, gt=0, lt=1, description="share of the steps before the first pruning")
    rewind_to: float = Field(default=0.02, ge=0, lt=1, description="share of the dense cycle whose weights are taken up again")


class LearnedMask(_Annealed):
    """A gate on every weight, trained with it; the highest gates are kept from the end of the anneal on.

    `sigmoid`: continuous sparsification, gates `sigmoid(sharpness * s)` of rising sharpness (arXiv:1912.04427). `hard_concrete`:
    stochastic gates under a penalty on their expected number (arXiv:1712.01312). In both the penalty's weight is a Lagrange
    multiplier that holds each matrix to the annealed density, as arXiv:1910.04732 does.
    """

    method: Literal["learned"] = "learned"
    gate: Literal["sigmoid", "hard_concrete"] = Field(default="sigmoid", description="kind of gate")
    gate_rate: float = Field(
        default=1.0, gt=0, description="learning rate of the gates as a multiple of the weights'; hard concrete gates take about 10"
    )
    multiplier_rate: float = Field(default=1.0, gt=0, description="step of the multipliers")
    sharpness: float = Field(default=200.0, ge=1, description="final sharpness of sigmoid gates, reached geometrically")


AnySparsity = Annotated[
    TopK | RandomMask | RigL | MagnitudePruning | LotteryTicket | LearnedMask,
    Field(discriminator="method"),
]
"""Any of the methods; in JSON the field `method` tells which."""
