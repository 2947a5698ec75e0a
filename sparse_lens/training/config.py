"""What defines a training run: every number of the recipe, in one frozen object that is saved beside the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sparse_lens.errors import ConfigError
from sparse_lens.training.penalties import PenaltyConfig
from sparse_lens.training.sparsity import AnySparsity

Precision = Literal["auto", "float64", "float32", "bfloat16", "float16"]


Share = Annotated[float, Field(ge=0, lt=1)]

UNIMPORTANT = {"checkpoint_every", "log_every", "evaluate_every", "evaluation_windows", "name"}
"""Fields that do not change the weights."""


class TrainingConfig(BaseModel):
    """A training run. `model` holds fields of `CircuitGPTConfig`; the data come with the call, not with the recipe.

    The defaults of the optimizer, the schedule and the sparsity are those of the released script (openai/circuit_sparsity,
    `train.py`); what it does in an order of its own is told in `sparse_lens.training.run`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the model, and of its folder")
    model: dict[str, int | float | str | bool | None] = Field(description="fields of CircuitGPTConfig")
    steps: int = Field(gt=0, description="optimizer steps")
    batch_size: int = Field(default=16, gt=0, description="sequences per step")
    context: int = Field(default=128, gt=1, description="tokens per sequence")
    seed: int = Field(default=0, ge=0, description="seeds the initial weights")
    data_seed: int = Field(default=0, ge=0, description="seeds the order of the tokens; equal seeds give equal batches")
    learning_rate: float = Field(default=1.28e-2, gt=0, description="peak learning rate, before the sharkfin factor")
    warmup: float = Field(default=0.01, ge=0, lt=1, description="share of the steps with a learning rate that rises from 0")
    decay_start: float = Field(default=0.01, ge=0, le=1, description="share of the steps after which it falls linearly to zero")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.95), description="moment decay of Adam")
    eps: float = Field(
        default=0.1, gt=0, description="epsilon of Adam; beside gradients of unit root mean square, 0.1 lets small ones rest"
    )
    weight_decay: float = Field(
        default=0.1, ge=0, description="after the projection, weights of two dimensions shrink by this times the rate; bigram apart"
    )
    gradient: Literal["rms", "clip", "none"] = Field(
        default="rms", description="rms: divide by the gradient's root mean square; clip: norm at most 1"
    )
    precision: Precision = Field(
        default="auto",
        description="of the matrix products, under autocast (float64: of everything); auto: bfloat16 where the processor has it",
    )
    products: Literal["auto", "dense", "sparse"] = Field(
        default="auto",
        description="whether sparse matrices multiply by their nonzeros alone; auto: from a fifth downwards, in float32 on the CPU",
    )
    sparsity: AnySparsity | None = Field(default=None, description="how weights are made sparse; null trains a dense model")
    penalty: PenaltyConfig | None = Field(default=None, description="what joins the loss: the multi-objective alternative")
    balance: float = Field(default=0.01, ge=0, description="weight of the load-balancing loss of a mixture of experts")
    checkpoint_every: int = Field(default=500, gt=0, description="steps between checkpoints")
    log_every: int = Field(default=20, gt=0, description="steps between rows of the log")
    evaluate_every: int = Field(default=250, gt=0, description="steps between validation losses")
    evaluation_windows: int = Field(default=128, gt=0, description="held-out windows per validation loss")

    @property
    def tokens(self) -> int:
        """Tokens seen in the whole run."""
        return self.steps * self.batch_size * self.context

    def with_steps(self, steps: int) -> TrainingConfig:
        """The same recipe with another number of optimizer steps; raises `ConfigError` below 1."""
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, got {steps}")
        return self.model_copy(update={"steps": steps})

    def with_changes(self, changes: Sequence[str]) -> TrainingConfig:
        """The same recipe with fields changed, each as "field=value" with dots between levels and a JSON value.

        Raises `ConfigError` for what has not this form, and pydantic's `ValidationError` for a field or value that cannot be.
        """
        fields = self.model_dump(mode="json")
        for change in changes:
            path, sign, value = change.partition("=")
            *above, last = path.split(".")
            place: Any = fields
            for name in above:
                place = place.get(name) if isinstance(place, dict) else None
            if not sign or not isinstance(place, dict):
                raise ConfigError(f"{change!r} changes nothing that this recipe has; write FIELD=VALUE, as sparsity.density=0.1")
            try:
                place[last] = json.loads(value)
            except ValueError:
                place[last] = value
        return TrainingConfig(**fields)

    def with_seed(self, seed: int) -> TrainingConfig:
        """The same recipe with other initial weights and another order of the tokens; the name says so, but for seed 0."""
        if seed < 0:
            raise ConfigError(f"a seed is 0 or more, got {seed}")
        name = self.name if seed == 0 else f"{self.name}-seed{seed}"
        return self.model_copy(update={"seed": seed, "data_seed": seed, "name": name})

    def fingerprint(self) -> str:
        """Hash of everything that changes the run; a checkpoint of another fingerprint is not resumed.

        Fields at their default are left out, so that a field that is added one day, and changes nothing, strands no run.
        """
        fields = self.model_dump(mode="json", exclude=UNIMPORTANT, exclude_defaults=True)
        if self.sparsity is not None:
            fields["sparsity"]["method"] = self.sparsity.method  # a default of its class, but what tells the classes apart
        return hashlib.sha256(repr(sorted(_flatten(fields))).encode()).hexdigest()[:16]


def _flatten(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for name, value in fields.items():
        flat += _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, repr(value))]
    return flat
