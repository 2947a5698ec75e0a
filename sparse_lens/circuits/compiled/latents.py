"""A layer's MLP seen through a dictionary, as a compiled run computes it: from all of mlp_in to all of mlp_out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.edges.latents import LatentSite
from sparse_lens.circuits.masking import blend


def core_mlp(bridge: Any, layer: int | None) -> Any:
    """A layer's MLP, without what TransformerLens put around it."""
    module = bridge.original_model.core.get_submodule(f"blocks.{layer}.mlp")
    return getattr(module, "original_component", module)


@dataclass(frozen=True, eq=False)
class MaskedMLP:
    """The MLP whose latents are kept as a mask says, or as that of `latents` does: what `masking.mask_hooks` does to the site."""

    mlp: Any
    latents: LatentSite

    def __call__(self, u: Float[Tensor, "row d_in"], mask: Float[Tensor, " node"] | None = None) -> Float[Tensor, "row d_model"]:
        site, reference = self.latents.site, self.latents.reference
        mask = self.latents.mask.to(u.dtype) if mask is None else mask

        if site.reads_elsewhere:
            return blend(site, mask, reference, u, self.mlp.write(u))
        return self.mlp.write(u, lambda name, x: blend(site, mask, reference, x, x) if name == "hook_post" else x)


def masked_mlps(bridge: Any, latents: tuple[LatentSite, ...]) -> dict[int, MaskedMLP]:
    """By layer, the MLPs that are seen through a dictionary."""
    with torch.no_grad():
        return {int(site.site.layer or 0): MaskedMLP(core_mlp(bridge, site.site.layer), site) for site in latents}
