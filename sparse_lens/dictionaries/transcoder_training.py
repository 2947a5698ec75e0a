"""Training a transcoder or a skip transcoder on a bridge's activations, into a folder that SAELens reads too.

SAELens runs transcoders but has no trainer for them (sae-lens 6.54). The latents are chosen as in a BatchTopK SAE
(arXiv:2412.06410): the `k` times batch largest of the whole batch. What is saved is a JumpReLU transcoder, whose one threshold is
fitted, after training, to `k` latents per token on tokens not trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparse_lens.dictionaries.harvest import Bridge, harvest_activations
from sparse_lens.dictionaries.measurement import DictionaryStatistics, measure_dictionary
from sparse_lens.dictionaries.saelens_files import CFG, WEIGHTS, load_saelens
from sparse_lens.dictionaries.thresholds import threshold_for
from sparse_lens.dictionaries.transcoder import TranscoderDictionary
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.files import check_writable, new_directory

STATISTICS = "statistics.json"

Pair = tuple[Tensor, Tensor]
"""Activations of the same tokens at both hooks, `[token d_in]` and `[token d_out]`."""


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
    if config.k > config.d_sae:
        raise ConfigError(f"k={config.k} latents of d_sae={config.d_sae} cannot be active; lower k")
    if config.buffer_tokens < 2 * config.batch_size:
        raise ConfigError(f"buffer_tokens={config.buffer_tokens} is less than two batches of {config.batch_size}; raise it")
    check_writable(folder, (CFG, WEIGHTS, STATISTICS))
    batches = iter(token_batches)
    kept = list(_first(batches, config.held_out_tokens)) if held_out is None else list(held_out)
    found = harvest_activations(bridge, [hook_in, hook_out], batches)
    weights = _fit(((each[hook_in], each[hook_out]) for each in found), config, progress)
    weights["threshold"] = _threshold(bridge, hook_in, weights, kept, config.k)
    metadata = {
        "hook_name": hook_in,
        "hook_name_out": hook_out,
        "model_name": model_name or getattr(bridge.cfg, "model_name", None),
    }
    with new_directory(folder) as staging:
        _save(weights, metadata, staging)
        dictionary = load_saelens(staging)
        assert isinstance(dictionary, TranscoderDictionary)
        statistics = measure_dictionary(bridge, dictionary, kept)
        report = {"hash": dictionary.hash, "held_out": asdict(statistics), "config": config.model_dump(mode="json")}
        (staging / STATISTICS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return TrainedTranscoder(dictionary, statistics, Path(folder))


def _first(batches: Iterator[Any], n_tokens: int) -> Iterator[Tensor]:
    taken = 0
    while taken < n_tokens:
        batch = next(batches, None)
        if batch is None:
            raise DataError(f"the tokens ended after {taken}, held_out_tokens={n_tokens} of them are to be measured on; give more")
        taken += torch.as_tensor(batch).numel()
        yield torch.as_tensor(batch)


class _Transcoder(nn.Module):
    """The weights in training: activations scaled to a mean norm of sqrt(width), decoder rows of norm one."""

    def __init__(self, x: Tensor, y: Tensor, config: TranscoderTrainingConfig, generator: torch.Generator) -> None:
        super().__init__()
        d_in, d_out, n = x.shape[1], y.shape[1], config.d_sae
        self.k = config.k
        self.W_enc = nn.Parameter(torch.randn(d_in, n, generator=generator) / math.sqrt(d_in))
        self.b_enc = nn.Parameter(torch.zeros(n))
        self.W_dec = nn.Parameter(torch.randn(n, d_out, generator=generator))
        self.b_dec = nn.Parameter(y.mean(0))
        self.W_skip = nn.Parameter(torch.zeros(d_out, d_in)) if config.skip else None
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Decoder rows of norm one, so that the size of a latent is what it writes."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8))

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers before the choice, and the chosen: the `k` times batch largest of all, as far as they are positive."""
        before = torch.addmm(self.b_enc, x, self.W_enc)
        values = before.detach().numpy().ravel()
        count = min(self.k * len(x), values.size)
        least = float(np.partition(values, values.size - count)[values.size - count])
        return before, before * (before >= max(least, 1e-12))

    def rebuilt(self, x: Tensor, latents: Tensor) -> Tensor:
        out = torch.addmm(self.b_dec, latents, self.W_dec)
        return out if self.W_skip is None else out + x @ self.W_skip.T


def _fit(pairs: Iterator[Pair], config: TranscoderTrainingConfig, progress: bool) -> dict[str, Tensor]:
    """Trained weights in the units of the activations, by SAELens' names."""
    generator = torch.Generator().manual_seed(config.seed)
    batches = _shuffled(pairs, config, generator)
    first = next(batches, None)
    if first is None:
        raise DataError("no tokens to train a transcoder on; give batches of token ids [batch, pos]")
    scales = tuple(_scale(part) for part in first)
    model = _Transcoder(first[0] * scales[0], first[1] * scales[1], config, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(0.9, 0.999))
    silent = torch.zeros(config.d_sae, dtype=torch.long)
    with torch.enable_grad(), tqdm(total=config.steps, desc="transcoder", disable=not progress) as bar:
        for step in range(config.steps):
            batch = first if step == 0 else next(batches, None)
            if batch is None:
                seen, needed = step * config.batch_size, config.steps * config.batch_size + config.buffer_tokens // 2
                raise DataError(f"the tokens ended after {seen} of {config.tokens} activations to train on; give at least {needed}")
            optimizer.param_groups[0]["lr"] = config.lr * _rate(step, config)
            _step(model, optimizer, batch[0] * scales[0], batch[1] * scales[1], silent, config)
            bar.update()
    return _in_units(model, scales)


def _step(
    model: _Transcoder,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    silent: Tensor,
    config: TranscoderTrainingConfig,
) -> None:
    """One step of Adam; `silent` counts each latent's activations without firing."""
    before, latents = model.latents(x)
    error = y - model.rebuilt(x, latents)
    loss = error.pow(2).sum(1).mean()
    dead = silent >= config.dead_window
    if config.revive and bool(dead.any()):
        loss = loss + config.revive * _revival(model, before, error.detach(), dead)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.normalize()
    silent += len(x)
    silent[(latents.detach() != 0).any(0)] = 0


def _revival(model: _Transcoder, before: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """Squared error of the error as the dead latents of largest activation rebuild it (AuxK; arXiv:2406.04093, section 2.4)."""
    most = min(int(dead.sum()), error.shape[1] // 2)
    values, places = before.masked_fill(~dead, -math.inf).topk(most, dim=1, sorted=False)
    rebuilt = torch.zeros_like(before).scatter(1, places, values.relu()) @ model.W_dec
    share = min(1.0, int(dead.sum()) / (error.shape[1] / 2))
    return share * (error - rebuilt).pow(2).sum(1).mean()


def _shuffled(pairs: Iterator[Pair], config: TranscoderTrainingConfig, generator: torch.Generator) -> Iterator[Pair]:
    """Batches drawn from a buffer of `buffer_tokens`, half of which is handed out before it is filled again."""
    held: list[Pair] = []
    size = 0
    for x, y in pairs:
        held.append((x.float().cpu(), y.float().cpu()))
        size += len(x)
        if size >= config.buffer_tokens:
            mixed = _mixed(held, generator)
            half = len(mixed[0]) // 2 // config.batch_size * config.batch_size
            yield from _cut(mixed, half, config.batch_size)
            held, size = [(mixed[0][half:].clone(), mixed[1][half:].clone())], len(mixed[0]) - half
    if held:
        mixed = _mixed(held, generator)
        yield from _cut(mixed, len(mixed[0]) // config.batch_size * config.batch_size, config.batch_size)


def _mixed(held: list[Pair], generator: torch.Generator) -> Pair:
    x, y = (torch.cat(part) for part in zip(*held, strict=True))
    order = torch.randperm(len(x), generator=generator)
    return x[order], y[order]


def _cut(pair: Pair, end: int, size: int) -> Iterator[Pair]:
    for start in range(0, end, size):
        yield pair[0][start : start + size], pair[1][start : start + size]


def _scale(activations: Tensor) -> float:
    """The factor that gives the activations a mean norm of sqrt(width)."""
    norm = float(activations.norm(dim=1).mean())
    if not 0 < norm < math.inf:
        raise DataError(f"the activations have a mean norm of {norm}; there is nothing to learn there")
    return math.sqrt(activations.shape[1]) / norm


def _rate(step: int, config: TranscoderTrainingConfig) -> float:
    """The learning rate's factor: a linear rise, a plateau, a linear fall to a tenth."""
    rise, fall = config.warm_up * config.steps, config.decay * config.steps
    rising = min(1.0, (step + 1) / rise) if rise >= 1 else 1.0
    left = (config.steps - step) / fall if fall >= 1 else 1.0
    return rising * (1.0 if left >= 1 else 0.1 + 0.9 * left)


@torch.no_grad()
def _in_units(model: _Transcoder, scales: tuple[float, ...]) -> dict[str, Tensor]:
    """The same function of activations that are not scaled: latents stay in scaled units of the output divided back."""
    source, target = scales
    weights = {"W_enc": model.W_enc * source / target, "b_enc": model.b_enc / target, "W_dec": model.W_dec.clone()}
    weights["b_dec"] = model.b_dec / target
    if model.W_skip is not None:
        weights["W_skip"] = model.W_skip * source / target
    return {name: tensor.detach().contiguous() for name, tensor in weights.items()}


def _threshold(bridge: Bridge, hook: str, weights: dict[str, Tensor], batches: list[Any], k: int) -> Tensor:
    """The same threshold for all latents, at which `k` of them fire per held-out token."""
    found = (each[hook] @ weights["W_enc"] + weights["b_enc"] for each in harvest_activations(bridge, [hook], batches))
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
