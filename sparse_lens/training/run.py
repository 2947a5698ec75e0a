"""One training run: its model, optimizer, sparsifier and position, and what one step of it does.

The order of a step is the released script's (openai/circuit_sparsity, `train.py`): the rate of step i (from 0, where it is 0) is
set; gradient of the mean cross-entropy; the gradient divided by its root mean square; Adam; projection at the density of step i;
then weights shrink by weight decay times rate. The script's one extra step at the end is left out: its rate is 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.errors import ConfigError
from sparse_lens.models import CircuitGPTForCausalLM
from sparse_lens.training.config import TrainingConfig
from sparse_lens.training.optimizer import decay_weights, decayed_weights, make_optimizer, scale_gradient, set_learning_rate
from sparse_lens.training.penalties import Penalties
from sparse_lens.training.schedules import check_schedule, learning_rate_at
from sparse_lens.training.sparsifiers import make_sparsifier


class TrainingRun:
    """The state of a run; `optimize` takes one step."""

    def __init__(self, config: TrainingConfig, model: CircuitGPTForCausalLM) -> None:
        self.config, self.model = config, model
        self.precision = resolve_precision(config.precision)
        if self.precision == "float64":
            model.double()
        self.device = model.core.wte.weight.device
        check_schedule(config)
        self.sparsifier = make_sparsifier(model.core, config)
        self.optimizer = make_optimizer(config, model.core, self.sparsifier)
        self.sparsifier.attach(self.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")
        self.trained: list[Tensor] = [p for p in model.core.parameters() if p.requires_grad]
        self.decayed = decayed_weights(model.core)
        self.sparse_products = _takes_sparse_products(config, self.precision, model.core.wte.weight)
        self.penalties = Penalties(model.core, config.penalty, config.balance)
        self.forward: Callable[[Tensor], Tensor] = model.core
        self.step, self.seconds, self.rank = 0, 0.0, 0
        self.compress()

    def compress(self) -> None:
        """Make the products by nonzeros ready for the weights as they are now."""
        if self.sparse_products:
            self.model.core.compress_weights(SPARSE_ENOUGH)

    def optimize(self, batch: Tensor) -> Tensor:
        """One step on ids `[batch context+1]`; returns the loss before it, in nats per token."""
        started = time.perf_counter()
        rate = learning_rate_at(self.config, self.step)
        set_learning_rate(self.optimizer, rate)
        if self.model.config.dropout:
            # resuming draws what an unbroken run draws, and every process something else
            torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4099 + self.rank)
        self.sparsifier.before_forward(self.step)
        loss = self._backward(batch)
        self.sparsifier.after_backward(self.step)
        scale_gradient(self.trained, self.config.gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.sparsifier.after_step(self.step)
        decay_weights(self.decayed, self.config.weight_decay * rate)
        self.compress()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return loss

    def _backward(self, batch: Tensor) -> Tensor:
        """Fill the gradients; returns the cross-entropy alone."""
        with torch.autocast(self.device.type, _HALVES.get(self.precision), enabled=self.precision in _HALVES):
            logits = self.forward(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), batch[:, 1:].flatten())
        penalties = [penalty for penalty in (self.sparsifier.penalty(), self.penalties.take()) if penalty is not None]
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(sum(penalties, loss)).backward()
        self.scaler.unscale_(self.optimizer)
        return loss.detach()


SPARSE_ENOUGH = 0.2
"""Density up to which the product by nonzeros is the faster one, with its gradient and the compression after every step."""


def _takes_sparse_products(config: TrainingConfig, precision: str, weight: Tensor) -> bool:
    able = precision == "float32" and weight.device.type == "cpu" and type(weight) is torch.nn.Parameter
    if config.products == "sparse" and not (able and config.sparsity is not None):
        raise ConfigError(
            f"products by nonzeros are for whole float32 weights on the CPU, this run has {precision} on {weight.device.type}"
        )
    return able and config.sparsity is not None and config.products != "dense"


_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_precision(precision: str) -> str:
    """The precision that "auto" stands for on this processor: emulated bfloat16 products take ten times float32's time."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_bfloat16() else "float32"


def _has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
