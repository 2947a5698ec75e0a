"""The training loop: batches in a fixed order, one optimizer step each, projection, checkpoints that resume exactly."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from sparse_lens.data import END_OF_TEXT, TokenData, save_tokenizer
from sparse_lens.errors import CheckpointError, ConfigError, DataError, OutputError, UnknownNameError
from sparse_lens.files import check_writable, new_directory, new_file
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM, save_packed
from sparse_lens.models.config import REFERENCE_FIELDS
from sparse_lens.models.config_files import HF_CONFIG
from sparse_lens.models.weight_files import PACKED_WEIGHTS
from sparse_lens.training.config import TrainingConfig, check_anneal
from sparse_lens.training.evaluation import window_losses
from sparse_lens.training.schedules import learning_rate_at
from sparse_lens.training.sparsifier import Sparsifier

logger = logging.getLogger(__name__)

MODEL_FILES = (HF_CONFIG, PACKED_WEIGHTS, "tokenizer.json", "tokenizer_config.json", "training.json")
"""What a trained model's folder holds; a folder with anything else in it is left alone."""

_CHECKPOINT_KEYS = {"fingerprint", "data", "step", "precision", "seconds", "core", "optimizer", "history"}


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: the model, the folder that holds it, its loss on held-out real files (nats per token), its log."""

    model: CircuitGPTForCausalLM
    folder: Path
    loss: float
    history: list[dict[str, float]]


def train(
    config: TrainingConfig,
    data: TokenData,
    folder: str | Path,
    *,
    checkpoints: str | Path | None = None,
    progress: bool = True,
    on_evaluation: Callable[[CircuitGPTForCausalLM, int], dict[str, float]] | None = None,
) -> TrainingResult:
    """Train a model and write it to `folder`; an interrupted run goes on from its last checkpoint, on the same curve.

    Checkpoints lie in `checkpoints` (default: `folder` with the ending `.checkpoints`) and are kept. `on_evaluation` is called
    with the model and the step at every evaluation and its numbers join the log (task accuracies, for instance).
    """
    folder = Path(folder).absolute()
    checkpoints = Path(checkpoints).absolute() if checkpoints else folder.with_name(f"{folder.name}.checkpoints")
    if checkpoints.is_relative_to(folder):
        raise OutputError(f"the checkpoints cannot lie inside the model's folder {folder}, which is replaced; put them beside it")
    check_writable(folder, MODEL_FILES)
    run = _Run(config, data, checkpoints)
    run.resume()
    batches = data.batches(
        context=config.context,
        batch_size=config.batch_size,
        seed=config.data_seed,
        start_step=run.step,
        n_steps=config.steps - run.step,
    )
    bar = tqdm(batches, total=config.steps, initial=run.step, desc=config.name, disable=not progress, unit="step")
    for batch in bar:
        loss = run.optimize(torch.from_numpy(batch))
        if run.step % config.evaluate_every == 0 or run.step == config.steps:
            run.evaluate(loss, on_evaluation)
            bar.set_postfix(loss=f"{run.history[-1]['loss']:.3f}")
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save()
    _write_model(run, folder)
    return TrainingResult(run.model.eval(), folder, run.history[-1]["loss"], run.history)


class _Run:
    """The state of a run: everything that a checkpoint holds."""

    def __init__(self, config: TrainingConfig, data: TokenData, checkpoints: Path) -> None:
        if config.sparsity is not None:
            check_anneal(config.sparsity)
        self.config, self.data, self.path = config, data, checkpoints / "last.pt"
        self.windows = data.validation_windows(config.context, config.evaluation_windows)
        self.model = _new_model(config, data)
        self.optimizer = _optimizer(config, self.model)
        self.sparsifier = None if config.sparsity is None else Sparsifier(self.model.core, config.sparsity)
        self.precision = resolve_precision(config.precision)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    def optimize(self, batch: Tensor) -> float:
        """One step on ids `[batch context+1]`; returns the training loss."""
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.config, self.step)
        if self.model.config.dropout:
            torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # so that resuming draws what an unbroken run draws
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.model.core(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        scale_gradient(self.model, self.config.gradient)
        self.optimizer.step()
        self.step += 1
        if self.sparsifier is not None:
            self.sparsifier.project(self.step / self.config.steps)
        self.seconds += time.perf_counter() - started
        return self._finite(float(loss.detach()))

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        raise ConfigError(f"the loss is {loss} at step {self.step}; lower learning_rate ({self.config.learning_rate}) and resume")

    def evaluate(self, training_loss: float, extra: Callable[..., dict[str, float]] | None) -> None:
        """Append the losses of this step to the log."""
        self.model.eval()
        loss = float(window_losses(self.model.core, self.windows).mean())
        row = {"step": self.step, "loss": loss, "training_loss": training_loss, "seconds": round(self.seconds, 1)}
        row |= extra(self.model, self.step) if extra is not None else {}
        self.model.train()
        self.history.append(row)
        logger.info("%s", row)

    def save(self) -> None:
        """Replace the checkpoint by the present state."""
        state = {
            "fingerprint": self.config.fingerprint(),
            "data": self.data.manifest["config_hash"],
            "step": self.step,
            "precision": self.precision,
            "seconds": self.seconds,
            "history": json.dumps(self.history),
            "core": self.model.core.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(self.path) as path:
            torch.save(state, path)

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one of the same configuration."""
        if not self.path.is_file():
            return
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
        except Exception as error:  # torch raises pickle, runtime and key errors alike, with advice that would be unsafe to repeat
            raise CheckpointError(f"{self.path} cannot be read ({type(error).__name__}); delete it to start over") from error
        if not isinstance(state, dict) or not state.keys() >= _CHECKPOINT_KEYS:
            raise CheckpointError(f"{self.path} is no training checkpoint; delete it to start over")
        if state["fingerprint"] != self.config.fingerprint():
            raise CheckpointError(f"{self.path} belongs to another configuration; delete it or give another folder")
        if state["data"] != self.data.manifest["config_hash"]:
            raise CheckpointError(f"{self.path} was trained on another corpus; give that one, or delete it to start over")
        self.model.core.load_state_dict(state["core"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.precision = state["step"], state["seconds"], state["precision"]
        self.history = json.loads(state["history"])


def resolve_precision(precision: str) -> str:
    """The precision that "auto" stands for on this processor: emulated bfloat16 products take ten times float32's time."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_bfloat16() else "float32"


def _has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def scale_gradient(model: nn.Module, how: str) -> None:
    """Divide the whole gradient by its root mean square ("rms"), clip its norm at 1 ("clip"), or leave it."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if how == "none":
        return
    norm = torch.nn.utils.get_total_norm(gradients)
    if how == "rms":
        factor = 1 / (norm / math.sqrt(sum(gradient.numel() for gradient in gradients)) + 1e-5)
    else:
        factor = (1 / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def _new_model(config: TrainingConfig, data: TokenData) -> CircuitGPTForCausalLM:
    end_of_text = data.tokenizer.token_to_id(END_OF_TEXT)
    fields = {
        "vocab_size": data.vocab_size,
        "block_size": config.context,
        "tokenizer_name": None,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
    }
    known = {*REFERENCE_FIELDS, *fields}
    for name in config.model:
        if name not in known:
            raise UnknownNameError("model field", name, known)
    model_config = CircuitGPTConfig(**(fields | config.model))  # pyright: ignore[reportArgumentType]
    if model_config.vocab_size < data.vocab_size or model_config.block_size < config.context:
        raise DataError(
            f"the model has {model_config.vocab_size} tokens and {model_config.block_size} positions, "
            f"the data need {data.vocab_size} and {config.context}; leave both out of `model`"
        )
    model = CircuitGPTForCausalLM(model_config)
    model.core.initialize(torch.Generator().manual_seed(config.seed))
    return model.train()


def _optimizer(config: TrainingConfig, model: CircuitGPTForCausalLM) -> torch.optim.AdamW:
    trained = [(name, p) for name, p in model.core.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim >= 2 and not name.startswith("bigram_table")]
    kept = [p for name, p in trained if p.ndim < 2 or name.startswith("bigram_table")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def _write_model(run: _Run, folder: Path) -> None:
    with new_directory(folder) as staging:
        save_packed(run.model, staging)
        save_tokenizer(run.data.tokenizer, staging)
        record = {
            "format": 1,
            "config": run.config.model_dump(mode="json"),
            "fingerprint": run.config.fingerprint(),
            "data": run.data.manifest["config_hash"],
            "precision": run.precision,
            "tokens": run.config.tokens,
            "seconds": round(run.seconds, 1),
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "history": run.history,
        }
        (staging / "training.json").write_text(json.dumps(record, indent=1) + "\n")
