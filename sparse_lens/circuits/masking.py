"""Mean ablation of the nodes outside a mask: `x -> m * x + (1 - m) * mu` at every site, differentiable in the mask.

Masks are shared over positions and act after AbsTopK. At a site with a dictionary the latents and the error are blended and
decoded; exact dictionaries are blended without decoding, which is the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.sites import NodeSpace, Site
from sparse_lens.dictionaries import IdentityDictionary

Hook = Callable[..., Tensor | None]


@dataclass(frozen=True, eq=False)
class Reference:
    """What stands in for ablated nodes at one site: `latents [latent]`, and `error [d_out]` for the error node.

    Values that depend on the prompts have `[row pos]` before that.
    """

    latents: Float[Tensor, "*where latent"]
    error: Float[Tensor, "*where d_out"]


@torch.no_grad()
def mean_reference(
    bridge: Any,
    space: NodeSpace,
    windows: Int[np.ndarray, "window pos"],
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, Reference]:
    """Mean of every node over all tokens of `windows` (the pretraining distribution), by site name."""
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    n_tokens = 0

    def record(site: Site) -> Hook:
        def hook(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens passes it by name
            flat = flat_channels(tensor, site).flatten(0, -2).float()
            latents = site.dictionary.encode(flat)
            error = (flat - site.dictionary.decode(latents)).double().sum(0)
            old = sums.get(site.name, (0.0, 0.0))
            sums[site.name] = (old[0] + latents.double().sum(0), old[1] + error)

        return hook

    hooks = [(site.hook, record(site)) for site in space.sites]
    with bridge.hooks(fwd_hooks=hooks):
        for start in tqdm(range(0, len(windows), batch_size), desc="mean activations", disable=not progress, leave=False):
            ids = torch.from_numpy(windows[start : start + batch_size].astype(np.int64))
            bridge(ids)
            n_tokens += ids.numel()
    return {name: Reference((f / n_tokens).float(), (e / n_tokens).float()) for name, (f, e) in sums.items()}


def mask_hooks(space: NodeSpace, mask: Tensor, reference: Mapping[str, Reference]) -> list[tuple[str, Hook]]:
    """Forward hooks that keep the nodes with mask 1 and put the reference for those with mask 0.

    `mask` is `[node]`, Boolean or real; sites that keep everything get no hook, so a full mask leaves the model untouched.
    """
    hooks: list[tuple[str, Hook]] = []
    for site in space.sites:
        part = mask[space.slices[site.name]]
        if part.dtype == torch.bool:
            if bool(part.all()):
                continue
            part = part.float()
        hooks.append((site.hook, _blend(site, part, reference[site.name])))
    return hooks


def _blend(site: Site, mask: Tensor, reference: Reference) -> Hook:
    dictionary, n = site.dictionary, site.n_latents

    def hook(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
        flat = flat_channels(tensor, site).to(mask.dtype)
        if isinstance(dictionary, IdentityDictionary):
            blended = torch.lerp(reference.latents, flat, mask)
        else:
            latents = dictionary.encode(flat)
            blended = dictionary.decode(torch.lerp(reference.latents, latents, mask[:n]))
            if not dictionary.exact:
                blended = blended + torch.lerp(reference.error, flat - dictionary.decode(latents), mask[n])
        return blended.view(tensor.shape).to(tensor.dtype)

    return hook


def flat_channels(tensor: Tensor, site: Site) -> Float[Tensor, "batch pos d"]:
    """The site's channels as one axis: q, k and v come from their hooks with a head axis."""
    return tensor.flatten(2) if site.kind in ("attn_q", "attn_k", "attn_v") else tensor
