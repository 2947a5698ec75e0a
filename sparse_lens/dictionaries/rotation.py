"""`RotationDictionary`: neurons in a rotated basis, the control that tells a basis from a coordinate system."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries.protocol import AtOneHook, check_width, dictionary_hash
from sparse_lens.errors import ConfigError

TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class RotationDictionary(AtOneHook):
    """Latents `x Q` of the channels at `hook`, decoded by `z Q^T`, for an orthogonal `Q` `[d_in, latent]`.

    The function of the model is unchanged, its neurons are not: what a measure finds here it does not owe to the
    neuron basis. The round trip is the identity but for rounding (relative error 1e-6 in float32, 1e-15 in float64),
    hence `exact`: what is left over is no error node. `Q` is converted to the dtype and device of what it is applied
    to. `basis` says in tables which basis it is. Raises `ConfigError` if `Q` is not square, finite and orthogonal to 1e-4.
    """

    rotation: Tensor
    hook: str
    basis: str = "rotation"

    def __post_init__(self) -> None:
        q = self.rotation
        if q.ndim != 2 or q.shape[0] != q.shape[1] or not q.is_floating_point():
            raise ConfigError(f"a rotation is a square matrix of real numbers, got {q.dtype} {tuple(q.shape)}")
        unit = torch.eye(len(q), dtype=torch.float64, device=q.device)
        deviation = float((q.double().T @ q.double() - unit).abs().max())
        if not deviation <= TOLERANCE:
            raise ConfigError(
                f"the rotation is not orthogonal: Q^T Q differs from the unit matrix by {deviation:.3g}, "
                f"allowed {TOLERANCE:g}; take one from random_rotation"
            )

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
        """The coordinates of the activation in the rotated basis."""
        return check_width(self, x, len(self.rotation)) @ self.rotation.to(x)

    def decode(self, f: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows d_out"]:
        """The activation of the coordinates."""
        return f @ self.rotation.to(f).T

    @property
    def W_dec(self) -> Float[Tensor, "latent d_out"]:
        """`Q^T`: row `u` is the unit direction of latent `u`."""
        return self.rotation.T

    @property
    def name(self) -> str:
        """The basis and the hook: `rotation@blocks.0.mlp.hook_post`."""
        return f"{self.basis}@{self.hook}"

    @property
    def hash(self) -> str:
        """Hash of the rotation's values and the hook."""
        return self._hash

    @property
    def n_latents(self) -> int:
        """The number of channels."""
        return self.rotation.shape[1]

    @property
    def exact(self) -> bool:
        """True, up to rounding."""
        return True

    @cached_property
    def _hash(self) -> str:
        return dictionary_hash("rotation", {"hook": self.hook}, {"rotation": self.rotation})


def random_rotation(width: int, seed: int = 0, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "width width"]:
    """A rotation drawn uniformly (Haar measure) from the orthogonal matrices, equal for equal seeds on one platform.

    QR of a Gaussian matrix in float64 with the signs of R's diagonal moved into Q, then converted to `dtype`; the
    global random state is left alone.
    """
    gaussian = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal().sign()).to(dtype)
