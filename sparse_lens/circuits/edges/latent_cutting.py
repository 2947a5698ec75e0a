"""Running a model with single edges of dictionary latents cut: each latent has a view of mlp_in of its own.

What a latent reads over a cut edge is the channel's mean, and the hidden layer and the latent's encoder row are computed anew from
that; its rivals (TopK) keep what they have. What it writes over a cut edge is what its mean writes. So nothing but the latent's own
reading and writing changes, as for a neuron whose weight is cut: with the identity as the dictionary it is the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_lens.circuits.edges.encoders import encoder_rows
from sparse_lens.circuits.edges.latents import LatentSite
from sparse_lens.circuits.edges.own_views import OwnViews
from sparse_lens.dictionaries import skipped
from sparse_lens.errors import CircuitError


@dataclass(frozen=True, eq=False)
class Gated:
    """Edges of one matrix, `index [edge 2]` (output, input), and how far each is kept, `keep [edge]`."""

    index: Int[Tensor, "edge 2"]
    keep: Float[Tensor, " edge"]

    def cut_share(self, outputs: Tensor, inputs: Tensor) -> Float[Tensor, "out in"]:
        """How far each pair of `outputs` and `inputs` (ascending) is cut; 0 where there is no edge."""
        rows, columns = (part.contiguous() for part in self.index.T)
        row, column = torch.searchsorted(outputs, rows), torch.searchsorted(inputs, columns)
        return self.keep.new_zeros(len(outputs), len(inputs)).index_put((row, column), 1 - self.keep)


def core_mlp(bridge: Any, layer: int | None) -> Any:
    """A layer's MLP, without what TransformerLens put around it."""
    module = bridge.original_model.core.get_submodule(f"blocks.{layer}.mlp")
    return getattr(module, "original_component", module)


def latent_cut(bridge: Any, latents: LatentSite, read: Gated, write: Gated, mean: Float[Tensor, " d_in"]) -> LatentCut:
    """The MLP of the latents' layer with their edges from mlp_in (`read`) and to mlp_out (`write`) gated, a function of mlp_in.

    The site's nodes are kept and ablated there, as its `latents.mask` says. Raises `CircuitError` for a mixture of experts.
    """
    mlp = core_mlp(bridge, latents.site.layer)
    if getattr(mlp, "router", None) is not None:
        raise CircuitError("edges of latents are not cut in a mixture of experts; search nodes only")
    fc_in, fc_out = (getattr(module, "original_component", module) for module in (mlp.fc_in, mlp.fc_out))
    kind = _OverMLP if latents.site.reads_elsewhere else _OnNeurons
    return kind(mlp, fc_in, fc_out, latents, read, write, mean)


class LatentCut:
    """One layer's MLP through a dictionary; `source` and `own` say how the dictionary's input comes from mlp_in.

    `replaced` is the module whose output `written` stands for.
    """

    replaced: nn.Module

    def __init__(
        self, mlp: Any, fc_in: nn.Linear, fc_out: nn.Linear, latents: LatentSite, read: Gated, write: Gated, mean: Tensor
    ) -> None:
        self.mlp, self.fc_in, self.fc_out = mlp, fc_in, fc_out
        self.dictionary, self.mask, self.reference = latents.site.dictionary, latents.mask.float(), latents.reference
        self.rows, self.mean, self.n = encoder_rows(self.dictionary), mean, self.dictionary.n_latents
        self.read, self.write, self.captured = read, write, torch.zeros(0)
        self.channels, self.own_nodes = read.index[:, 1].unique(), read.index[:, 0].unique()
        self.cut = read.cut_share(self.own_nodes, self.channels)
        self.replaced = mlp if latents.site.reads_elsewhere else fc_out

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Run the model inside the block with this in its MLP's place; a hook at the site must not ablate its nodes, too."""
        with ExitStack() as stack:
            stack.callback(self.fc_in.register_forward_pre_hook(self.capture).remove)
            stack.callback(self.replaced.register_forward_hook(self.replace).remove)
            yield

    def capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:  # noqa: ARG002 - torch's signature
        self.captured = args[0]

    def replace(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:  # noqa: ARG002
        u = self.captured  # the error runs the MLP anew, which is captured, too
        return self.written(*self.nodes(u), u)

    def __call__(self, u: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_model"]:
        """What the MLP writes."""
        written = self.written(*self.nodes(u), u)
        return written if self.replaced is self.mlp else self.mlp.topk_out(written)

    def nodes(self, u: Float[Tensor, "*rows d_in"]) -> tuple[Float[Tensor, "*rows latent"], Float[Tensor, "..."]]:
        """Latents and error, each from its own view, ablated where they are not kept; an error that is constant has no rows."""
        own = self.own_nodes[self.own_nodes < self.n]
        before = self.rows.before(self.source(u))
        if len(own):
            before = before.index_copy(-1, own, self.own(u, own, self.cut[: len(own)]))
        latents = torch.lerp(self.reference.latents, self.rows.activate(before), self.mask[: self.n])
        if self.dictionary.exact:
            return latents, torch.zeros(())
        if not bool(self.mask[self.n]):
            return latents, self.reference.error
        share = self.cut[-1] if len(self.own_nodes) > len(own) else self.cut.new_zeros(len(self.channels))
        return latents, self.error(u - self.difference(u, share))

    def difference(self, u: Tensor, share: Float[Tensor, " channel"]) -> Float[Tensor, "*rows d_in"]:
        """What a view lacks of mlp_in, for one share of each channel."""
        full = torch.zeros_like(u)
        return full.index_add(-1, self.channels, (u - self.mean)[..., self.channels] * share)

    def cut_writes(self, latents: Tensor, error: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """What is not written, because an edge is cut: of latents along their decoder's rows and of the error, both projected."""
        nodes, channels = self.write.index[:, 1].unique(), self.write.index[:, 0].unique()
        share = self.write.cut_share(channels, nodes)
        own = nodes[nodes < self.n]
        moved = (latents - self.reference.latents)[..., own]
        missing = moved @ (share[:, : len(own)].T * project(self.dictionary.W_dec[own])[:, channels])
        if len(nodes) > len(own):
            missing = missing + project(error - self.reference.error)[..., channels] * share[:, -1]
        return missing.new_zeros(*missing.shape[:-1], len(self.fc_out.weight)).index_add(-1, channels, missing)

    def source(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def own(self, u: Tensor, own: Tensor, cut: Tensor) -> Tensor:
        raise NotImplementedError

    def error(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def written(self, latents: Tensor, error: Tensor, u: Tensor) -> Tensor:
        raise NotImplementedError


class _OnNeurons(LatentCut):
    """A dictionary on the neurons: the hidden layer stands before it, the output matrix behind it."""

    def source(self, u: Tensor) -> Tensor:
        return self._neurons(F.linear(u, self.fc_in.weight, self.fc_in.bias))

    def own(self, u: Tensor, own: Tensor, cut: Tensor) -> Tensor:
        """Every latent's row on the hidden layer of its own view."""
        hidden = F.linear(u, self.fc_in.weight, self.fc_in.bias).flatten(0, -2)
        moved = (u - self.mean)[..., self.channels].flatten(0, -2)
        views = OwnViews(self.fc_in.weight[:, self.channels], self._neurons, self.rows, own)
        return views(hidden, moved, cut).unflatten(0, u.shape[:-1])

    def error(self, u: Tensor) -> Tensor:
        source = self.source(u)
        return source - self.dictionary.decode(self.dictionary.encode(source))

    def written(self, latents: Tensor, error: Tensor, u: Tensor) -> Tensor:  # noqa: ARG002 - nothing goes past the latents
        out = F.linear(self.dictionary.decode(latents) + error, self.fc_out.weight, self.fc_out.bias)
        return out - self.cut_writes(latents, error, lambda rest: F.linear(rest, self.fc_out.weight))

    def _neurons(self, before: Tensor) -> Tensor:
        return self.mlp.topk_neuron(self.mlp.activation(before))


class _OverMLP(LatentCut):
    """A transcoder: its latents read mlp_in and write mlp_out; the error is what the MLP itself adds to that."""

    def source(self, u: Tensor) -> Tensor:
        return u

    def own(self, u: Tensor, own: Tensor, cut: Tensor) -> Tensor:
        moved = (u - self.mean)[..., self.channels]
        weight = self.rows.weight[self.channels][:, own]
        return self.rows.before(u)[..., own] - moved @ (cut.T * weight)

    def error(self, u: Tensor) -> Tensor:
        return self.mlp.write(u) - self.dictionary.decode(self.dictionary.encode(u)) - skipped(self.dictionary, u)

    def written(self, latents: Tensor, error: Tensor, u: Tensor) -> Tensor:
        out = self.dictionary.decode(latents) + skipped(self.dictionary, u) + error
        return out - self.cut_writes(latents, error, lambda rest: rest)
