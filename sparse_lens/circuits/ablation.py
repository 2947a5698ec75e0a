"""What stands in for an ablated node: its mean, zero, or its value on another prompt; and whether norms may answer to it.

| kind | value of an ablated node |
|---|---|
| `mean` | its mean over the pretraining distribution (arXiv:2511.13653) |
| `zero` | 0 |
| `counterfactual` | its value on the other prompt of the pair, at the same position (interchange; arXiv:2202.05262) |
| `resample` | its value on another prompt of the batch, answer position on answer position (arXiv:2304.14997) |

With frozen norms every norm divides by what it divides by in the whole model on the same prompts, so that dropping nodes does not
rescale the ones that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from sparse_lens.circuits.masking import Hook, Reference, Source, flat_channels, mask_hooks, with_sources
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.sites import NodeSpace, Site
from sparse_lens.errors import UnknownNameError

AblationKind = Literal["mean", "zero", "counterfactual", "resample"]


@dataclass(frozen=True, eq=False)
class Ablation:
    """How nodes outside a mask are ablated; `means` by site, `seed` draws the partners of `resample`.

    Raises `UnknownNameError` for another kind than those of the table above.
    """

    means: Mapping[str, Reference]
    kind: AblationKind = "mean"
    frozen_norms: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(AblationKind):
            raise UnknownNameError("ablation", self.kind, get_args(AblationKind))

    @property
    def fixed(self) -> bool:
        """Whether the values are the same for all prompts."""
        return self.kind in ("mean", "zero") and not self.frozen_norms

    def fixed_values(self) -> Mapping[str, Reference]:
        """The values by site, of kinds that need no prompts."""
        if self.kind == "mean":
            return self.means
        return {name: Reference(torch.zeros_like(r.latents), torch.zeros_like(r.error)) for name, r in self.means.items()}

    def hooks(self, bridge: Any, space: NodeSpace, mask: Tensor, prompts: Prompts) -> list[tuple[str, Hook]]:
        """Forward hooks for a run on `prompts.tokens` that keep the nodes of `mask` and ablate all others."""
        hooks = mask_hooks(space, mask, self._values(bridge, space, prompts))
        return hooks + frozen_norm_hooks(bridge, prompts.tokens) if self.frozen_norms and hooks else hooks

    def _values(self, bridge: Any, space: NodeSpace, prompts: Prompts) -> Mapping[str, Reference]:
        if self.kind == "counterfactual":
            return node_values(bridge, space, prompts.other)
        if self.kind == "resample":
            return self._resampled(node_values(bridge, space, prompts.tokens), prompts)
        return self.fixed_values()

    def _resampled(self, values: Mapping[str, Reference], prompts: Prompts) -> Mapping[str, Reference]:
        """Rows in another order, moved so that the partners' answer positions coincide."""
        generator = torch.Generator().manual_seed(self.seed + int(prompts.tokens.sum()))
        partner = torch.randperm(len(prompts), generator=generator)
        shift = prompts.position[partner] - prompts.position
        positions = torch.arange(prompts.tokens.shape[1])
        source = (positions + shift[:, None]).clamp(0, prompts.tokens.shape[1] - 1)
        return {
            name: Reference(r.latents[partner[:, None], source], r.error[partner[:, None], source]) for name, r in values.items()
        }


@torch.no_grad()
def node_values(bridge: Any, space: NodeSpace, tokens: Int[Tensor, "row pos"]) -> dict[str, Reference]:
    """Every node's value on every token: by site `latents [row pos latent]` and the dictionary's `error [row pos d_out]`."""
    found: dict[str, Reference] = {}

    def record(site: Site, source: Source) -> Hook:
        def hook(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens passes it by name
            flat = flat_channels(tensor, site)
            flat = flat.clone() if flat.dtype == torch.float32 else flat.float()
            if site.is_identity:
                found[site.name] = Reference(flat, flat.new_zeros(()).expand_as(flat))
            else:
                latents = site.dictionary.encode(source.of(flat))
                found[site.name] = Reference(latents, flat - source.decoded(latents, flat))

        return hook

    with bridge.hooks(fwd_hooks=with_sources(space, record)):
        bridge(tokens)
    return found


@torch.no_grad()
def frozen_norm_hooks(bridge: Any, tokens: Int[Tensor, "row pos"]) -> list[tuple[str, Hook]]:
    """Hooks that give every norm the scale that it has in the whole model on these tokens."""
    names = [name for name in bridge.hook_dict if name.endswith(".hook_scale")]
    _, cache = bridge.run_with_cache(tokens, names_filter=names)

    def freeze(scale: Tensor) -> Hook:
        return lambda tensor, hook: scale  # noqa: ARG005 - TransformerLens passes it by name

    return [(name, freeze(cache[name].clone())) for name in names]
