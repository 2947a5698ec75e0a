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

from sparse_lens.circuits.rotated_blend import rotated_blend
from sparse_lens.circuits.sites import NodeSpace, Site
from sparse_lens.dictionaries import Dictionary, IdentityDictionary, RotationDictionary, skipped
from sparse_lens.dictionaries.active_latents import ActiveLatents, active_latents, weighted_rows

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

    def record(site: Site, source: Source) -> Hook:
        def hook(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens passes it by name
            flat = flat_channels(tensor, site).float()
            latents = site.dictionary.encode(source.of(flat))
            error = flat - source.decoded(latents, flat)
            new_latents, new_error = (part.flatten(0, -2).double().sum(0) for part in (latents, error))
            old = sums.get(site.name, (0.0, 0.0))
            sums[site.name] = (old[0] + new_latents, old[1] + new_error)

        return hook

    hooks = with_sources(space, record)
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
        source = Source(site)
        hooks += [*source.hooks(), (site.hook, _blend(site, source, part, reference[site.name]))]
    return hooks


class Source:
    """What a site's dictionary reads: the site itself, or, for a transcoder, what its hook saw before in the same pass."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.seen: Tensor | None = None

    def hooks(self) -> list[tuple[str, Hook]]:
        """The hook that sees it, where that is another than the site's; to be set after those that change what is read."""
        return [(self.site.dictionary.hook_in, self._see)] if self.site.reads_elsewhere else []

    def of(self, flat: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_in"]:
        """The dictionary's input, where the site's activation is `flat`."""
        if not self.site.reads_elsewhere:
            return flat
        assert self.seen is not None
        return self.seen.to(flat.dtype)

    def decoded(self, latents: Float[Tensor, "*rows latent"], flat: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_out"]:
        """What latents stand for, and what the dictionary hands on past them."""
        return self.site.dictionary.decode(latents) + skipped(self.site.dictionary, self.of(flat))

    def _see(self, tensor: Tensor, hook: Any) -> None:  # noqa: ARG002 - TransformerLens passes it by name
        self.seen = tensor


def with_sources(space: NodeSpace, make: Callable[[Site, Source], Hook]) -> list[tuple[str, Hook]]:
    """A hook for every site, and before it what its dictionary needs to see."""
    hooks: list[tuple[str, Hook]] = []
    for site in space.sites:
        source = Source(site)
        hooks += [*source.hooks(), (site.hook, make(site, source))]
    return hooks


def _blend(site: Site, source: Source, mask: Tensor, reference: Reference) -> Hook:
    def hook(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
        flat = flat_channels(tensor, site).to(mask.dtype)
        return blend(site, mask, reference, source.of(flat), flat).view(tensor.shape).to(tensor.dtype)

    return hook


def blend(
    site: Site,
    mask: Float[Tensor, " node"],
    reference: Reference,
    source: Float[Tensor, "*rows d_in"],
    flat: Float[Tensor, "*rows d_out"],
) -> Float[Tensor, "*rows d_out"]:
    """A site's activation `flat` with its nodes kept by `mask`; only a transcoder reads another `source` than that."""
    dictionary, n = site.dictionary, site.n_latents
    if isinstance(dictionary, IdentityDictionary):
        return torch.lerp(reference.latents, flat, mask)
    if isinstance(dictionary, RotationDictionary) and reference.latents.ndim == 1:
        return rotated_blend(dictionary.rotation.to(flat), mask[:n], reference.latents, flat)
    active = active_latents(dictionary, source) if reference.latents.ndim == 1 else None
    if active is not None:
        return _blend_active(dictionary, mask, reference, active, flat)
    latents, past = dictionary.encode(source), skipped(dictionary, source)
    kept = torch.lerp(reference.latents, latents, mask[:n])
    if dictionary.exact:
        return dictionary.decode(kept) + past
    # Decoding is affine: what the latents and what the error's share leaves out of them go through the decoder together.
    share, bias = mask[n], dictionary.decode(torch.zeros_like(reference.latents))
    return dictionary.decode(kept - share * latents) + past + torch.lerp(reference.error, flat - bias - past, share)


def _blend_active(
    dictionary: Dictionary,
    mask: Float[Tensor, " node"],
    reference: Reference,
    active: ActiveLatents,
    flat: Float[Tensor, "*rows d"],
) -> Float[Tensor, "*rows d"]:
    """`blend` of latents of which few are active: what stands in for the others is one vector for all rows."""
    keep, share = mask[:-1], mask[-1]
    weights = ActiveLatents((keep[active.index] - share) * active.values, active.index)
    bias = dictionary.decode(torch.zeros_like(reference.latents))
    fixed = dictionary.decode((1 - keep) * reference.latents)
    return weighted_rows(dictionary.W_dec, weights) + fixed + torch.lerp(reference.error, flat - bias, share)


def flat_channels(tensor: Tensor, site: Site) -> Float[Tensor, "batch pos d"]:
    """The site's channels as one axis: q, k and v come from their hooks with a head axis."""
    return tensor.flatten(2) if site.kind in ("attn_q", "attn_k", "attn_v") else tensor
