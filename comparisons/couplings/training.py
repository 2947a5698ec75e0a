"""Training a coupling between two frozen models with the five losses of arXiv:2511.13653 (bridges).

    python -m sparse_lens.comparisons.couplings.training --out FOLDER

couples the dense twin of the shipped pair with its sparse model. The paper trains the sparse model along; here both models are
frozen, so that two of the five losses (`coupling_losses`), the sparse model's own and its distillation's, are constants, reported
but not descended.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.search.learning import frozen
from sparse_lens.comparisons.couplings.coupling import FILES, Coupling, load_coupling, ridge_coupling, write_coupling
from sparse_lens.comparisons.couplings.hybrids import hybrid_losses
from sparse_lens.comparisons.couplings.losses import OF_COUPLING, coupling_losses
from sparse_lens.comparisons.pair import ROLES, ModelPair
from sparse_lens.comparisons.reading import reading_windows
from sparse_lens.data import TokenData
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.files import check_writable, new_directory
from sparse_lens.results import Result, to_plain

STATISTICS = "statistics.json"


class CouplingTrainingConfig(BaseModel):
    """Every number that defines the training of a coupling."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=1_000_000, ge=0, description="tokens to train on; 0 leaves the closed form as it is")
    batch_size: int = Field(default=16, gt=0, description="windows per step")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate of Adam")
    warm_up: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    decay: float = Field(default=0.5, ge=0, le=1, description="share of the steps with linearly falling learning rate, at the end")
    reconstruction: float = Field(default=1.0, ge=0, description="weight of the reconstruction loss")
    dense_to_sparse: float = Field(default=1.0, ge=0, description="weight of the losses of hybrids that cross to the sparse model")
    sparse_to_dense: float = Field(default=1.0, ge=0, description="weight of the losses of hybrids that cross to the dense model")
    boundaries_per_step: int | None = Field(
        default=None,
        gt=0,
        description="boundaries drawn for the hybrids of a step, their losses scaled up to all; all of them unless given",
    )
    kl_top: int | None = Field(
        default=64, gt=1, description="tokens that the KL is over, the dense model's likeliest; all unless given"
    )
    kept: int | None = Field(default=None, gt=0, description="channels that the encoders' AbsTopK keeps; all unless given")
    start: Literal["ridge", "random"] = Field(
        default="ridge", description="where training starts: closed form, or small random maps"
    )
    ridge: float = Field(default=1e-4, gt=0, description="penalty of the closed form, relative to the mean variance")
    ridge_tokens: int = Field(default=262_144, gt=0, description="tokens that the closed form and the streams' means are from")
    seed: int = Field(default=0, ge=0, description="seeds the random maps and the drawing of boundaries")


@dataclass(frozen=True)
class TrainedCoupling:
    """A coupling as read back from its folder, and the losses of its hybrids on held-out windows."""

    coupling: Coupling
    statistics: dict[str, Result]
    folder: Path


def train_coupling(
    dense: Any,
    sparse: Any,
    token_batches: Iterable[Any],
    config: CouplingTrainingConfig,
    folder: str | Path,
    *,
    held_out: Int[np.ndarray, "window context_plus_1"],
    progress: bool = True,
) -> TrainedCoupling:
    """Fit a coupling of two frozen models in closed form, train it, measure its hybrids on `held_out`, and save it in `folder`.

    `token_batches` yields windows `[batch, context + 1]`; the first `config.ridge_tokens` serve the closed form and are trained
    on, too. The folder, which appears when all is done, holds the coupling and `statistics.json`: `hybrid_losses` before and
    after training, and the configuration. Equal seeds and tokens give equal maps; the models and the global random state are left
    alone.

    Raises as `shared_boundaries`, `DataError` when the tokens end too early, `OutputError` for a folder that cannot be written.
    """
    check_writable(folder, (*FILES, STATISTICS))
    batches = _rebatched(token_batches, config.batch_size)
    with frozen(dense), frozen(sparse):
        first = list(_first(batches, config.ridge_tokens))
        coupling = ridge_coupling(dense, sparse, (b[:, :-1] for b in first), ridge=config.ridge, kept=config.kept)
        if config.start == "random":
            _randomize(coupling, config.seed)
        before = hybrid_losses(dense, sparse, coupling, held_out)
        curve = _fit(dense, sparse, coupling, _chain(first, batches), config, progress)
        after = hybrid_losses(dense, sparse, coupling, held_out)
    report = {"held_out": after, "held_out_before": before, "curve": curve, "config": config.model_dump(mode="json")}
    with new_directory(folder) as staging:
        write_coupling(coupling, staging)
        (staging / STATISTICS).write_text(json.dumps(to_plain(report), indent=1) + "\n", encoding="utf-8")
    return TrainedCoupling(load_coupling(folder), after, Path(folder))


def _fit(
    dense: Any, sparse: Any, coupling: Coupling, batches: Iterator[Tensor], config: CouplingTrainingConfig, progress: bool
) -> list[dict[str, float]]:
    """Train in place; the losses of about fifty steps on the way, those of hybrids scaled up to all boundaries."""
    n = len(coupling.boundaries)
    optimizer = torch.optim.Adam(coupling.parameters(), lr=config.lr)
    draw = torch.Generator().manual_seed(config.seed)
    weights = {name: getattr(config, name) for name in OF_COUPLING}
    curve: list[dict[str, float]] = []
    done = step = 0
    with tqdm(total=config.tokens, unit="token", desc="coupling", disable=not progress) as bar:
        while done < config.tokens:
            if (batch := next(batches, None)) is None:
                raise DataError(f"the tokens ended after {done} of {config.tokens} to train on; give more, or lower tokens")
            optimizer.param_groups[0]["lr"] = config.lr * _share_of_rate(done / config.tokens, config)
            places = torch.randperm(n, generator=draw)[: config.boundaries_per_step].tolist()
            losses = coupling_losses(dense, sparse, coupling, batch, hybrids_at=places, kl_top=config.kl_top)
            optimizer.zero_grad()
            torch.stack([weight * losses[name] for name, weight in weights.items()]).sum().backward()
            optimizer.step()
            size = batch[:, :-1].numel()
            if step % max(1, config.tokens // size // 50) == 0:
                curve.append({"tokens": float(done)} | {name: float(loss.detach()) for name, loss in losses.items()})
            done, step = done + size, step + 1
            bar.update(size)
    return curve


def _share_of_rate(progress: float, config: CouplingTrainingConfig) -> float:
    """Of the peak learning rate, after a share of the tokens: up, level, down to a hundredth."""
    rising = progress / config.warm_up if progress < config.warm_up else 1.0
    falling = (1 - progress) / config.decay if config.decay and progress > 1 - config.decay else 1.0
    return max(min(rising, falling), 0.01)


def _randomize(coupling: Coupling, seed: int) -> None:
    """Small random maps with the streams' means as biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, mean in (("encoder", coupling.sparse_mean), ("decoder", coupling.dense_mean)):
            weight = getattr(coupling, f"{part}_weight")
            weight.normal_(generator=generator).mul_(0.1 / weight.shape[1] ** 0.5)
            getattr(coupling, f"{part}_bias").copy_(mean)


def _rebatched(token_batches: Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    """Batches of `batch_size` windows, whatever the size of those given; windows that do not fill one are dropped."""
    left: Tensor | None = None
    for batch in token_batches:
        tokens = torch.as_tensor(batch).long()
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise DataError(f"windows to train on are [batch, context + 1], got {tuple(tokens.shape)}")
        left = tokens if left is None else torch.cat([left, tokens])
        while len(left) >= batch_size:
            yield left[:batch_size]
            left = left[batch_size:]


def _first(batches: Iterator[Tensor], n_tokens: int) -> Iterator[Tensor]:
    taken = 0
    while taken < n_tokens:
        if (batch := next(batches, None)) is None:
            raise DataError(f"the tokens ended after {taken} of ridge_tokens={n_tokens}; give more, or lower it")
        taken += batch[:, :-1].numel()
        yield batch


def _chain(first: list[Tensor], rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield from first
    yield from rest


def main(arguments: Sequence[str] | None = None) -> None:
    """Couple two models of a pair."""
    options = _parser().parse_args(arguments)
    given = {name: getattr(options, name) for name in _OPTIONS if getattr(options, name) is not None}
    config = CouplingTrainingConfig(**given)
    pair = ModelPair.open(options.pair)
    for role in (options.dense, "sparse"):
        if not pair.shares_tokens(role):
            raise ConfigError(f"the {role} model has a tokenizer of its own; a coupling goes token by token")
    windows = training_windows(pair, config, options.data)
    dense, sparse = pair.open_model(options.dense), pair.open_model("sparse")
    trained = train_coupling(dense, sparse, windows, config, options.out, held_out=pair.windows["heldout"])
    sys.stdout.write(loss_lines(trained.statistics))


def tokens_to_read(tokens: int, context: int, batch_size: int) -> int:
    """As many as windows of `context + 1` hold in whole batches from which so many are trained on: one of each is not counted."""
    return (tokens // (batch_size * context) + 2) * batch_size * (context + 1)


def loss_lines(statistics: Mapping[str, Result]) -> str:
    """The losses of the models and hybrids as lines of text."""
    lines = [
        f"{name:55} {result}" + (f"   (nothing crosses: {result.null:.3f})" if result.null else "")
        for name, result in statistics.items()
    ]
    return "\n".join(lines) + "\n"


_OPTIONS = ("tokens", "lr", "boundaries_per_step", "kept", "seed", "start")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a coupling between a dense and a weight-sparse model, and print the loss of each hybrid.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the coupling")
    parser.add_argument("--pair", default="python", help="pair of models, by name or folder")
    parser.add_argument("--dense", choices=[role for role in ROLES if role != "sparse"], default="dense", help="the dense model")
    parser.add_argument("--data", type=Path, help="corpus folder of `sparse-lens train`; else what any machine has to read")
    for name in _OPTIONS:
        field = CouplingTrainingConfig.model_fields[name]
        kind = str if name == "start" else float if name == "lr" else int
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=field.default, help=field.description)
    return parser


def training_windows(pair: ModelPair, config: CouplingTrainingConfig, data: Path | None = None) -> Iterator[np.ndarray]:
    """Batches of windows `[batch, context + 1]` to train on: of a corpus' folder, or of what any machine has to read."""
    context, size = pair.windows["reference"].shape[1], config.batch_size
    n_tokens = max(config.tokens, config.ridge_tokens)
    if data is None:
        windows = reading_windows(pair, tokens_to_read(n_tokens, context, size), context=context + 1, seed=config.seed)
        return iter(np.array_split(windows, -(-len(windows) // size)))
    n_steps = n_tokens // (size * context) + 2
    return TokenData(data).batches(context=context, batch_size=size, seed=config.seed, n_steps=n_steps)


if __name__ == "__main__":
    main()
