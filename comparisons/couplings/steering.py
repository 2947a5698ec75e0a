"""Steering the dense model through one channel of the sparse model: is a sparse channel a handle on the dense computation?

At a boundary the dense stream `h` is encoded, one channel `c` of the encoding is moved towards the value that it has on the
pair's other prompt, and the difference is mapped back: `h' = h + decode(s') - decode(s)`, which for a linear decoder is `(s'_c -
s_c) W_dec[c]`. All positions are edited at once. The channel is chosen in the sparse model, on prompts of other templates.
(arXiv:2511.13653, bridges.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.prompts import Prompts, both_sides, per_pair
from sparse_lens.circuits.scoring import logit_differences
from sparse_lens.circuits.search.learning import frozen
from sparse_lens.comparisons.couplings.coupling import Coupling
from sparse_lens.comparisons.couplings.hybrids import streams
from sparse_lens.errors import ConfigError
from sparse_lens.results import Result, bootstrap_mean
from sparse_lens.tasks import AnyTask

_CHUNK = 64
"""Prompts that are run together; even, so that pairs stay whole."""


@dataclass(frozen=True, eq=False)
class Steering:
    """What one channel does at one boundary, on one task.

    `results`, on the dense model and in logits (right minus wrong answer) unless said otherwise, means over held-out pairs:
    `effect_search` is that of the channel on the prompts that it was chosen on, and so what to choose a boundary by.
    `logit_difference` unsteered; `effect`, the change by the channel; `flipped`, the share of prompts whose preferred answer
    changes; for both, `null` is the mean over random channels edited alike. `effect_equal_norm`: the change by random channels
    whose edit of the dense stream is made as long, token by token, as the chosen channel's. `whole_effect`: of all channels at
    once, what a coupling can do at most. `sparse_effect`: of the same channel in the sparse model itself.
    """

    task: str
    boundary: str
    channel: int
    results: dict[str, Result]


def measure_steering(
    dense: Any,
    sparse: Any,
    coupling: Coupling,
    task: AnyTask,
    boundary: int,
    *,
    channel: int | None = None,
    strength: float = 1.0,
    n_pairs: int = 128,
    n_controls: int = 16,
    seed: int = 0,
) -> Steering:
    """Steer the dense model at a boundary (its number) through `channel`, by default the one that matters most in the sparse model.

    `strength` 1 gives the channel the other prompt's value, 2 goes as far again. The channel is chosen on the search templates,
    effects are measured on the held-out ones. Raises `ConfigError` for models that the coupling does not belong to and for a
    channel or boundary that it does not have.
    """
    coupling.check_models(dense, sparse)
    hook = _hook(coupling, boundary, channel)
    chosen_on = both_sides(task.sample(sparse.tokenizer, n_pairs, seed=seed, split="search"))
    if channel is None:
        channel = int(channel_attributions(sparse, hook, chosen_on).argmin())
    others = torch.randperm(coupling.d_sparse, generator=torch.Generator().manual_seed(seed)).tolist()
    controls = [other for other in others if other != channel][:n_controls]
    prompts = both_sides(task.sample(dense.tokenizer, n_pairs, seed=seed, split="heldout"))

    def runs_on(prompts: Prompts) -> list[_Steered]:
        chunks = [prompts.rows(slice(start, start + _CHUNK)) for start in range(0, len(prompts), _CHUNK)]
        return [_Steered.of(dense, sparse, coupling, chunk, boundary, strength) for chunk in chunks]

    first = torch.cat([run.move(channel) for run in runs_on(chosen_on)]).double()
    results = {"effect_search": bootstrap_mean(per_pair(first, chosen_on))}
    return Steering(task.name, hook, channel, results | _effects(runs_on(prompts), prompts, channel, controls))


def _effects(runs: Sequence[_Steered], prompts: Prompts, chosen: int, controls: Sequence[int]) -> dict[str, Result]:
    """The numbers of `Steering`, over the runs of all prompts."""

    def over_runs(part: Callable[[_Steered], Tensor]) -> Float[Tensor, " row"]:
        return torch.cat([part(run) for run in runs]).double()

    def mean(values: Tensor, null: Tensor | None = None) -> Result:
        return bootstrap_mean(per_pair(values.double(), prompts), null=None if null is None else float(null.double().mean()))

    plain = over_runs(lambda run: run.plain)
    effect = over_runs(lambda run: run.move(chosen))
    random = torch.stack([over_runs(lambda run, of=other: run.move(of)) for other in controls])
    as_far = torch.stack([over_runs(lambda run, of=other: run.move_as_far(of, chosen)) for other in controls])
    flipped, flipped_at_random = ((plain > 0) != (plain + change > 0) for change in (effect, random))
    return {
        "logit_difference": mean(plain),
        "effect": mean(effect, random),
        "effect_equal_norm": mean(as_far.mean(0)),
        "flipped": mean(flipped, flipped_at_random),
        "whole_effect": mean(over_runs(_Steered.move_all)),
        "sparse_effect": mean(over_runs(lambda run: run.move_in_sparse(chosen))),
    }


def channel_attributions(sparse: Any, hook: str, prompts: Prompts) -> Float[Tensor, " d_sparse"]:
    """First-order change of the logit difference by giving each channel, at all positions, the value of the pair's other prompt.

    `mean over prompts of sum over positions of gradient * (other - own)` in the sparse model; the most negative steers most.
    """
    total: Tensor | None = None
    for start in range(0, len(prompts), _CHUNK):
        chunk = prompts.rows(slice(start, start + _CHUNK))
        own, other = _both_streams(sparse, hook, chunk)
        leaf = own.clone().requires_grad_()
        with torch.enable_grad(), frozen(sparse):
            differences = logit_differences(sparse, chunk, [(hook, lambda *_, stream=leaf, **__: stream)])
            (gradient,) = torch.autograd.grad(differences.sum(), leaf)
        summed = (gradient * (other - own)).sum((0, 1)).double()
        total = summed if total is None else total + summed
    assert total is not None
    return total / len(prompts)


@torch.no_grad()
def _both_streams(bridge: Any, hook: str, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """The stream on every prompt and on the pair's other one."""
    return tuple(streams(bridge, (hook,), tokens)[1][0] for tokens in (prompts.tokens, prompts.other))  # pyright: ignore[reportReturnType]


def _hook(coupling: Coupling, boundary: int, channel: int | None) -> str:
    if not 0 <= boundary < len(coupling.boundaries):
        raise ConfigError(f"boundary {boundary} is none of 0 to {len(coupling.boundaries) - 1}: {', '.join(coupling.boundaries)}")
    if channel is not None and not 0 <= channel < coupling.d_sparse:
        raise ConfigError(f"channel {channel} is none of the sparse model's 0 to {coupling.d_sparse - 1}")
    return coupling.boundaries[boundary]


@dataclass(frozen=True, eq=False)
class _Steered:
    """Some prompts with both models' streams at a boundary; every edit returns the change of the logit difference, `[row]`."""

    dense: Any
    sparse: Any
    prompts: Prompts
    hook: str
    stream: Float[Tensor, "row pos d_dense"]
    sparse_stream: Float[Tensor, "row pos d_sparse"]
    moves: Float[Tensor, "row pos d_sparse"]
    sparse_moves: Float[Tensor, "row pos d_sparse"]
    directions: Float[Tensor, "d_sparse d_dense"]
    plain: Float[Tensor, " row"]
    plain_sparse: Float[Tensor, " row"]

    @classmethod
    @torch.no_grad()
    def of(cls, dense: Any, sparse: Any, coupling: Coupling, prompts: Prompts, boundary: int, strength: float) -> _Steered:
        """Run both models on both sides of the pairs; `moves` is `strength` times the other side's encoding minus the own."""
        hook = coupling.boundaries[boundary]
        (own, other), (own_sparse, other_sparse) = (_both_streams(bridge, hook, prompts) for bridge in (dense, sparse))
        moves = strength * (coupling.encode(boundary, other) - coupling.encode(boundary, own))
        return cls(
            dense=dense,
            sparse=sparse,
            prompts=prompts,
            hook=hook,
            stream=own,
            sparse_stream=own_sparse,
            moves=moves,
            sparse_moves=strength * (other_sparse - own_sparse),
            directions=coupling.decoder_weight[boundary].detach(),
            plain=logit_differences(dense, prompts, []),
            plain_sparse=logit_differences(sparse, prompts, []),
        )

    def move(self, of: int) -> Tensor:
        """One channel moved."""
        return self._change(self._edit(of))

    def move_as_far(self, of: int, chosen: int) -> Tensor:
        """One channel moved as far in the dense stream as the chosen one is, at every token."""
        size = self._edit(chosen).norm(dim=-1, keepdim=True)
        way = torch.where(self.moves[..., of : of + 1] < 0, -1.0, 1.0)
        return self._change(size * way * torch.nn.functional.normalize(self.directions[of], dim=0))

    def move_all(self) -> Tensor:
        """All channels moved."""
        return self._change(self.moves @ self.directions)

    def move_in_sparse(self, of: int) -> Tensor:
        """The channel moved in the sparse model's own stream."""
        moved = self.sparse_stream.clone()
        moved[..., of] += self.sparse_moves[..., of]
        return self._differences(self.sparse, moved) - self.plain_sparse

    def _edit(self, of: int) -> Tensor:
        return self.moves[..., of : of + 1] * self.directions[of]

    def _change(self, edit: Tensor) -> Tensor:
        return self._differences(self.dense, self.stream + edit) - self.plain

    @torch.no_grad()
    def _differences(self, bridge: Any, stream: Tensor) -> Tensor:
        return logit_differences(bridge, self.prompts, [(self.hook, lambda *_, **__: stream)])
