"""How well a dictionary reconstructs, and how sparsely, on tokens it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries.harvest import Bridge, harvest_activations
from sparse_lens.dictionaries.protocol import Dictionary, skipped
from sparse_lens.errors import DataError

TOKENS_FOR_DEAD = 100_000


@dataclass(frozen=True)
class DictionaryStatistics:
    """Statistics over `n_tokens` activations; None where they cannot be measured.

    `fvu` is the fraction of variance unexplained, `E|t - t'|^2 / E|t - E t|^2` over all tokens, None if `t` does not
    vary. `l0` is the mean number of nonzero latents per token. `dead` is the share of latents that never fire, None
    below 100,000 tokens; `rare` the share that fires on fewer than one token in 10,000, dead ones included; `dense`
    the share that fires on more than one in ten.
    """

    n_tokens: int
    fvu: float | None
    l0: float
    dead: float | None
    rare: float | None
    dense: float


def measure_dictionary(bridge: Bridge, dictionary: Dictionary, token_batches: Iterable[Any]) -> DictionaryStatistics:
    """Run `dictionary` on the bridge's activations for batches of token ids `[batch, pos]`.

    The sums are of float64 over all tokens, so the result does not depend on the batches. Raises what
    `harvest_activations` raises, and `DataError` without tokens.
    """
    sums = StatisticsSums(dictionary)
    for activations in harvest_activations(bridge, sorted({dictionary.hook_in, dictionary.hook_out}), token_batches):
        sums.add(activations[dictionary.hook_in], activations[dictionary.hook_out])
    return sums.statistics()


@dataclass
class StatisticsSums:
    """The running sums behind `DictionaryStatistics`."""

    dictionary: Dictionary
    n_tokens: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    total: Tensor | None = None
    fired: Tensor | None = field(default=None, repr=False)

    @torch.no_grad()
    def add(self, source: Float[Tensor, "token d_in"], target: Float[Tensor, "token d_out"]) -> None:
        """Take in the activations at `hook_in` and, for the same tokens, at `hook_out`."""
        source = source.to(self.dictionary.W_dec.dtype)
        latents = self.dictionary.encode(source)
        rebuilt = self.dictionary.decode(latents) + skipped(self.dictionary, source)
        target = target.double()
        self.n_tokens += len(target)
        self.squared_error += float((target - rebuilt.double()).pow(2).sum())
        self.squared_norm += float(target.pow(2).sum())
        total, fired = target.sum(0), (latents != 0).sum(0)
        self.total = total if self.total is None else self.total + total
        self.fired = fired if self.fired is None else self.fired + fired

    def statistics(self) -> DictionaryStatistics:
        """The statistics of everything taken in; raises `DataError` if that is nothing."""
        if self.total is None or self.fired is None:
            raise DataError("no activations to measure a dictionary on; give at least one batch of tokens")
        n = self.n_tokens
        variance = self.squared_norm / n - float((self.total / n).pow(2).sum())
        varies = variance > 1e-12 * self.squared_norm / n
        share = self.fired.double() / n
        enough = n >= TOKENS_FOR_DEAD
        return DictionaryStatistics(
            n_tokens=n,
            fvu=self.squared_error / n / variance if varies else None,
            l0=float(share.sum()),
            dead=float((share == 0).double().mean()) if enough else None,
            rare=float((share < 1e-4).double().mean()) if enough else None,
            dense=float((share > 0.1).double().mean()),
        )
