"""Running a model with some of its weights cut: what a cut weight carried is replaced by its mean.

`y_j = sum_i w_ji x_i` with the edge (i, j) cut becomes `y_j` with `w_ji mu_i` in its place. So a node that is ablated everywhere
and one whose edges are all cut act alike. Works by other weights and biases for the time of a pass, with gradients for what is
kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_lens.circuits.edges.latent_cutting import Gated, LatentCut, latent_cut
from sparse_lens.circuits.edges.latents import LatentSite
from sparse_lens.circuits.edges.space import EdgeSpace
from sparse_lens.circuits.masking import Reference
from sparse_lens.errors import CircuitError

Means = Mapping[str, Float[Tensor, " d_in"]]
"""By matrix, the mean of each of its inputs; for the embedding, of each of its outputs."""

_MODULES = {
    "embedding": "wte",
    "q": "blocks.{}.attn.q",
    "k": "blocks.{}.attn.k",
    "v": "blocks.{}.attn.v",
    "output": "blocks.{}.attn.o",
    "mlp_in": "blocks.{}.mlp.fc_in",
    "mlp_out": "blocks.{}.mlp.fc_out",
    "unembedding": "lm_head",
}


@dataclass(frozen=True, eq=False)
class CircuitEdges:
    """The edges of a circuit: those that are kept, those between its nodes that are cut, and what a cut one carries.

    `latents` are the sites with dictionaries: while edges are cut, their nodes are kept and ablated here and not by hooks.
    """

    kept: EdgeSpace
    cut: EdgeSpace
    means: Means
    latents: tuple[LatentSite, ...] = ()

    @contextmanager
    def cut_in(self, bridge: Any) -> Iterator[None]:
        """Run `bridge` inside the block without the cut edges."""
        with cut_edges(bridge, self.cut, torch.zeros(self.cut.n_edges), self.means, self.latents):
            yield

    @contextmanager
    def removed_from(self, bridge: Any) -> Iterator[None]:
        """Run `bridge` inside the block without the kept edges: what is necessary is missing."""
        whole = tuple(replace(latents, mask=torch.ones_like(latents.mask)) for latents in self.latents)
        with cut_edges(bridge, self.kept, torch.zeros(self.kept.n_edges), self.means, whole):
            yield


def edge_matrices(bridge: Any) -> list[str]:
    """Names of all matrices that edges can be entries of, in the order of computation."""
    kinds = [kind for kind in _MODULES if kind not in ("embedding", "unembedding")]
    return ["embedding", *(f"{kind}.{layer}" for layer in range(len(bridge.blocks)) for kind in kinds), "unembedding"]


def edge_module(bridge: Any, name: str) -> Any:
    """The module whose weight holds the edges of a matrix; raises `CircuitError` for a model of another architecture."""
    core = getattr(bridge.original_model, "core", None)
    if core is None:
        raise CircuitError(
            f"edges are cut in weight-sparse models and their dense twins (CircuitGPT), not in {type(bridge).__name__}"
        )
    kind, _, layer = name.partition(".")
    module = core.get_submodule(_MODULES[kind].format(layer))
    return getattr(module, "original_component", module)


@torch.no_grad()
def input_means(
    bridge: Any,
    windows: Int[np.ndarray, "window pos"],
    reference: Mapping[str, Reference],
    inputs: Sequence[int],
    *,
    batch_size: int = 16,
) -> Means:
    """The mean of every matrix' inputs over all tokens of `windows`; inputs that are sites have their value of `reference`.

    For the embedding it is the average of the task's `inputs`, the tokens in which prompts differ: were it that of all tokens,
    cutting what these tokens have in common from one of them would tell them apart.
    """
    layers = range(len(bridge.blocks))
    hooks = {f"output.{layer}": f"blocks.{layer}.attn.hook_z" for layer in layers} | {"unembedding": "ln_final.hook_out"}
    sums: dict[str, Tensor] = {}
    for start in range(0, len(windows), batch_size):
        tokens = torch.from_numpy(windows[start : start + batch_size].astype(np.int64))
        _, cache = bridge.run_with_cache(tokens, names_filter=list(hooks.values()))
        for name, hook in hooks.items():
            sums[name] = sums.get(name, torch.zeros(())) + cache[hook].flatten(2).flatten(0, 1).double().sum(0)
    means = {name: (total / windows.size).float() for name, total in sums.items()}
    means["embedding"] = edge_module(bridge, "embedding").weight[list(inputs)].float().mean(0)
    for layer in layers:
        for kind, site in (("q", "attn_in"), ("k", "attn_in"), ("v", "attn_in"), ("mlp_in", "mlp_in"), ("mlp_out", "mlp_neuron")):
            means[f"{kind}.{layer}"] = reference[f"{site}.{layer}"].latents
    return means


@contextmanager
def cut_edges(
    bridge: Any, edges: EdgeSpace, keep: Float[Tensor, " edge"], means: Means, latents: Sequence[LatentSite] = ()
) -> Iterator[None]:
    """Run `bridge` inside the block with each of `edges` kept by its entry of `keep` (1) or cut (0), differentiable in it.

    The nodes of `latents` are ablated here as their masks say; hooks at their sites must keep everything (`hooked_mask`).
    """
    parts, cuts = edges.split(keep), latent_cuts(bridge, latents, edges, keep, means)
    with ExitStack() as stack:
        for cut in cuts.values():
            stack.enter_context(cut.in_model())
        for name, part in parts.items():
            kind, _, layer = name.partition(".")
            if len(part) and not (kind in ("mlp_in", "mlp_out") and int(layer) in cuts):
                stack.enter_context(_cut(edge_module(bridge, name), edges.index[name], part, means[name], name == "embedding"))
        yield


def latent_cuts(
    bridge: Any, latents: Sequence[LatentSite], edges: EdgeSpace, keep: Float[Tensor, " edge"], means: Means
) -> dict[int, LatentCut]:
    """By layer, the MLPs that are seen through a dictionary, with the edges of their latents gated."""
    parts, found = edges.split(keep), {}
    for site in latents:
        layer = site.site.layer
        assert layer is not None  # latent_sites takes those of MLPs alone
        read, write = (Gated(edges.index[name], parts[name]) for name in (f"mlp_in.{layer}", f"mlp_out.{layer}"))
        found[layer] = latent_cut(bridge, site, read, write, means[f"mlp_in.{layer}"])
    return found


@contextmanager
def _cut(module: nn.Module, index: Tensor, keep: Tensor, mean: Tensor, embedding: bool) -> Iterator[None]:
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None
    rows, columns = index.T
    values, mean = weight.detach()[rows, columns], mean.to(weight.dtype)[columns]
    kept = values * keep
    if embedding:
        kept = kept + mean * (1 - keep)
    changed: dict[str, Tensor] = {"weight": weight.detach().index_put((rows, columns), kept)}
    if not embedding:
        start = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        changed["bias"] = start.index_add(0, rows, (values - kept) * mean)
    with _instead(module, changed):
        yield


@contextmanager
def _instead(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with plain tensors in the place of its parameters; nobody else who holds the parameters sees it."""
    before = {name: module._parameters.pop(name, None) for name in tensors}
    try:
        for name, tensor in tensors.items():
            object.__setattr__(module, name, tensor)
        yield
    finally:
        for name, parameter in before.items():
            object.__delattr__(module, name)
            module._parameters[name] = parameter
