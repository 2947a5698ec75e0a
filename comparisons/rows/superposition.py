"""Superposition: how many features a layer holds for each of its channels, and how far their directions share dimensions.

The features are the latents of a dictionary. `psi` (arXiv:2512.13568) depends on the dictionary's width and sparsity: compare
only equal ratios of latents to channels and equal L0, and show a sweep over widths. Neurons as a dictionary give `psi` at most 1,
the share of them in use; what the prediction "less superposition in the sparse model" speaks of is `psi` of an SAE on each model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sparse_lens.comparisons.rows.sparsity_measures import (
    dimensionality,
    effective_number,
    effective_rank_amplitude,
    effective_rank_energy,
    hoyer,
    interference,
    participation_ratio,
)
from sparse_lens.dictionaries import Bridge, Dictionary, harvest_activations
from sparse_lens.errors import DataError
from sparse_lens.results import Result, exact, not_measurable


def measure_superposition(
    bridge: Bridge, dictionary: Dictionary, token_batches: Iterable[Any], *, neurons: int | None = None, seed: int = 0
) -> dict[str, Result]:
    """The row of one dictionary: `SuperpositionSums` over batches of token ids `[batch, pos]`, and `decoder_geometry`.

    `neurons` is what `psi` is counted for each of, by default the channels at `hook_out`: a transcoder writes fewer of those than
    the MLP that it stands for has neurons.

    Raises what `harvest_activations` raises, and `DataError` without tokens or for latents that are not finite.
    """
    sums = SuperpositionSums(dictionary, neurons)
    for activations in harvest_activations(bridge, sorted({dictionary.hook_in, dictionary.hook_out}), token_batches):
        sums.add(activations[dictionary.hook_in], activations[dictionary.hook_out])
    return sums.results() | decoder_geometry(dictionary.W_dec, seed=seed)


@torch.no_grad()
def finite_latents(dictionary: Dictionary, source: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
    """The latents of activations at `hook_in`; raises `DataError` with the dictionary's name if some are NaN or infinite."""
    latents = dictionary.encode(source.to(dictionary.W_dec.dtype))
    if wrong := int((~latents.isfinite()).sum()):
        raise DataError(f"dictionary {dictionary.name!r} gave {wrong} latents that are NaN or infinite; check its weights")
    return latents


@dataclass
class SuperpositionSums:
    """Running sums of one dictionary's latents and of the activation it writes to; float64, of a size that tokens do not change."""

    dictionary: Dictionary
    neurons: int | None = None
    n_tokens: int = 0
    n_active: int = 0
    hoyer_sum: float = 0.0
    magnitude: Tensor | None = field(default=None, repr=False)
    total: Tensor | None = field(default=None, repr=False)
    products: Tensor | None = field(default=None, repr=False)

    @torch.no_grad()
    def add(self, source: Float[Tensor, "token d_in"], target: Float[Tensor, "token d_out"]) -> None:
        """Take in the activations at `hook_in` and, for the same tokens, at `hook_out`."""
        latents, target = finite_latents(self.dictionary, source).double(), target.double()
        self.n_tokens += len(latents)
        active = latents.any(-1)
        self.n_active += int(active.sum())
        self.hoyer_sum += float(hoyer(latents[active]).sum())
        for name, value in (("magnitude", latents.abs().sum(0)), ("total", target.sum(0)), ("products", target.T @ target)):
            before = getattr(self, name)
            setattr(self, name, value if before is None else before + value)

    def results(self) -> dict[str, Result]:
        """The numbers over everything taken in; raises `DataError` if that is nothing.

        `effective_features` is `F = exp(H(p))` with `p` the latents' shares of the mean magnitude, `psi = F / N` with N the
        `neurons`, or the channels at `hook_out` (arXiv:2512.13568); `latent_hoyer` is the mean over the tokens with an active
        latent. Of the activation itself: participation ratio of the covariance, and effective rank in both definitions
        (`sparsity_measures`).
        """
        if self.magnitude is None or self.total is None or self.products is None:
            raise DataError("no activations to measure superposition on; give at least one batch of tokens")
        n, width = self.n_tokens, len(self.total)
        latent = {name: not_measurable("no latent was active on any token", n=n) for name in _LATENT_METRICS}
        if self.n_active:
            features = float(effective_number(self.magnitude))
            latent["effective_features"], latent["psi"] = exact(features, n=n), exact(features / (self.neurons or width), n=n)
            if self.dictionary.n_latents > 1:
                latent["latent_hoyer"] = exact(self.hoyer_sum / self.n_active, n=self.n_active)
            else:
                latent["latent_hoyer"] = not_measurable("one latent is always one-hot", n=n)
        return latent | self._spectrum(n)

    def _spectrum(self, n: int) -> dict[str, Result]:
        assert self.total is not None and self.products is not None
        mean = self.total / n
        covariance = self.products / n - torch.outer(mean, mean)
        if not float(covariance.trace()) > 1e-12 * float(self.products.trace()) / n:
            return {name: not_measurable("the activation does not vary", n=n) for name in _SPECTRUM_METRICS}
        eigenvalues = torch.linalg.eigvalsh(covariance).clamp_min(0)
        measures = (
            participation_ratio(eigenvalues),
            effective_rank_amplitude(eigenvalues.sqrt()),
            effective_rank_energy(eigenvalues.sqrt()),
        )
        return {name: exact(float(value), n=n) for name, value in zip(_SPECTRUM_METRICS, measures, strict=True)}


_LATENT_METRICS = ("effective_features", "psi", "latent_hoyer")
_SPECTRUM_METRICS = ("activation_participation_ratio", "activation_effective_rank_amplitude", "activation_effective_rank_energy")


def decoder_geometry(W_dec: Float[Tensor, "latent d_out"], *, seed: int = 0) -> dict[str, Result]:
    """How the directions that latents write share their space; `null` is what random directions of the same lengths give.

    Means over latents with a nonzero direction (n): `dimensionality` and `interference` (arXiv:2209.10652), `decoder_hoyer`, and
    `decoder_participation`, the channels that a latent writes to, `(sum w^2)^2 / sum w^4`. `capacity_sum` is the sum of
    dimensionalities (= capacities, arXiv:2210.01892), at most `d_out`; `features_per_dimension` is `|W|_F^2 / d_out`, which counts
    features only where a direction's length is 1. Raises `DataError` for entries that are not finite.
    """
    W = W_dec.detach().double()
    if wrong := int((~W.isfinite()).sum()):
        raise DataError(f"{wrong} entries of the decoder are NaN or infinite; check the dictionary's weights")
    W = W[W.any(1)]
    if not len(W):
        return dict.fromkeys(_GEOMETRY, not_measurable("every direction of the decoder is zero"))
    random = torch.randn(W.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    random *= (W.norm(dim=1) / random.norm(dim=1))[:, None]
    found, chance = _geometry(W), _geometry(random.to(W.device))
    results = {name: Result(found[name], null=chance[name], n=len(W)) for name in _SHARING}
    results["features_per_dimension"] = exact(float(W.square().sum() / W.shape[1]), n=len(W))
    if W.shape[1] == 1:
        return results | dict.fromkeys(_WRITING, not_measurable("one channel is always one-hot"))
    return results | {name: Result(found[name], null=chance[name], n=len(W)) for name in _WRITING}


_SHARING = ("dimensionality", "interference", "capacity_sum")
_WRITING = ("decoder_participation", "decoder_hoyer")
_GEOMETRY = (*_SHARING, *_WRITING, "features_per_dimension")


def _geometry(W: Float[Tensor, "latent d_out"]) -> dict[str, float]:
    shares = dimensionality(W)
    values = {
        "dimensionality": shares.mean(),
        "interference": interference(W).mean(),
        "capacity_sum": shares.sum(),
        "decoder_participation": participation_ratio(W.square()).mean(),
        "decoder_hoyer": hoyer(W).mean(),
    }
    return {name: float(value) for name, value in values.items()}


def decoder_similarity(
    first: Float[Tensor, "n1 d_first"], second: Float[Tensor, "n2 d_second"], *, seed: int = 0
) -> dict[str, Result]:
    """How alike the directions of two dictionaries of one activation are; `null` is what two random sets of these sizes give.

    `mmcs`: mean over directions of the largest `|cos|` with any of the other side, of both sides' means; `mcc`: mean `|cos|` of
    the pairs of a Hungarian matching. Zero directions are left out. Raises `DataError` for directions of different widths:
    between two models there is no cosine, match by activation (`correspondence`).
    """
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"directions of {first.shape[1]} and {second.shape[1]} channels have no cosine; compare dictionaries of one "
            "activation, or match by correlation"
        )
    first, second = (W.detach().double()[W.any(1)] for W in (first, second))
    if not (len(first) and len(second)):
        return dict.fromkeys(("mmcs", "mcc"), not_measurable("a side has no nonzero direction"))
    generator = torch.Generator().manual_seed(seed)
    random = [torch.randn(W.shape, dtype=torch.float64, generator=generator) for W in (first, second)]
    found, chance = _similarity(first, second), _similarity(*random)
    return {name: Result(found[name], null=chance[name], n=min(len(first), len(second))) for name in found}


def _similarity(first: Float[Tensor, "n1 d_out"], second: Float[Tensor, "n2 d_out"]) -> dict[str, float]:
    unit_first, unit_second = (W / W.norm(dim=1, keepdim=True) for W in (first, second))
    cosines = (unit_first @ unit_second.T).abs().cpu()
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    best = (cosines.amax(1).mean() + cosines.amax(0).mean()) / 2
    return {"mmcs": float(best), "mcc": float(cosines[torch.from_numpy(rows), torch.from_numpy(columns)].mean())}
