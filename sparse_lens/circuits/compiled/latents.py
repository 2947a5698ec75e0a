"""A layer's MLP seen through a dictionary, as a compiled run computes it: from all of mlp_in to all of mlp_out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.edges.latent_cutting import core_mlp
from sparse_lens.circuits.edges.latents import LatentSite
from sparse_lens.circuits.masking import blend


@dataclass(frozen=True, eq=False)
class MaskedMLP:
    """The MLP whose latents are kept as a mask says, or as that of `latents` does: what `masking.mask_hooks` does to the site."""

    mlp: Any
    latents: LatentSite

    def __call__(self, u: Float[Tensor, "row d_in"], mask: Float[Tensor, " node"] | None = None) -> Float[Tensor, "row d_model"]:
        site, reference = self.latents.site, self.latents.reference
        mask = self.latents.mask.to(u.dtype) if mask is None else mask

        if site.reads_elsewhere:
            return blend(site, mask, reference, u, self._whole(u))
        return self.mlp.write(u, lambda name, x: blend(site, mask, reference, x, x) if name == "hook_post" else x)

    def _whole(self, u: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_model"]:
        """What the MLP writes, called as a module: while a transcoder's edges are cut, a hook has another output in its place."""
        d, rows = self.latents.site.dictionary.W_dec.shape[1], u[None]  # modules want batch and position
        positional = rows[..., d:] if rows.shape[-1] > d else None
        return self.mlp(rows[..., :d], positional, lambda name, x: rows if name == "hook_act_in" else x)[0]


def masked_mlps(bridge: Any, latents: tuple[LatentSite, ...]) -> dict[int, MaskedMLP]:
    """By layer, the MLPs that are seen through a dictionary."""
    with torch.no_grad():
        return {int(site.site.layer or 0): MaskedMLP(core_mlp(bridge, site.site.layer), site) for site in latents}
