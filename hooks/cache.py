"""The activation cache of a weight-sparse transformer: decompositions that add up.

Where AbsTopK stands on a sublayer's output or on the residual stream, or the residual stream passes through a ReLU, what a head
or a neuron writes arrives masked. Given the forward pass, each of these is a multiplication by zeros and ones, read off the
cached activations, and so linear: a term's share is the term times every mask between its place and the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.utilities.slice import Slice

from sparse_lens.errors import SparseLensError
from sparse_lens.models import CircuitGPTConfig

Part = Literal["attn", "mlp"]
Terms = tuple[list[Tensor], list[str]]
"""Stacks of terms, each `[term *batch pos d_model]`, and a label for every term."""


class CircuitGPTCache(ActivationCache):
    """`ActivationCache` whose decompositions hold with masks and with concatenated positions.

    Concatenated positions never enter the residual stream: there is no term for them. The cache must hold the hooks that terms
    and masks are read from; `SparseLensError` names a missing one.
    """

    @classmethod
    def of(cls, cache: ActivationCache) -> CircuitGPTCache:
        """The same cache, as one that knows the masks."""
        cache.__class__ = cls
        assert isinstance(cache, cls)
        cache.has_pos_embed = cache.has_pos_embed and cache.config.d_pos_emb is None
        return cache

    @property
    def config(self) -> CircuitGPTConfig:
        """The model's own configuration."""
        return self.model.original_model.config  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> CircuitGPTCache:
        """TransformerLens' method."""
        return CircuitGPTCache.of(super().apply_slice_to_batch_dim(batch_slice))

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """TransformerLens' method; each term times the masks between it and the target."""
        target = self._target(layer, mlp_input)
        stacks, labels = self._embeds(target) if incl_embeds else ([], [])
        for at in range(target.layer + mlp_input):
            for part in ("attn", "mlp") if at < target.layer else ("attn",):
                if mode in ("all", part):
                    stacks.append((self[(f"{part}_out", at)] * self._after(at, part, target))[None])
                    labels.append(f"{at}_{part}_out")
        readout = self._readout(target, apply_ln)
        return _delivered([readout(stack) for stack in stacks], labels, readout, pos_slice, return_labels)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
    ) -> Any:
        """TransformerLens' method; each head's write times the masks between it and the target."""
        target = self._target(layer, False)
        readout = self._readout(target, apply_ln)
        stacks, labels = self._heads(target.layer, target)
        stacks = [readout(stack) for stack in stacks]
        if incl_remainder:
            stacks, labels = self._with_remainder(stacks, labels, target, readout)
        return _delivered(stacks, labels, readout, pos_slice, return_labels)

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Any = None,
        neuron_slice: Any = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Float[Tensor, "d_model *n"] | None = None,
        mlp_input: bool = False,
    ) -> Any:
        """TransformerLens' method; each neuron's write times the masks between it and the target.

        With `project_output_onto` no tensor of all neurons times d_model is made.
        """
        target = self._target(layer, mlp_input)
        readout = self._readout(target, apply_ln, project_output_onto)
        stacks, labels = self._neurons(target, readout, neuron_slice)
        if incl_remainder:
            stacks, labels = self._with_remainder(stacks, labels, target, readout)
        return _delivered(stacks, labels, readout, pos_slice, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Float[Tensor, "d_model *n"] | None = None,
    ) -> Any:
        """TransformerLens' method: heads, neurons (or MLP outputs), embeddings, biases; they add up to the residual stream."""
        target = self._target(layer, mlp_input)
        readout = self._readout(target, apply_ln, project_output_onto)
        heads, labels = self._heads(target.layer + mlp_input, target)
        stacks = [readout(stack) for stack in heads]
        if expand_neurons:
            neurons, names = self._neurons(target, readout, None)
            stacks += neurons
        else:
            names = [f"{at}_mlp_out" for at in range(target.layer)]
            outputs = (self[("mlp_out", at)] * self._after(at, "mlp", target) for at in range(target.layer))
            stacks += [readout(output[None]) for output in outputs]
        embeds, embed_names = self._embeds(target)
        stacks += [readout(stack) for stack in [*embeds, self._biases(target, expand_neurons)[None]]]
        return _delivered(stacks, [*labels, *names, *embed_names, "bias"], readout, pos_slice, return_labels)

    def _embeds(self, target: _Target) -> Terms:
        names = [name for name, there in (("embed", self.has_embed), ("pos_embed", self.has_pos_embed)) if there]
        mask = self._after(0, "attn", target)
        return [(self[f"hook_{name}"] * mask)[None] for name in names], names

    def _heads(self, n_layers: int, target: _Target) -> Terms:
        """Every head's write below `n_layers`."""
        stacks, labels = [self._nothing()], []
        for layer in range(n_layers):
            result = self.cache_dict.get(f"blocks.{layer}.attn.hook_result")
            if result is None:
                z, weight = self[("z", layer, "attn")], self.model.blocks[layer].attn.W_O
                result = torch.einsum("...hd,hdm->...hm", z, weight.to(z.dtype))
            stacks.append(result.movedim(-2, 0) * self._through(layer, "attn", target))
            labels += [f"L{layer}H{head}" for head in range(result.shape[-2])]
        return stacks, labels

    def _neurons(self, target: _Target, readout: _Readout, neuron_slice: Any) -> Terms:
        """Every neuron's write below the target, read already: together they may be too large to be read later."""
        chosen = Slice.unwrap(neuron_slice)
        if isinstance(chosen.slice, int):
            chosen = Slice([chosen.slice])
        numbers = chosen.apply(torch.arange(self.config.mlp_width), dim=0).tolist()
        stacks, labels = [readout(self._nothing())], []
        for layer in range(target.layer):
            acts = chosen.apply(self[("post", layer, "mlp")], dim=-1)
            weight = chosen.apply(self.model.blocks[layer].mlp.W_out, dim=0)
            stacks.append(readout.of_neurons(acts, weight.to(acts.dtype), self._through(layer, "mlp", target)))
            labels += [f"L{layer}N{number}" for number in numbers]
        return stacks, labels

    def _biases(self, target: _Target, with_mlp: bool) -> Tensor:
        """All output biases below the target, as they arrive there, `[*batch pos d_model]`."""
        total = torch.zeros_like(self["hook_embed"])
        for layer in range(target.layer + target.mlp_input):
            block: Any = self.model.blocks[layer]
            total = total + block.attn.b_O * self._through(layer, "attn", target)
            if with_mlp and layer < target.layer:
                total = total + block.mlp.b_out * self._through(layer, "mlp", target)
        return total

    def _with_remainder(self, stacks: list[Tensor], labels: list[str], target: _Target, readout: _Readout) -> Terms:
        """With a last term, the rest of the residual stream at the target."""
        rest = readout(self[target.stream][None]) - torch.cat(stacks).sum(0)
        return [*stacks, rest], [*labels, "remainder"]

    def _nothing(self) -> Tensor:
        """No terms, in the shape that terms have."""
        return self["hook_embed"][None][:0]

    def _mask(self, hook: str, layer: int) -> Tensor:
        """Ones where the cached activation is not zero: where it is, a mask took it or it adds nothing."""
        name = f"blocks.{layer}.{hook}"
        if name not in self.cache_dict:
            raise SparseLensError(f"the decomposition needs the mask at {name}, which is not in this cache; cache that hook too")
        return (self.cache_dict[name] != 0).to(self.cache_dict[name].dtype)

    def _after(self, layer: int, part: str, target: _Target) -> Tensor | float:
        """Product of the residual stream's masks from the addition of this layer's part on, up to the target."""
        relu, sites = self.config.residual_activation_type == "relu", self.config.sparse_sites
        product: Tensor | float = 1.0
        for at in range(layer, target.layer + target.mlp_input):
            if (relu or "resid_post_attn" in sites) and (at > layer or part == "attn"):
                product = product * self._mask("hook_resid_mid", at)
            if (relu or "resid_post_mlp" in sites) and at < target.layer:
                product = product * self._mask("hook_resid_post", at)
        return product

    def _through(self, layer: int, part: Part, target: _Target) -> Tensor | float:
        """As `_after`, but of a share of the sublayer's output: AbsTopK on that output comes first."""
        after = self._after(layer, part, target)
        return after * self._mask(f"hook_{part}_out", layer) if f"{part}_out" in self.config.sparse_sites else after

    def _target(self, layer: int | None, mlp_input: bool) -> _Target:
        n_layers = self.config.n_layer
        resolved = n_layers if layer is None or layer == -1 else layer
        if not 0 <= resolved <= n_layers or (mlp_input and resolved == n_layers):
            raise SparseLensError(f"no layer {layer} to decompose the input of: this model has {n_layers} layers")
        return _Target(resolved, mlp_input, resolved == n_layers)

    def _readout(self, target: _Target, apply_ln: bool, projection: Tensor | None = None) -> _Readout:
        if projection is not None and projection.ndim not in (1, 2):
            raise SparseLensError(f"project_output_onto must be [d_model] or [d_model n], got shape {tuple(projection.shape)}")
        matrix = projection[:, None] if projection is not None and projection.ndim == 1 else projection
        vector = projection is not None and projection.ndim == 1
        return _Readout(self[target.scale] if apply_ln else None, not self.config.rms_norm, matrix, vector)


@dataclass(frozen=True)
class _Target:
    """The place whose residual stream is decomposed: the input of a layer, of its MLP, or of the unembedding."""

    layer: int
    mlp_input: bool
    final: bool

    @property
    def stream(self) -> tuple[str, int]:
        """The residual stream there."""
        if self.mlp_input:
            return "resid_mid", self.layer
        return ("resid_post", self.layer - 1) if self.layer else ("resid_pre", 0)

    @property
    def scale(self) -> str:
        """The scale of the norm there."""
        return "ln_final.hook_scale" if self.final else f"blocks.{self.layer}.ln{2 if self.mlp_input else 1}.hook_scale"


@dataclass(frozen=True)
class _Readout:
    """How terms are read: through the norm with its cached scale (which makes it linear), then onto some directions."""

    scale: Tensor | None
    centers: bool
    projection: Tensor | None
    vector: bool

    def __call__(self, stack: Tensor) -> Tensor:
        if self.scale is not None:
            stack = (stack - stack.mean(-1, keepdim=True) if self.centers else stack) / self.scale
        return stack if self.projection is None else stack @ self.projection

    def of_neurons(self, acts: Tensor, weight: Tensor, mask: Tensor | float) -> Tensor:
        """Writes of neurons with activations `[*batch pos neuron]` and output weights `[neuron d_model]`, read."""
        if self.projection is None:
            masked = weight * (mask[..., None, :] if isinstance(mask, Tensor) else mask)
            return self((acts[..., None] * masked).movedim(-2, 0))
        directions = self.projection
        if self.scale is not None and self.centers:
            directions = directions - directions.mean(0)
        read = weight @ (directions * (mask[..., None] if isinstance(mask, Tensor) else mask))
        scaled = acts if self.scale is None else acts / self.scale
        return (scaled[..., None] * read).movedim(-2, 0)


def _delivered(stacks: list[Tensor], labels: list[str], readout: _Readout, pos_slice: Any, return_labels: bool) -> Any:
    """The stack that TransformerLens' methods return."""
    positions = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
    stack = positions.apply(torch.cat(stacks), dim=-2)
    stack = stack.squeeze(-1) if readout.vector else stack
    return (stack, labels) if return_labels else stack
