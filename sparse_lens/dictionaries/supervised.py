"""`SupervisedDictionary`: one latent for each labelled concept, the upper line that unsupervised dictionaries are held against.

Directions come from labels: the difference of the means with and without the label, or a linear discriminant. How well one unit
*can* say a label is a matter of the activation; what an SAE falls short of it is a matter of the SAE (arXiv:2405.08366).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.dictionaries.protocol import AtOneHook, check_width, dictionary_hash
from sparse_lens.errors import ConfigError, DataError, UnknownNameError

Kind = Literal["diff_mean", "probe"]

_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class SupervisedDictionary(AtOneHook):
    """A latent for each of `labels`, above 0 where the activation is nearer to those with the label; make one with `supervise`.

    `weights` are `W_enc` `[d_in, latent]`, `b_enc` `[latent]`, `W_dec` `[latent, d_in]`, `b_dec` `[d_in]`, as of an SAE: latents
    are `relu(x W_enc + b_enc)`.
    """

    kind: Kind
    weights: Mapping[str, Tensor]
    hook: str
    labels: tuple[str, ...]

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
        """One number for each label, 0 where the activation looks as without it."""
        x = check_width(self, x, len(self.weights["W_enc"])).to(self.W_dec.dtype)
        return (x @ self.weights["W_enc"] + self.weights["b_enc"]).relu()

    def decode(self, f: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows d_out"]:
        """What a linear map makes of the labels' latents: the activation as far as the labels determine it."""
        return f @ self.W_dec + self.weights["b_dec"]

    @property
    def W_dec(self) -> Float[Tensor, "latent d_out"]:
        """What each label's latent writes."""
        return self.weights["W_dec"]

    @property
    def name(self) -> str:
        """Kind, number of labels and hook: `probe40@blocks.0.mlp.hook_post`."""
        return f"{self.kind}{self.n_latents}@{self.hook}"

    @property
    def hash(self) -> str:
        """Hash of kind, hook, labels and weights."""
        return self._hash

    @property
    def n_latents(self) -> int:
        """Number of labels."""
        return self.W_dec.shape[0]

    @property
    def exact(self) -> bool:
        """False: what the labels do not determine is left over."""
        return False

    @cached_property
    def _hash(self) -> str:
        return dictionary_hash("supervised", {"kind": self.kind, "hook": self.hook, "labels": list(self.labels)}, self.weights)


@torch.no_grad()
def supervise(
    activations: Float[Tensor, "token d_in"],
    labels: Int[Tensor, "token label"],
    hook: str,
    names: Sequence[str],
    *,
    kind: Kind = "probe",
    ridge: float = 1e-3,
) -> SupervisedDictionary:
    """The dictionary of labels 1, 0, or -1 for unknown, from activations at `hook`; train and test it on different files.

    With `m1`, `m0` the means with and without a label, its direction `w` is `m1 - m0` scaled to norm one (`diff_mean`,
    arXiv:2310.06824), or `(C + ridge tr(C)/d I)^-1 (m1 - m0)` with the covariance `C` of all tokens (`probe`: Fisher's
    discriminant, which least squares gives, too), scaled so that `w (m1 - m0)` is 1. The latent is 0 halfway between the means.
    The decoder is the least-squares map from latents to activations. Sums are float64; the rest is float32.

    Raises `DataError` for shapes or labels that do not fit, for numbers that are not finite, and for a label that no token has or
    lacks; `UnknownNameError` for an unknown kind, `ConfigError` for a negative `ridge`.
    """
    if kind not in ("diff_mean", "probe"):
        raise UnknownNameError("kind of supervised dictionary", str(kind), ("diff_mean", "probe"))
    if not 0 <= ridge < float("inf"):
        raise ConfigError(f"ridge={ridge} is no share of the variance; give one of 0 or more, such as 1e-3")
    _check(activations, labels, names)
    with_label, without = _means(activations, labels == 1), _means(activations, labels == 0)
    difference = with_label - without
    if kind == "probe":
        covariance = _covariance(activations)
        covariance.diagonal().add_(ridge * float(covariance.diagonal().mean()))
        direction = torch.linalg.solve(covariance, difference.T).T
        direction = direction / (direction * difference).sum(1, keepdim=True).clamp(min=1e-300)
    else:
        direction = difference / difference.norm(dim=1, keepdim=True).clamp(min=1e-300)
    weights = {"W_enc": direction.T, "b_enc": -(direction * (with_label + without)).sum(1) / 2}
    weights |= _decoder(activations, weights)
    weights = {name: tensor.float().contiguous() for name, tensor in weights.items()}
    return SupervisedDictionary(kind, weights, hook, tuple(names))


def _check(activations: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    if activations.ndim != 2 or labels.shape != (len(activations), len(names)) or not names:
        raise DataError(
            f"labels must be [token label] for activations [token channel] and {len(names)} names, got {tuple(labels.shape)} for "
            f"{tuple(activations.shape)}"
        )
    if bad := int((~activations.isfinite()).sum()):
        raise DataError(f"{bad} of the activations are not finite numbers; is the model damaged?")
    if not bool(((labels >= -1) & (labels <= 1)).all()):
        raise DataError("labels are 1, 0, or -1 for unknown; there are others")
    if few := [names[i] for i in range(len(names)) if not bool((labels[:, i] == 1).any() and (labels[:, i] == 0).any())]:
        raise DataError(f"no direction for labels that no token has, or that none lacks: {', '.join(few[:10])}; leave them out")


def _means(activations: Tensor, chosen: Tensor) -> Float[Tensor, "label d_in"]:
    total = torch.zeros(chosen.shape[1], activations.shape[1], dtype=torch.float64)
    for start in range(0, len(activations), _CHUNK):
        part = slice(start, start + _CHUNK)
        total += chosen[part].double().T @ activations[part].double()
    return total / chosen.sum(0).double()[:, None]


def _covariance(activations: Tensor) -> Float[Tensor, "d_in d_in"]:
    mean = activations.double().mean(0)
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for start in range(0, len(activations), _CHUNK):
        centered = activations[start : start + _CHUNK].double() - mean
        total += centered.T @ centered
    return total / len(activations)


def _decoder(activations: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The least-squares map, with intercept, from latents to activations."""
    n = weights["W_enc"].shape[1] + 1
    products = torch.zeros(n, n, dtype=torch.float64)
    targets = torch.zeros(n, activations.shape[1], dtype=torch.float64)
    for start in range(0, len(activations), _CHUNK):
        x = activations[start : start + _CHUNK].double()
        latents = (x @ weights["W_enc"] + weights["b_enc"]).relu()
        latents = torch.cat([latents, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        products += latents.T @ latents
        targets += latents.T @ x
    solution = torch.linalg.pinv(products, hermitian=True) @ targets  # latents of like labels may be linearly dependent
    return {"W_dec": solution[:-1], "b_dec": solution[-1]}
