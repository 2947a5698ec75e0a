"""Many SAEs of one hook from one harvest: widths by latents per token by seeds, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.dictionaries.activation_store import HookActivations, stored_activations
from sparse_lens.dictionaries.harvest import Bridge
from sparse_lens.dictionaries.measurement import DictionaryStatistics
from sparse_lens.dictionaries.sae_kinds import Architecture
from sparse_lens.dictionaries.sae_training import STATISTICS, SAETrainingConfig, TrainedSAE, held_out_tokens, train_sae_on
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.dictionaries.saelens_files import load_saelens
from sparse_lens.errors import CheckpointError, ConfigError, DataError
from sparse_lens.files import new_file

SOURCE = "source.json"
"""What the SAEs of a folder were trained on: a hook, and a sample of the first activations."""

_SAMPLE = (8, 32)
_TOLERANCE = 1e-3


def frontier_configs(
    base: SAETrainingConfig,
    *,
    d_sae: Sequence[int],
    k: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    architectures: Sequence[Architecture] = ("topk",),
) -> list[SAETrainingConfig]:
    """`base` with each width, number of active latents per token, seed and kind; a `k` above the width is left out."""
    return [
        base.model_copy(update={"architecture": architecture, "d_sae": width, "k": active, "seed": seed})
        for architecture in architectures
        for width in d_sae
        for active in k
        for seed in seeds
        if active <= width
    ]


def train_frontier(
    bridge: Bridge,
    hook: str,
    token_batches: Iterable[Any],
    configs: Sequence[SAETrainingConfig],
    folder: str | Path,
    *,
    held_out: Iterable[Any] | None = None,
    model_name: str | None = None,
    memory_gb: float = 1.0,
    progress: bool = True,
) -> list[TrainedSAE]:
    """Train the SAEs of `configs` at `hook`, each into a folder of its own in `folder`, from one harvest of activations.

    `token_batches` and `held_out` as in `train_sae`, whose SAEs these equal where the batches have one size; without `held_out`
    the largest `held_out_tokens` of `configs` are kept for it. The activations to train on, and those to measure on, lie in memory
    up to `memory_gb` gigabytes each, beyond that in a file in `folder` until all is done. What `folder` holds of the same
    configuration is read, not trained again, so that a killed run goes on where it was.

    Raises what `train_sae` raises, `ConfigError` where `folder` holds SAEs of other activations (another hook, model or text).
    """
    if not configs:
        raise ConfigError("no configurations to train; make some with frontier_configs")
    place = Path(folder)
    batches = iter(token_batches)
    kept = list(held_out if held_out is not None else held_out_tokens(batches, max(c.held_out_tokens for c in configs)))
    first = next(batches, None)
    sample = _Sample.of(hook, next(iter(HookActivations(bridge, hook, [] if first is None else [first])), None))
    sample.agree(place)
    missing = [config for config in dict.fromkeys(configs) if not (place / frontier_name(config) / STATISTICS).is_file()]
    if missing:
        training, measured = (HookActivations(bridge, hook, tokens) for tokens in (_chain(first, batches), kept))
        n_tokens, n_kept = max(map(_tokens_read, missing)), sum(torch.as_tensor(batch).numel() for batch in kept)
        with (
            stored_activations(training, n_tokens, place / "activations.npy", memory_gb=memory_gb) as training,
            stored_activations(measured, n_kept, place / "held_out.npy", memory_gb=memory_gb) as measured,
        ):
            model_name = model_name or getattr(bridge.cfg, "model_name", None)
            for config in tqdm(missing, desc="SAEs", disable=not progress):
                target = place / frontier_name(config)
                train_sae_on(training, measured, config, target, hook=hook, model_name=model_name, progress=False)
    return [_read(place / frontier_name(config), config) for config in configs]


def frontier_name(config: SAETrainingConfig) -> str:
    """The folder of a configuration: kind, size and seed in plain words, and eight digits of a hash of all of it."""
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]
    kind = f"{'frozen-' if config.frozen_decoder else ''}{config.architecture}"
    return f"{kind}-{config.d_sae}-k{config.k}-seed{config.seed}-{digest}"


@dataclass(frozen=True)
class _Sample:
    """What tells the activations of one hook, model and text from all others, but not one machine's rounding from another's."""

    hook: str
    width: int
    values: list[list[float]]

    @classmethod
    def of(cls, hook: str, activations: Tensor | None) -> _Sample:
        rows, columns = _SAMPLE
        if activations is None:
            raise DataError("no tokens to train SAEs on; give batches of token ids [batch, pos]")
        return cls(hook, activations.shape[1], activations[:rows, :columns].float().tolist())

    def agree(self, folder: Path) -> None:
        """Write the sample beside the SAEs, or compare it with that of an earlier run."""
        path = folder / SOURCE
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with new_file(path) as staging:
                staging.write_text(json.dumps(vars(self)) + "\n", encoding="utf-8")
            return
        try:
            other = _Sample(**json.loads(path.read_text(encoding="utf-8")))
            ours, theirs = np.array(self.values), np.array(other.values, dtype=np.float64)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; use another folder") from error
        same = (self.hook, self.width, ours.shape) == (other.hook, other.width, theirs.shape)
        if not same or not np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE * float(np.abs(ours).max())):
            raise ConfigError(
                f"{folder} holds SAEs of other activations (hook {other.hook!r}, width {other.width}), not of {self.hook!r} "
                "of this model and text; use another folder"
            )


def _tokens_read(config: SAETrainingConfig) -> int:
    """As many activations as a training can draw: to train on, to estimate the scale, and to fill the buffer at its end."""
    return (config.steps + config.scale_batches) * config.batch_size + 2 * config.buffer_tokens


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _read(folder: Path, config: SAETrainingConfig) -> TrainedSAE:
    """A trained SAE from its folder, as its training returned it."""
    path = folder / STATISTICS
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        statistics, digest = DictionaryStatistics(**report["held_out"]), report["hash"]
        trained = SAETrainingConfig(**report["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; remove {folder} to have it trained again") from error
    dictionary = load_saelens(folder)
    if not isinstance(dictionary, SAELensDictionary) or dictionary.hash != digest or trained != config:
        raise CheckpointError(f"{folder} does not hold the SAE that its {STATISTICS} describes; remove it to have it trained again")
    return TrainedSAE(dictionary, statistics, folder)
