"""A model's answers with each of many directions of latents weakened: runs that begin where the direction is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.comparisons.fracture.instances import Instances
from sparse_lens.dictionaries import Dictionary
from sparse_lens.hooks.instrumenting import lock_of
from sparse_lens.hooks.reruns import Edit, Reruns

Effects = Callable[[float], tuple[Float[Tensor, "unit row"], float]]
"""From a strength to the change of every prompt's output by each unit, and the mean KL from the unperturbed run, in nats."""

_SEQUENCES = 128
"""Sequences in a pass."""


class WeakenedDirections:
    """Unit directions among a dictionary's latents, of which the latents lose the share `strength`, one direction a run.

    Latents are read once, in the unchanged run: what is written of a direction is `strength` times its part in them, and decoding
    is affine, so that no run encodes or decodes anything.
    """

    def __init__(self, bridge: Any, dictionary: Dictionary, directions: Float[Tensor, "unit latent"]) -> None:
        self.bridge, self.dictionary, self.directions = bridge, dictionary, directions.to(dictionary.W_dec.dtype)

    def __len__(self) -> int:
        return len(self.directions)

    @torch.no_grad()
    def on(self, instances: Instances) -> Effects:
        """What weakens by a strength, for several strengths on few prompts: their unchanged runs stay in memory."""
        parts = list(self._recorded(instances))
        return lambda strength: self._effects(parts, len(instances.tokens), strength)

    def effects(self, instances: Instances, strength: float) -> tuple[Float[Tensor, "unit row"], float]:
        """The same for one strength, with no more than the prompts of one length in memory."""
        return self._effects(self._recorded(instances), len(instances.tokens), strength)

    def _recorded(self, instances: Instances) -> Iterator[_EqualLengths]:
        for position in instances.position.unique():
            for rows in (instances.position == position).nonzero().flatten().split(_SEQUENCES):
                yield _EqualLengths(self, instances, rows)

    @torch.no_grad()
    def _effects(self, parts: Iterable[_EqualLengths], n_rows: int, strength: float) -> tuple[Float[Tensor, "unit row"], float]:
        found, moved = torch.empty(len(self), n_rows, dtype=torch.float64), 0.0
        for part in parts:
            found[:, part.rows], divergence = part.effects(strength)
            moved += divergence
        return found, moved / (len(self) * n_rows)


class _EqualLengths:
    """Prompts of one length, their run recorded."""

    def __init__(self, units: WeakenedDirections, instances: Instances, rows: Int[Tensor, " row"]) -> None:
        dictionary = units.dictionary
        self.rows, self.hook = rows, dictionary.hook_out
        self._right, self._wrong = instances.right[rows], instances.wrong[rows]
        self._answer = int(instances.position[rows[0]])
        self._lock, self._logits = lock_of(units.bridge), []
        with self._lock:
            tokens = instances.tokens[rows, : self._answer + 1]
            self._reruns = Reruns(units.bridge, tokens, {dictionary.hook_in, dictionary.hook_out})
            self._reruns.score(self._keep)
        activation = self._reruns.recording.activations[dictionary.hook_in]
        latents = dictionary.encode(activation.flatten(2).to(units.directions.dtype))
        self._parts = torch.einsum("rpl,ul->urp", latents, units.directions)
        self._written = units.directions @ dictionary.W_dec
        self._base = self._logits.pop()

    def _keep(self, logits: Tensor) -> float:
        """Keeps the logits at the answer; the number itself is not used."""
        self._logits.append(logits[:, self._answer].clone())  # not a view of all positions
        return 0.0

    def effects(self, strength: float) -> tuple[Float[Tensor, "unit row"], float]:
        """Change of each prompt's output by each direction, and the sum of all divergences, in nats."""
        n_runs = 1 if self._reruns.one_by_one else max(1, _SEQUENCES // len(self.rows))
        base, found, moved = self._base.log_softmax(-1), [], 0.0
        for units in torch.arange(len(self._parts)).split(n_runs):
            with self._lock:
                self._reruns.scores(self.hook, self._weaken(units, strength), len(units), self._keep)
            logits = torch.stack(self._logits)
            self._logits.clear()
            found.append(self._outputs(logits) - self._outputs(self._base))
            moved += float(F.kl_div(logits.log_softmax(-1), base.expand_as(logits), reduction="sum", log_target=True))
        return torch.cat(found).double(), moved

    def _outputs(self, logits: Float[Tensor, "*run row vocab"]) -> Float[Tensor, "*run row"]:
        row = torch.arange(len(self.rows))
        return logits[..., row, self._right] - logits[..., row, self._wrong]

    def _weaken(self, units: Int[Tensor, " run"], strength: float) -> Edit:
        parts, written = strength * self._parts[units], self._written[units]

        def edit(activation: Tensor) -> None:
            change = parts[..., None] * written[:, None, None]
            activation -= change.view(activation.shape).to(activation.dtype)

        return edit
