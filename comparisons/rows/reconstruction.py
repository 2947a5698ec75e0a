"""How well dictionaries stand in for what they replace: in the activation itself, and in what the model then predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.dictionaries import Dictionary, harvest_activations, skipped
from sparse_lens.errors import DataError
from sparse_lens.hooks import splice
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable

SMALL_GAP = 0.01
"""Nats: where ablation costs less than this, a share of it that is recovered means nothing."""

_BATCH = 16


@dataclass
class ReconstructionSums:
    """Running sums of one dictionary's reconstruction of the activation at its `hook_out`; float64, so batches do not matter.

    With `t` the activation and `t'` what latents and skip stand for: `E|t - t'|^2`; explained variance
    `1 - E|t - t'|^2 / E|t - E t|^2` (means over all tokens, not over batches; right for transcoders, whose input is another
    activation); `E cos(t, t')` and `E |t'| / |t|` over tokens where `t` is not 0; the bias `E |t'|^2 / E t.t'`, 1 without shrinkage
    (arXiv:2404.16014).
    """

    dictionary: Dictionary
    n: int = 0
    n_nonzero: int = 0
    total: Tensor | None = None
    sums: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, source: Float[Tensor, "token d_in"], target: Float[Tensor, "token d_out"]) -> None:
        """Take in activations of the same tokens at `hook_in` and `hook_out`; raises `DataError` for NaN latents."""
        source = source.to(self.dictionary.W_dec.dtype)
        latents = self.dictionary.encode(source)
        if bad := int((~latents.isfinite()).sum()):
            raise DataError(f"{self.dictionary.name} gives {bad} latents that are not finite numbers; is it damaged?")
        rebuilt = (self.dictionary.decode(latents) + skipped(self.dictionary, source)).double()
        t, own, their = target.double(), target.double().norm(dim=1), rebuilt.norm(dim=1)
        product, there = (t * rebuilt).sum(1), own > 0
        new = {
            "error": (t - rebuilt).pow(2).sum(),
            "square": own.pow(2).sum(),
            "their_square": their.pow(2).sum(),
            "product": product.sum(),
            "cosine": (product / (own * their).clamp(min=1e-300)).sum(),
            "ratio": (their[there] / own[there]).sum(),
        }
        self.n += len(t)
        self.n_nonzero += int(there.sum())
        self.total = t.sum(0) if self.total is None else self.total + t.sum(0)
        for name, value in new.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def results(self) -> dict[str, Result]:
        """The measures by name; squared errors are per token, summed over channels. Raises `DataError` without activations."""
        if self.total is None:
            raise DataError("no activations to measure a reconstruction on; give at least one batch of tokens")
        n, sums = self.n, self.sums
        variance = sums["square"] / n - float((self.total / n).pow(2).sum())
        varies = variance > 1e-12 * sums["square"] / n
        constant = not_measurable("the activation does not vary over these tokens", n=n)
        zero = not_measurable("the activation is zero on all of these tokens", n=n)
        against = not_measurable("the reconstruction does not point along the activation, on average", n=n)
        return {
            "squared_error": exact(sums["error"] / n, n=n),
            "explained_variance": exact(1 - sums["error"] / n / variance, n=n) if varies else constant,
            "cosine": exact(sums["cosine"] / self.n_nonzero, n=self.n_nonzero) if self.n_nonzero else zero,
            "norm_ratio": exact(sums["ratio"] / self.n_nonzero, n=self.n_nonzero) if self.n_nonzero else zero,
            "reconstruction_bias": exact(sums["their_square"] / sums["product"], n=n) if sums["product"] > 0 else against,
        }


def reconstruction(bridge: Any, dictionary: Dictionary, token_batches: Any) -> dict[str, Result]:
    """Reconstruction of the activation by one dictionary on batches of token ids `[batch, pos]`; see `ReconstructionSums`."""
    sums = ReconstructionSums(dictionary)
    for activations in harvest_activations(bridge, sorted({dictionary.hook_in, dictionary.hook_out}), token_batches):
        sums.add(activations[dictionary.hook_in], activations[dictionary.hook_out])
    return sums.results()


def spliced_loss(bridge: Any, dictionaries: Sequence[Dictionary], windows: Int[np.ndarray, "window pos"]) -> dict[str, Result]:
    """What the model predicts with `dictionaries` in place and their errors left out, over windows `[window pos]` of real text.

    Losses are nats per token (the last of each window is a label only), with 95 % bootstrap intervals over windows. `loss_spliced`
    stands beside the model's own `loss`, and the losses with the activations replaced by zero and by their mean over these windows.
    Loss recovered is `(loss_ref - loss_spliced) / (loss_ref - loss)`, KL recovered `(kl_ref - kl_spliced) / kl_ref` with the
    divergence of the model's own output from the spliced one, over all positions; neither is measurable where the reference costs
    less than 0.01 nats. Raises `DataError` for no windows, and for latents that are not finite.
    """
    return spliced_windows(bridge, dictionaries, windows).results()


@torch.no_grad()
def spliced_windows(bridge: Any, dictionaries: Sequence[Dictionary], windows: Int[np.ndarray, "window pos"]) -> SplicedWindows:
    """The same for each window by itself. Raises as `spliced_loss` does."""
    if len(windows) == 0:
        raise DataError("no windows to measure a loss on")
    means = _means(bridge, [dictionary.hook_out for dictionary in dictionaries], windows[:, :-1])
    forms: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "spliced": lambda: splice(bridge, dictionaries, mode="edit", edit={d.name: _without_error(d) for d in dictionaries}),
        "zero": lambda: bridge.hooks(fwd_hooks=[(hook, _put(mean * 0)) for hook, mean in means.items()]),
        "mean": lambda: bridge.hooks(fwd_hooks=[(hook, _put(mean)) for hook, mean in means.items()]),
    }
    losses: dict[str, list[Tensor]] = {"own": [], **{name: [] for name in forms}}
    divergences: dict[str, list[Tensor]] = {name: [] for name in forms}
    for tokens in _batches(windows):
        own = bridge(tokens[:, :-1]).log_softmax(-1)
        losses["own"].append(_loss(own, tokens))
        for name, form in forms.items():
            with form():
                other = bridge(tokens[:, :-1]).log_softmax(-1)
            losses[name].append(_loss(other, tokens))
            divergences[name].append((own.exp() * (own - other)).sum(-1).mean(1))
    return SplicedWindows(*({name: torch.cat(of) for name, of in kind.items()} for kind in (losses, divergences)))


@dataclass(frozen=True)
class SplicedWindows:
    """Losses `[window]` of the model's `own`, `spliced`, `zero` and `mean` form, and divergences of the last three from the first.

    In nats per token, means over each window.
    """

    losses: Mapping[str, Float[Tensor, " window"]]
    divergences: Mapping[str, Float[Tensor, " window"]]

    def results(self) -> dict[str, Result]:
        """The numbers of `spliced_loss`."""
        return _recovered(self.losses, self.divergences)


def _without_error(dictionary: Dictionary) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def edit(latents: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        if bad := int((~latents.isfinite()).sum()):
            raise DataError(f"{dictionary.name} gives {bad} latents that are not finite numbers; is it damaged?")
        return latents, error * 0

    return edit


def _recovered(losses: Mapping[str, Tensor], divergences: Mapping[str, Tensor]) -> dict[str, Result]:
    found = {"loss": bootstrap_mean(losses["own"].double().numpy())}
    for name in ("spliced", "zero", "mean"):
        found[f"loss_{name}"] = bootstrap_mean(losses[name].double().numpy())
        found[f"loss_added_{name}"] = bootstrap_mean((losses[name] - losses["own"]).double().numpy())
        found[f"kl_{name}"] = bootstrap_mean(divergences[name].double().numpy())
    for name in ("zero", "mean"):
        gap = losses[name] - losses["own"]
        found[f"loss_recovered_{name}"] = _share(losses[name] - losses["spliced"], gap, f"{name} ablation costs")
        found[f"kl_recovered_{name}"] = _share(
            divergences[name] - divergences["spliced"], divergences[name], f"{name} ablation moves"
        )
    return found


def _share(gained: Tensor, whole: Tensor, what: str) -> Result:
    """Ratio of means over windows, with a percentile bootstrap interval over windows."""
    gain, total = gained.double().numpy(), whole.double().numpy()
    if not total.mean() >= SMALL_GAP:
        return not_measurable(f"{what} {total.mean():.3g} nats, less than {SMALL_GAP}: a share of that means nothing", n=len(total))
    picks = np.random.default_rng(0).integers(0, len(total), (1000, len(total)))
    lo, hi = np.percentile(gain[picks].mean(1) / total[picks].mean(1), [2.5, 97.5])
    return Result(float(gain.mean() / total.mean()), float(lo), float(hi), n=len(total))


def _loss(log_probabilities: Float[Tensor, "window pos vocab"], tokens: Int[Tensor, "window pos_and_label"]) -> Tensor:
    return -log_probabilities.gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(1)


def _means(bridge: Any, hooks: Sequence[str], windows: np.ndarray) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    for activations in harvest_activations(bridge, hooks, _batches(windows)):
        for hook in hooks:
            totals[hook] = totals.get(hook, 0) + activations[hook].double().sum(0)
    return {hook: (total / windows.size).float() for hook, total in totals.items()}


def _put(value: Float[Tensor, " d"]) -> Callable[..., Tensor]:
    def hook(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
        return value.to(tensor.dtype).expand(*tensor.shape[:2], -1).reshape(tensor.shape)

    return hook


def _batches(windows: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(windows), _BATCH):
        yield torch.from_numpy(windows[start : start + _BATCH].astype(np.int64))
