"""Training an SAE on a bridge's activations with SAELens' trainer, offline, into a SAELens folder.

sae-lens is imported inside the functions that need it: it is the extra `[sae]` and takes seconds to import. The model
is harvested here, so nothing of it needs to be known to SAELens: a bridge without a tokenizer, or of an architecture
of one's own, will do.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_lens.dictionaries.activation_store import HookActivations
from sparse_lens.dictionaries.harvest import Bridge
from sparse_lens.dictionaries.measurement import DictionaryStatistics, StatisticsSums
from sparse_lens.dictionaries.naming import training_record
from sparse_lens.dictionaries.sae_kinds import ONE_THRESHOLD, Architecture, training_sae
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.dictionaries.saelens_files import CFG, WEIGHTS, load_saelens
from sparse_lens.dictionaries.thresholds import threshold_for
from sparse_lens.errors import ConfigError, DataError, SparseLensError
from sparse_lens.files import check_writable, new_directory

STATISTICS = "statistics.json"


class SAETrainingConfig(BaseModel):
    """Every number that defines the training of an SAE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_sae: int = Field(gt=0, description="number of latents")
    k: int = Field(gt=0, description="latents active per token; on average, but for topk")
    architecture: Architecture = Field(default="topk", description="kind of SAE: topk, batchtopk, matryoshka or jumprelu")
    frozen_decoder: bool = Field(default=False, description="leave the random decoder as it is: a control (arXiv:2602.14111)")
    sparsity: float = Field(default=1.0, gt=0, description="of jumprelu: weight of the loss that steers it to k")
    tokens: int = Field(default=2_000_000, gt=0, description="activations to train on")
    batch_size: int = Field(default=1024, gt=0, description="activations per step")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate of Adam, on activations of mean norm sqrt(d_in)")
    warm_up: float = Field(default=0.02, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    decay: float = Field(default=0.3, ge=0, lt=1, description="share of the steps with falling learning rate, at the end")
    buffer_tokens: int = Field(default=65_536, gt=0, description="activations that are shuffled together")
    dead_window: int = Field(default=100_000, gt=0, description="activations without firing that make a latent dead")
    revive: float = Field(default=1.0, ge=0, description="weight of the loss that has dead latents reconstruct the error")
    held_out_tokens: int = Field(default=131_072, gt=0, description="tokens to measure on, of those not trained on")
    half: bool = Field(default=False, description="round the saved weights to float16, half the size; they are used as float32")
    seed: int = Field(default=0, ge=0, description="seeds the initial weights and the shuffling")

    @property
    def steps(self) -> int:
        """Optimizer steps, the last batch full."""
        return -(-self.tokens // self.batch_size)

    @property
    def scale_batches(self) -> int:
        """Batches read before, to estimate the mean norm: 1 % of the training, at most 20."""
        return min(20, max(1, self.steps // 100))


@dataclass(frozen=True)
class TrainedSAE:
    """A trained SAE as read back from its folder, and what it achieves on held-out tokens."""

    dictionary: SAELensDictionary
    statistics: DictionaryStatistics
    folder: Path


def train_sae(
    bridge: Bridge,
    hook: str,
    token_batches: Iterable[Any],
    config: SAETrainingConfig,
    folder: str | Path,
    *,
    held_out: Iterable[Any] | None = None,
    model_name: str | None = None,
    progress: bool = True,
) -> TrainedSAE:
    """Train an SAE on the activations at `hook` and save it, in SAELens' format, in `folder`.

    `token_batches` yields batches of token ids `[batch, pos]`. `held_out` yields those to measure on; without, the
    first `config.held_out_tokens` tokens of `token_batches` are kept for it. The folder, which appears only when all
    is done, holds `cfg.json` and `sae_weights.safetensors` as SAELens has them, and `statistics.json`: the statistics
    of the weights as saved, and `config`. Equal seeds and tokens give equal weights; the global random state is left
    alone. Nothing touches the network.

    Raises `SparseLensError` without sae-lens, `ConfigError` for an impossible configuration, `DataError` when the
    tokens end too early or a hook gives no vector per position, `OutputError` for a folder that cannot be written.
    """
    require_sae_lens()
    _check_config(config)
    check_writable(folder, (CFG, WEIGHTS, STATISTICS))
    batches = iter(token_batches)
    kept = list(held_out_tokens(batches, config.held_out_tokens) if held_out is None else held_out)
    activations, measured = (HookActivations(bridge, hook, tokens) for tokens in (batches, kept))
    model_name = model_name or getattr(bridge.cfg, "model_name", None)
    return train_sae_on(activations, measured, config, folder, hook=hook, model_name=model_name, progress=progress)


def train_sae_on(
    activations: Iterable[Float[Tensor, "_ d_in"]],
    held_out: Iterable[Float[Tensor, "_ d_in"]],
    config: SAETrainingConfig,
    folder: str | Path,
    *,
    hook: str,
    model_name: str | None = None,
    progress: bool = True,
) -> TrainedSAE:
    """`train_sae` on activations that are there already, batches `[token d_in]`; `hook` and `model_name` only go on record.

    `held_out` is gone through once to fit a threshold and once to measure: a list, not an iterator.
    """
    require_sae_lens()
    _check_config(config)
    check_writable(folder, (CFG, WEIGHTS, STATISTICS))
    metadata = {"hook_name": hook, "model_name": model_name} | training_record(config)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        sae = _fit(iter(activations), config, metadata, progress)
    with new_directory(folder) as staging:
        _save(sae, staging, half=config.half)
        if config.architecture in ONE_THRESHOLD:
            _fit_threshold(staging, held_out, config.k)
        dictionary = load_saelens(staging)
        assert isinstance(dictionary, SAELensDictionary)
        sums = StatisticsSums(dictionary)
        for batch in held_out:
            sums.add(batch.cpu(), batch.cpu())
        statistics = sums.statistics()
        report = {"hash": dictionary.hash, "held_out": asdict(statistics), "config": config.model_dump(mode="json")}
        (staging / STATISTICS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return TrainedSAE(dictionary, statistics, Path(folder))


def require_sae_lens() -> None:
    try:
        import sae_lens  # noqa: F401
    except ImportError as error:
        raise SparseLensError(
            f"training or fetching an SAE needs sae-lens, which cannot be imported ({error}); "
            'pip install "sparse-lens[sae]" (it brings TransformerLens 3)'
        ) from error


def _check_config(config: SAETrainingConfig) -> None:
    if config.k > config.d_sae:
        raise ConfigError(f"k={config.k} latents of d_sae={config.d_sae} cannot be active; lower k")
    if config.buffer_tokens < config.batch_size:
        raise ConfigError(f"buffer_tokens={config.buffer_tokens} is less than batch_size={config.batch_size}; raise it")


def held_out_tokens(batches: Iterator[Any], n_tokens: int) -> Iterator[Tensor]:
    """Batches off the front until they hold `n_tokens`; no more is asked of the iterator than that.

    Raises `DataError` if it ends before.
    """
    taken = 0
    while taken < n_tokens:
        batch = next(batches, None)
        if batch is None:
            raise DataError(f"the tokens ended after {taken}, held_out_tokens={n_tokens} of them are to be measured on; give more")
        batch = torch.as_tensor(batch)
        taken += batch.numel()
        yield batch


def _fit(
    activations: Iterator[Float[Tensor, "token d_in"]],
    config: SAETrainingConfig,
    metadata: dict[str, Any],
    progress: bool,
) -> Any:
    """Train with SAELens' trainer; the scale of the activations is estimated first and folded in at the end."""
    from sae_lens.training.mixing_buffer import mixing_buffer
    from sae_lens.training.sae_trainer import SAETrainer

    first = next(activations, None)
    if first is None:
        raise DataError("no tokens to train an SAE on; give batches of token ids [batch, pos]")
    if not bool(first.any()):
        raise DataError(f"the activations at {metadata['hook_name']!r} are all zero; there is nothing to learn there")
    sae = training_sae(config, _common_settings(first, metadata, config))
    provider = mixing_buffer(config.buffer_tokens, config.batch_size, _chain(first, activations))
    provider = (batch.float() for batch in provider)
    trainer = SAETrainer(_trainer_config(config, first.device), sae, provider)
    # SAELens always shows its bars; they go to stderr.
    quiet = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            return trainer.fit()
    except StopIteration:
        needed = (config.steps + config.scale_batches) * config.batch_size
        raise DataError(
            f"the tokens ended after {trainer.n_training_samples} of {config.tokens} activations to train on; "
            f"give at least {needed} (some estimate the scale), beside those held out, or lower tokens"
        ) from None


def _common_settings(activations: Tensor, metadata: dict[str, Any], config: SAETrainingConfig) -> dict[str, Any]:
    """What the configurations of all SAELens' SAEs have in common."""
    from sae_lens.saes.sae import SAEMetadata

    return {
        "d_in": activations.shape[-1],
        "d_sae": config.d_sae,
        "device": str(activations.device),
        "normalize_activations": "expected_average_only_in",
        "metadata": SAEMetadata(**metadata, prepend_bos=False),
    }


def _trainer_config(config: SAETrainingConfig, device: torch.device) -> Any:
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    return SAETrainerConfig(
        total_training_samples=config.steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr / 10,
        lr_warm_up_steps=int(config.warm_up * config.steps),
        lr_decay_steps=int(config.decay * config.steps),
        device=str(device),
        dead_feature_window=-(-config.dead_window // config.batch_size),
        n_batches_for_norm_estimate=config.scale_batches,
        logger=LoggingConfig(log_to_wandb=False),
    )


def _chain(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def _fit_threshold(folder: Path, held_out: Iterable[Tensor], k: int) -> None:
    """Put into the saved SAE the threshold at which `k` latents fire per held-out token."""
    dictionary = load_saelens(folder)
    assert isinstance(dictionary, SAELensDictionary)
    threshold = threshold_for((dictionary.before(batch.cpu()) for batch in held_out), k)
    weights = load_file(folder / WEIGHTS)
    save_file(weights | {"threshold": torch.full_like(weights["threshold"], threshold)}, folder / WEIGHTS)


def _save(sae: Any, folder: Path, *, half: bool) -> None:
    """SAELens' own files; with `half`, weights rounded to float16, which both readers convert back."""
    sae.save_inference_model(folder)
    config = json.loads((folder / CFG).read_text(encoding="utf-8"))
    # SAELens has folded the decoder's norms into the saved weights: rescaling once more would only undo the rounding.
    config |= {"device": "cpu", "rescale_acts_by_decoder_norm": False}
    (folder / CFG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not half:
        return
    weights = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ConfigError("the SAE's weights are too large for float16 (above 65504); train with half=False")
    save_file(weights, folder / WEIGHTS)
