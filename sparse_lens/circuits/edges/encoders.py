"""The encoder of a dictionary as rows: what single edges into its latents are made of.

Edges need more of a dictionary than its protocol says: which inputs a latent reads, and what its value becomes if it alone reads an
input otherwise. Encoders of the form `activate((x - shift) @ weight)` answer both; `activate` may let latents compete (TopK).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries import Dictionary, IdentityDictionary, RotationDictionary
from sparse_lens.dictionaries.latent_activations import LATENT_ACTIVATIONS
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.dictionaries.transcoder import TranscoderDictionary
from sparse_lens.errors import CircuitError


@dataclass(frozen=True, eq=False)
class EncoderRows:
    """`encode(x) = activate((x - shift) @ weight)`; biases and thresholds are part of `activate`."""

    weight: Float[Tensor, "d_in latent"]
    shift: Float[Tensor, " d_in"]
    activate: Callable[[Tensor], Tensor]
    n_biases: int = 0
    """Numbers that `activate` has for each latent: biases, thresholds, magnitudes."""

    def before(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
        """What is activated."""
        return (x - self.shift) @ self.weight

    def of_views(self, views: Float[Tensor, "*rows view d_in"], latents: Tensor) -> Float[Tensor, "*rows view"]:
        """The same for one latent on each of the views."""
        return ((views - self.shift) * self.weight[:, latents].T).sum(-1)


def encoder_rows(dictionary: Dictionary) -> EncoderRows:
    """The rows of a dictionary; a class of one's own gives them by a method of this name.

    Raises `CircuitError` for a dictionary that has none: there are no edges into its latents.
    """
    if isinstance(dictionary, IdentityDictionary):
        return EncoderRows(dictionary.W_dec, torch.zeros(dictionary.width), _unchanged)
    if isinstance(dictionary, RotationDictionary):
        return EncoderRows(dictionary.rotation, torch.zeros(len(dictionary.rotation)), _unchanged)
    if isinstance(dictionary, SAELensDictionary):
        shift = dictionary.weights["b_dec"] if dictionary.apply_b_dec_to_input else torch.zeros_like(dictionary.weights["b_dec"])
        return _rows(dictionary.architecture, dictionary.weights, dictionary.k, shift)
    if isinstance(dictionary, TranscoderDictionary):
        return _rows(dictionary.activation, dictionary.weights, None, torch.zeros(len(dictionary.weights["W_enc"])))
    own: Callable[[], EncoderRows] | None = getattr(dictionary, "encoder_rows", None)
    if own is not None:
        return own()
    raise CircuitError(
        f"edges into the latents of {dictionary.name!r} need the rows of its encoder, which a {type(dictionary).__name__} does "
        "not give; add a method encoder_rows() -> EncoderRows, or search nodes only"
    )


def _unchanged(before: Tensor) -> Tensor:
    return before


def _rows(architecture: str, weights: Mapping[str, Tensor], k: int | None, shift: Tensor) -> EncoderRows:
    if architecture not in LATENT_ACTIVATIONS:
        known = ", ".join(LATENT_ACTIVATIONS)
        raise CircuitError(f"edges into latents are known for encoders of the kinds {known}, not for {architecture!r}")
    n_biases = sum(weights[name].ndim == 1 for name in weights if name != "b_dec")
    activation = LATENT_ACTIVATIONS[architecture]
    return EncoderRows(weights["W_enc"], shift, lambda before: activation(before, weights, k), n_biases)
