"""What defines a training run: every number of the recipe, in one frozen object that is saved beside the weights."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sparse_lens.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SparsityConfig(_Frozen):
    """Weight sparsity by projection on the largest magnitudes after every optimizer step (arXiv:2511.13653)."""

    density: float = Field(gt=0, le=1, description="final share of nonzeros in every matrix of a block")
    embedding_density: float = Field(default=1.0, gt=0, le=1, description="final share of nonzeros in embedding and unembedding")
    anneal_start: float = Field(default=0.01, ge=0, le=1, description="share of the steps before the density starts to fall")
    anneal_end: float = Field(default=0.5, gt=0, le=1, description="share of the steps after which the final density is reached")
    anneal_shape: Literal["linear", "cubic", "power_law"] = Field(
        default="linear", description="density against time: a line, 1-(1-t)^3 (most time at low density), or a line in logs"
    )
    min_alive: int = Field(default=4, ge=0, description="weights kept per neuron before all others, counted in the density")
    sharkfin_floor: float = Field(
        default=0.0, ge=0, le=1, description="least factor sqrt(final density / density now) on the learning rate"
    )


class TrainingConfig(_Frozen):
    """A training run. `model` holds fields of `CircuitGPTConfig`; the data come with the call, not with the recipe."""

    name: str = Field(description="name of the model, and of its folder")
    model: dict[str, int | float | str | bool | None] = Field(description="fields of CircuitGPTConfig")
    steps: int = Field(gt=0, description="optimizer steps")
    batch_size: int = Field(default=16, gt=0, description="sequences per step")
    context: int = Field(default=128, gt=1, description="tokens per sequence")
    seed: int = Field(default=0, description="seeds the initial weights")
    data_seed: int = Field(default=0, description="seeds the order of the tokens; equal seeds give equal batches")
    learning_rate: float = Field(default=3e-3, gt=0, description="peak learning rate, before the sharkfin factor")
    warmup: float = Field(default=0.01, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    decay_start: float = Field(default=0.01, ge=0, le=1, description="share of the steps after which it falls linearly to zero")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="moment decay of Adam")
    eps: float = Field(default=1e-8, gt=0, description="epsilon of Adam")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled decay of tensors of two dimensions, bigram apart")
    gradient: Literal["rms", "clip", "none"] = Field(
        default="rms", description="rms: divide by the gradient's root mean square; clip: norm at most 1"
    )
    precision: Precision = Field(
        default="auto", description="of the matrix products; auto: bfloat16 where the processor has instructions for it"
    )
    sparsity: SparsityConfig | None = Field(default=None, description="null trains a weight-dense model")
    checkpoint_every: int = Field(default=500, gt=0, description="steps between checkpoints")
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

    def fingerprint(self) -> str:
        """Hash of everything that changes the run; a checkpoint of another fingerprint is not resumed."""
        fields = self.model_dump(mode="json", exclude={"checkpoint_every", "evaluate_every", "evaluation_windows", "name"})
        return hashlib.sha256(repr(sorted(_flatten(fields))).encode()).hexdigest()[:16]


def _flatten(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for name, value in fields.items():
        flat += _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, repr(value))]
    return flat


def check_anneal(sparsity: SparsityConfig) -> None:
    """Raise `ConfigError` for an anneal that ends before it starts."""
    if sparsity.anneal_end < sparsity.anneal_start:
        raise ConfigError(
            f"anneal_end ({sparsity.anneal_end}) lies before anneal_start ({sparsity.anneal_start}); swap or correct them"
        )
