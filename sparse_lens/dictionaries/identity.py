"""`IdentityDictionary`: neurons, or the channels of any hook, as a dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries.protocol import AtOneHook, check_width, dictionary_hash
from sparse_lens.errors import ConfigError


@dataclass(frozen=True)
class IdentityDictionary(AtOneHook):
    """Each of the `width` channels at `hook` is a latent of its own: encode and decode return their argument.

    Activations may be of any dtype; the reconstruction is bitwise exact. `dtype` is that of `W_dec` alone; give the
    model's, so that a splice does not convert. Raises `ConfigError` for a width below 1.

    Example: `IdentityDictionary(512, "blocks.0.mlp.hook_post")`.
    """

    width: int
    hook: str
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"a dictionary needs at least one channel, got width={self.width}")

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
        """The activation itself."""
        return check_width(self, x, self.width)

    def decode(self, f: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows d_out"]:
        """The latents themselves."""
        return f

    @property
    def W_dec(self) -> Float[Tensor, "latent d_out"]:
        """The unit matrix, made at first use."""
        return self._unit

    @property
    def name(self) -> str:
        """`neurons@` and the hook."""
        return f"neurons@{self.hook}"

    @property
    def hash(self) -> str:
        """Hash of width and hook."""
        return dictionary_hash("identity", {"width": self.width, "hook": self.hook}, {})

    @property
    def n_latents(self) -> int:
        """The number of channels."""
        return self.width

    @property
    def exact(self) -> bool:
        """True: bit by bit."""
        return True

    @cached_property
    def _unit(self) -> Tensor:
        return torch.eye(self.width, dtype=self.dtype)
