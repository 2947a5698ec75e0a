"""The weights of a transcoder in training, and the loop that fits them: plain torch, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparse_lens.errors import DataError

if TYPE_CHECKING:
    from sparse_lens.dictionaries.transcoder_training import TranscoderTrainingConfig

Pair = tuple[Tensor, Tensor]
"""Activations of the same tokens at both hooks, `[token d_in]` and `[token d_out]`."""


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


def fit_transcoder(pairs: Iterator[Pair], config: TranscoderTrainingConfig, progress: bool) -> dict[str, Tensor]:
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
