"""`TranscoderDictionary`: latents read at one hook that stand for the activation at a later one, such as a whole MLP.

SAELens defines transcoders as a file format and runs them, but cannot train them (sae-lens 6.54); its folders of architecture
transcoder, skip_transcoder, jumprelu_transcoder and jumprelu_skip_transcoder are read here without sae-lens, with equal results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries.latent_activations import LATENT_ACTIVATIONS
from sparse_lens.dictionaries.naming import trained_name
from sparse_lens.dictionaries.protocol import check_width, dictionary_hash

ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


@dataclass(frozen=True, eq=False)
class TranscoderDictionary:
    """A transcoder (arXiv:2406.11944), or a skip transcoder (arXiv:2501.18823) if `weights` holds `W_skip`.

    `weights` are SAELens' tensors by SAELens' names: `W_enc` `[d_in, latent]`, `b_enc`, `W_dec` `[latent, d_out]`, `b_dec`, and
    where the architecture has them `threshold` `[latent]` and `W_skip` `[d_out, d_in]`. Latents are `relu(x W_enc + b_enc)`, zero
    unless the number before ReLU is above the threshold.
    """

    weights: Mapping[str, Tensor]
    reads: str
    writes: str
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
        """Latents of the activation at `hook_in`, zero where not active."""
        x = check_width(self, x, len(self.weights["W_enc"])).to(self.W_dec.dtype)
        return LATENT_ACTIVATIONS[self.activation](x @ self.weights["W_enc"], self.weights, None)

    @property
    def activation(self) -> str:
        """What the encoder does, as the architecture of an SAE that does the same: with a threshold "jumprelu", else "standard"."""
        return "jumprelu" if "threshold" in self.weights else "standard"

    def decode(self, f: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows d_out"]:
        """What the latents write at `hook_out`, bias included; `skip` comes on top of it."""
        return f @ self.W_dec + self.weights["b_dec"]

    def skip(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """What goes past the latents: `W_skip x`, zero without one."""
        if (matrix := self.weights.get("W_skip")) is None:
            return x.new_zeros(*x.shape[:-1], self.W_dec.shape[-1], dtype=self.W_dec.dtype)
        return x.to(self.W_dec.dtype) @ matrix.T

    def to(self, device: Any = None, dtype: Any = None) -> TranscoderDictionary:
        """The same transcoder with its weights on another device or in another dtype."""
        return replace(self, weights={name: tensor.to(device, dtype) for name, tensor in self.weights.items()})

    @property
    def architecture(self) -> str:
        """SAELens' name of the architecture."""
        return ("jumprelu_" if "threshold" in self.weights else "") + ("skip_" if "W_skip" in self.weights else "") + "transcoder"

    @property
    def W_dec(self) -> Float[Tensor, "latent d_out"]:
        """The decoder's rows: what each latent writes."""
        return self.weights["W_dec"]

    @property
    def hook_in(self) -> str:
        """The hook that is read."""
        return self.reads

    @property
    def hook_out(self) -> str:
        """The hook that is written."""
        return self.writes

    @property
    def name(self) -> str:
        """The label given when loading, or what is known of its training, or architecture and size, and the hook that is written.

        `skip_transcoder768k16s0@blocks.0.hook_mlp_out` of seed 0, `skip_transcoder768@...` of a folder that does not say.
        """
        known = trained_name(self.metadata, self.n_latents) or f"{self.architecture}{self.n_latents}"
        return self.label or f"{known}@{self.writes}"

    @property
    def hash(self) -> str:
        """Hash of hooks and weights; the folder, name, device and dtype do not enter."""
        return self._hash

    @property
    def n_latents(self) -> int:
        """Number of latents, dead ones included."""
        return self.W_dec.shape[0]

    @property
    def exact(self) -> bool:
        """False: latents and skip leave an error."""
        return False

    @cached_property
    def _hash(self) -> str:
        return dictionary_hash("transcoder", {"reads": self.reads, "writes": self.writes}, self.weights)
