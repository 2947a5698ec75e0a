"""Training a transcoder or a skip transcoder on a bridge's activations, into a folder that SAELens reads too.

SAELens runs transcoders but has no trainer for them (sae-lens 6.54). The latents are chosen as in a BatchTopK SAE
(arXiv:2412.06410): the `k` times batch largest of the whole batch. What is saved is a JumpReLU transcoder, whose one threshold is
fitted, after training, to `k` latents per token on tokens not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor

from sparse_lens.dictionaries.harvest import Bridge, harvest_activations
from sparse_lens.dictionaries.measurement import DictionaryStatistics, StatisticsSums
from sparse_lens.dictionaries.naming import training_record
from sparse_lens.dictionaries.sae_training import held_out_tokens
from sparse_lens.dictionaries.saelens_files import CFG, WEIGHTS, load_saelens
from sparse_lens.dictionaries.thresholds import threshold_for
from sparse_lens.dictionaries.transcoder import TranscoderDictionary
from sparse_lens.dictionaries.transcoder_fit import Pair, fit_transcoder
from sparse_lens.errors import ConfigError
from sparse_lens.files import check_writable, new_directory

STATISTICS = "statistics.json"
FORMAT_VERSION = "6.54.12"
"""SAELens' version whose format is written; where a folder names none, SAELens takes it for older than 6.0 and drops its hooks."""


class TranscoderTrainingConfig(BaseModel):
    """Every number that defines the training of a transcoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_sae: int = Field(gt=0, description="number of latents")
    k: int = Field(gt=0, description="latents active per token, on average")
    skip: bool = Field(default=False, description="with a linear path past the latents (arXiv:2501.18823)")
    tokens: int = Field(default=2_000_000, gt=0, description="activations to train on")
    batch_size: int = Field(default=1024, gt=0, description="activations per step")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate of Adam, on activations of mean norm sqrt(width)")
    warm_up: float = Field(default=0.02, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    decay: float = Field(default=0.3, ge=0, lt=1, description="share of the steps with falling learning rate, at the end")
    buffer_tokens: int = Field(default=65_536, gt=0, description="activations that are shuffled together")
    dead_window: int = Field(default=100_000, gt=0, description="activations without firing that make a latent dead")
    revive: float = Field(default=1.0, ge=0, description="weight of the loss that has dead latents reconstruct the error")
    held_out_tokens: int = Field(default=131_072, gt=0, description="tokens to measure on, of those not trained on")
    seed: int = Field(default=0, ge=0, description="seeds the initial weights and the shuffling")

    @property
    def steps(self) -> int:
        """Optimizer steps, the last batch full."""
        return -(-self.tokens // self.batch_size)


@dataclass(frozen=True)
class TrainedTranscoder:
    """A trained transcoder as read back from its folder, and what it achieves on held-out tokens."""

    dictionary: TranscoderDictionary
    statistics: DictionaryStatistics
    folder: Path


def train_transcoder(
    bridge: Bridge,
    hook_in: str,
    hook_out: str,
    token_batches: Iterable[Any],
    config: TranscoderTrainingConfig,
    folder: str | Path,
    *,
    held_out: Iterable[Any] | None = None,
    model_name: str | None = None,
    progress: bool = True,
) -> TrainedTranscoder:
    """Train a transcoder from the activations at `hook_in` to those at `hook_out` and save it in `folder`.

    `token_batches` yields batches of token ids `[batch, pos]`. `held_out` yields those to measure on; without, the first
    `config.held_out_tokens` tokens of `token_batches` are kept for it. The folder, which appears only when all is done, holds
    `cfg.json` and `sae_weights.safetensors` as SAELens has them (architecture jumprelu_transcoder or jumprelu_skip_transcoder),
    and `statistics.json`. Equal seeds, tokens and threads give equal weights; the global random state is left alone.

    Raises `ConfigError` for an impossible configuration, `DataError` when the tokens end too early or a hook gives no vector per
    position, `OutputError` for a folder that cannot be written.
    """
    _check_config(config)
    check_writable(folder, (CFG, WEIGHTS, STATISTICS))
    batches = iter(token_batches)
    kept = list(held_out_tokens(batches, config.held_out_tokens)) if held_out is None else list(held_out)
    hooks = (hook_in, hook_out)
    pairs, measured = (HookPairs(bridge, *hooks, tokens) for tokens in (batches, kept))
    model_name = model_name or getattr(bridge.cfg, "model_name", None)
    return train_transcoder_on(pairs, measured, config, folder, hooks=hooks, model_name=model_name, progress=progress)


@dataclass(frozen=True, eq=False)
class HookPairs:
    """The activations of the same tokens at two hooks, batch after batch, harvested anew at each pass over them."""

    bridge: Bridge
    hook_in: str
    hook_out: str
    token_batches: Iterable[Any]

    def __iter__(self) -> Iterator[Pair]:
        found = harvest_activations(self.bridge, [self.hook_in, self.hook_out], self.token_batches)
        return ((each[self.hook_in], each[self.hook_out]) for each in found)


def train_transcoder_on(
    pairs: Iterable[Pair],
    held_out: Iterable[Pair],
    config: TranscoderTrainingConfig,
    folder: str | Path,
    *,
    hooks: tuple[str, str],
    model_name: str | None = None,
    progress: bool = True,
) -> TrainedTranscoder:
    """`train_transcoder` on activations that are there already: batches of `[token d_in]` and `[token d_out]` of the same tokens.

    `held_out` is gone through once to fit the threshold and once to measure: a list, not an iterator. `hooks` (read, written) and
    `model_name` only go on record.
    """
    _check_config(config)
    check_writable(folder, (CFG, WEIGHTS, STATISTICS))
    weights = fit_transcoder(iter(pairs), config, progress)
    weights["threshold"] = _threshold(weights, held_out, config.k)
    metadata = {"hook_name": hooks[0], "hook_name_out": hooks[1], "model_name": model_name} | training_record(config)
    metadata |= {"training_architecture": "skip_transcoder" if config.skip else "transcoder", "prepend_bos": False}
    metadata |= {"sae_lens_version": FORMAT_VERSION}
    with new_directory(folder) as staging:
        _save(weights, metadata, staging)
        dictionary = load_saelens(staging)
        assert isinstance(dictionary, TranscoderDictionary)
        sums = StatisticsSums(dictionary)
        for source, target in held_out:
            sums.add(source.cpu(), target.cpu())
        statistics = sums.statistics()
        report = {"hash": dictionary.hash, "held_out": asdict(statistics), "config": config.model_dump(mode="json")}
        (staging / STATISTICS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return TrainedTranscoder(dictionary, statistics, Path(folder))


def _check_config(config: TranscoderTrainingConfig) -> None:
    if config.k > config.d_sae:
        raise ConfigError(f"k={config.k} latents of d_sae={config.d_sae} cannot be active; lower k")
    if config.buffer_tokens < 2 * config.batch_size:
        raise ConfigError(f"buffer_tokens={config.buffer_tokens} is less than two batches of {config.batch_size}; raise it")


def _threshold(weights: dict[str, Tensor], held_out: Iterable[Pair], k: int) -> Tensor:
    """The same threshold for all latents, at which `k` of them fire per held-out token."""
    found = (torch.addmm(weights["b_enc"], source.float().cpu(), weights["W_enc"]) for source, _ in held_out)
    return torch.full_like(weights["b_enc"], threshold_for(found, k))


def _save(weights: dict[str, Tensor], metadata: dict[str, Any], folder: Path) -> None:
    """SAELens' two files."""
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    config = {
        "architecture": "jumprelu_skip_transcoder" if "W_skip" in weights else "jumprelu_transcoder",
        **{"d_in": d_in, "d_out": d_out, "d_sae": d_sae, "dtype": "float32", "device": "cpu"},
        **{"apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none"},
        "metadata": metadata,
    }
    (folder / CFG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(weights, folder / WEIGHTS)
