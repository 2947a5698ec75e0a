"""`SAELensDictionary`: an SAE from a SAELens folder, read and run without sae-lens.

SAELens can be installed beside TransformerLens 3 only; its folders (`cfg.json`, `sae_weights.safetensors`) are read
here on any version. Encoding and decoding equal those of `SAE.load_from_disk` (sae-lens 6.54). What cannot be
reproduced as a function of the activation and of the latents alone is refused by name: normalization by each token's
own norm, reshaping of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries.latent_activations import LATENT_ACTIVATIONS, Weights
from sparse_lens.dictionaries.naming import trained_name
from sparse_lens.dictionaries.protocol import AtOneHook, check_width, dictionary_hash


@dataclass(frozen=True, eq=False)
class SAELensDictionary(AtOneHook):
    """A sparse autoencoder of one of SAELens' architectures; make one with `load_saelens`.

    `weights` are SAELens' tensors by SAELens' names (`W_enc` `[d_in, latent]`, `W_dec` `[latent, d_in]`, biases), of
    one dtype to which activations are converted. They never require gradients; gradients flow to the activation and
    the latents.
    """

    architecture: str
    weights: Weights
    hook: str
    k: int | None = None
    apply_b_dec_to_input: bool = True
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
        """Latents of the activation, zero where not active."""
        x = self._checked(x)
        if self.apply_b_dec_to_input:
            x = x - self.weights["b_dec"]
        return LATENT_ACTIVATIONS[self.architecture](x @ self.weights["W_enc"], self.weights, self.k)

    def before(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
        """The numbers that ReLU, TopK or the threshold are applied to; a gated SAE has no such single number: its gate's."""
        x = self._checked(x)
        if self.apply_b_dec_to_input:
            x = x - self.weights["b_dec"]
        return x @ self.weights["W_enc"] + self.weights["b_gate" if self.architecture == "gated" else "b_enc"]

    def _checked(self, x: Tensor) -> Tensor:
        return check_width(self, x, len(self.weights["W_enc"])).to(self.W_dec.dtype)

    def decode(self, f: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows d_out"]:
        """The reconstruction: latents times `W_dec`, plus bias."""
        return f @ self.W_dec + self.weights["b_dec"]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> SAELensDictionary:
        """The same dictionary with its weights on another device or in another dtype."""
        return replace(self, weights={name: tensor.to(device, dtype) for name, tensor in self.weights.items()})

    @cached_property
    def encoder_rows(self) -> Float[Tensor, "latent d_in"]:
        """`W_enc` turned, a row in one piece for each latent: what it reads."""
        return self.weights["W_enc"].T.contiguous()

    @property
    def W_dec(self) -> Float[Tensor, "latent d_out"]:
        """The decoder's rows: what each latent writes."""
        return self.weights["W_dec"]

    @property
    def name(self) -> str:
        """The label given when loading, or what is known of its training, or architecture and size, and the hook.

        `topk768k16s0@blocks.0.mlp.hook_post` of seed 0, `topk768k16@blocks.0.mlp.hook_post` of a folder that does not say.
        """
        k = f"k{self.k}" if self.k is not None else ""
        known = trained_name(self.metadata, self.n_latents) or f"{self.architecture}{self.n_latents}{k}"
        return self.label or f"{known}@{self.hook}"

    @property
    def hash(self) -> str:
        """Hash of architecture, hook and weights; the folder, name, device and dtype do not enter."""
        return self._hash

    @property
    def n_latents(self) -> int:
        """Number of latents, dead ones included."""
        return self.W_dec.shape[0]

    @property
    def exact(self) -> bool:
        """False: the reconstruction leaves an error."""
        return False

    @cached_property
    def _hash(self) -> str:
        fields = {"architecture": self.architecture, "k": self.k, "hook": self.hook}
        return dictionary_hash("sae", fields | {"apply_b_dec_to_input": self.apply_b_dec_to_input}, self.weights)
