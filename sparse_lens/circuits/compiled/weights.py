"""From a model and a circuit to the parts of a compiled circuit: kept channels gathered, everything constant added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_lens.circuits.compiled.heads import HeadChannels, constant_pattern_sums, head_channels
from sparse_lens.circuits.compiled.plan import (
    Affine,
    AttentionPart,
    LatentPart,
    Layer,
    MLPPart,
    Norm,
    Operand,
    Plan,
    PositionalPart,
    Projection,
    Read,
    Routing,
    SiteChoice,
    Write,
)
from sparse_lens.circuits.edges.cutting import edge_module
from sparse_lens.circuits.masking import Reference
from sparse_lens.circuits.sites import FINAL_SITE
from sparse_lens.kernels import abs_topk


class PartBuilder:
    """Reads the weights of a bridge (under whatever is cut in it) for the nodes kept by site, and the values of all others.

    `latents` are the MLPs that are seen through a dictionary, by layer, as functions from mlp_in to what they write.
    """

    def __init__(
        self,
        bridge: Any,
        kept: Mapping[str, Bool[Tensor, " d"]],
        reference: Mapping[str, Reference],
        latents: Mapping[int, Callable[[Tensor], Tensor]],
    ) -> None:
        self.bridge, self.kept, self.reference, self.latents = bridge, kept, reference, latents
        self.core: Any = bridge.original_model.core
        self.config = bridge.original_model.config

    def plan(self) -> Plan:
        """All parts, whether they reach an answer or not."""
        concatenated = self.config.d_pos_emb is not None
        matrix, bias = self._weights("unembedding")
        bigram = self.core.bigram_table
        return Plan(
            embedding=self._weights("embedding")[0],
            positions=None if concatenated else self._own("wpe").weight.detach().clone(),
            layers=tuple(self._layer(layer) for layer in range(self.config.n_layer)),
            final=self._site(FINAL_SITE, varies=True, k=None),
            norm=self._norm("ln_f"),
            unembedding=Affine(matrix, bias),
            bigram=None if bigram is None else _own(bigram).weight.detach().clone(),
            n_positions=int(self.config.block_size),
        )

    def _layer(self, layer: int) -> Layer:
        config, width = self.config, self.config.d_model
        attention, attention_site = self._attention(layer)
        mlp, mlp_site = self._mlp(layer)
        relu = config.residual_activation_type == "relu"
        after = [_k(config, site, width) for site in ("resid_post_attn", "resid_post_mlp")]
        return Layer(attention, Write(attention_site, relu, after[0]), mlp, Write(mlp_site, relu, after[1]))

    def _attention(self, layer: int) -> tuple[AttentionPart | PositionalPart | None, SiteChoice]:
        """A layer's attention and what it writes; None if it writes a constant."""
        read = self._read("attn_in", layer, "ln_1", "ln_p1")
        projections = {letter: self._projection(f"attn_{letter}", letter, layer, read.site) for letter in "qkv"}
        module: Any = self._own(f"blocks.{layer}.attn")
        scale = 1 / math.sqrt(module.d_head)
        channels = head_channels({letter: found[1] for letter, found in projections.items()}, module)
        site = self._site(f"attn_out.{layer}", varies=True, k=_k(self.config, "attn_out", self.config.d_model))
        if len(site.kept) == 0:
            return None, site
        table = self._table(layer, channels, scale)
        if channels.n_features == 0:
            chosen = table if site.k is None else abs_topk(table, site.k, fast=True)
            return PositionalPart(chosen[:, site.kept].clone()), site
        rows = slice(None) if site.k is not None else site.kept
        weight = channels.feature_weights(self._weights(f"output.{layer}")[0])[rows].contiguous()
        q, k, v = (projections[letter][0] for letter in "qkv")
        part = AttentionPart(
            read=read,
            query=Operand(q, channels.rest("q"), channels.places("q")),
            key=Operand(k, channels.rest("k"), channels.places("k")),
            value=v,
            heads=channels.heads,
            scale=scale,
            output=Projection(Affine(weight, weight.new_zeros(len(weight))), site),
            table=table[:, rows].contiguous(),
            feature=channels.feature,
            factor=channels.factor,
        )
        return part, site

    def _table(self, layer: int, channels: HeadChannels, scale: float) -> Float[Tensor, "pos d_model"]:
        """What constant heads, constant values of heads without a sink, and the bias write, by position."""
        weight, bias = self._weights(f"output.{layer}")
        sums = constant_pattern_sums(channels, self.config.block_size, scale)
        return (sums * channels.constant_values.double() @ weight.double().T + bias.double()).float()

    def _mlp(self, layer: int) -> tuple[MLPPart | LatentPart | None, SiteChoice]:
        """A layer's MLP and what it writes; None if it writes a constant."""
        read = self._read("mlp_in", layer, "ln_2", "ln_p2")
        if layer in self.latents:
            site = self._site(f"mlp_out.{layer}", varies=True, k=None)
            return (LatentPart(read, site, self.latents[layer]) if len(site.kept) else None), site
        gelu, routing = self.config.activation_type == "gelu", self._routing(layer, read.site)
        neuron, constants = self._neurons(layer, read.site, gelu, routing)
        if routing is not None and neuron is not None and neuron.site.k is None:
            routing = replace(routing, expert=routing.expert[neuron.site.kept])
        output, site = self._projection("mlp_out", "mlp_out", layer, constants)
        if neuron is None or output is None:
            return None, site
        return MLPPart(read, neuron, output, gelu, routing), site

    def _neurons(self, layer: int, inputs: SiteChoice, gelu: bool, routing: Routing | None) -> tuple[Projection | None, SiteChoice]:
        def activate(pre: Tensor) -> Tensor:
            return neurons(pre[None], inputs.rest.new_zeros(1, 0), gelu, routing)[0]

        return self._projection("mlp_neuron", "mlp_in", layer, inputs, activate)

    def _routing(self, layer: int, inputs: SiteChoice) -> Routing | None:
        router = self._own(f"blocks.{layer}.mlp").router
        if router is None:
            return None
        weight = _own(router.score).weight.detach()
        expert = torch.arange(len(weight)).repeat_interleave(self.config.mlp_width // len(weight))
        return Routing(Affine(weight[:, inputs.kept].contiguous(), weight @ inputs.rest), router.n_open, expert)

    def _projection(
        self, kind: str, matrix: str, layer: int, inputs: SiteChoice, activate: Any = lambda pre: pre
    ) -> tuple[Projection | None, SiteChoice]:
        """A matrix with the site behind it; None if all of the site is constant."""
        weight, bias = self._weights(f"{matrix}.{layer}")
        bias = (weight.double() @ inputs.rest.double() + bias.double()).float()
        k = _k(self.config, kind, len(bias))
        varies = len(inputs.kept) > 0
        site = self._site(f"{kind}.{layer}", varies=varies, k=k)
        if len(site.kept):
            rows = slice(None) if k is not None else site.kept
            return Projection(Affine(weight[rows][:, inputs.kept].contiguous(), bias[rows].clone()), site), site
        if not varies:
            value = activate(bias)
            value = value if k is None else abs_topk(value[None], k, fast=True)[0]
            rest = torch.where(self.kept[site.name], value, site.rest)
            site = SiteChoice(site.name, site.kept, rest, k)
        return None, site

    def _read(self, kind: str, layer: int, norm: str, positional_norm: str) -> Read:
        positional = None
        if self.config.d_pos_emb is not None:
            positional = self._norm(f"blocks.{layer}.{positional_norm}")(self._own("wpe").weight.detach())
        site = self._site(f"{kind}.{layer}", varies=True, k=_k(self.config, kind, self.config.d_model_in))
        return Read(site, self._norm(f"blocks.{layer}.{norm}"), positional)

    def _site(self, name: str, *, varies: bool, k: int | None) -> SiteChoice:
        """The kept channels vary if what they are computed from does."""
        kept = self.kept[name]
        values = self.reference[name].latents.to(torch.float32)
        index = kept.nonzero().flatten() if varies else kept.new_zeros(0, dtype=torch.long)
        return SiteChoice(name, index, values.masked_fill(kept, 0), k)

    def _weights(self, name: str) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
        """Weight and bias (zeros where there is none) of a matrix, as copies."""
        module = edge_module(self.bridge, name)
        weight, bias = module.weight.detach().clone(), getattr(module, "bias", None)
        return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()

    def _norm(self, path: str) -> Norm:
        module = self._own(path)
        bias = getattr(module, "bias", None)
        weight, eps = module.weight.detach().clone(), float(self.config.norm_eps)
        return Norm(weight, None if bias is None else bias.detach().clone(), eps, isinstance(module, nn.LayerNorm))

    def _own(self, path: str) -> Any:
        """A module of the model, by its path, without what TransformerLens put around it."""
        module = self.core
        for name in path.split("."):
            module = getattr(_own(module), name)
        return _own(module)


def neurons(pre: Tensor, inputs: Tensor, gelu: bool, routing: Routing | None) -> Float[Tensor, "row neuron"]:
    """Activations of neurons; with a router, times the factor of their expert."""
    values = F.gelu(pre) if gelu else pre.relu()
    if routing is None:
        return values
    shares = routing.matrix(inputs).softmax(-1)
    best = shares.topk(routing.n_open, dim=-1)
    factors = best.values if routing.n_open == 1 else best.values / best.values.sum(-1, keepdim=True)
    opened = torch.zeros_like(shares).scatter(-1, best.indices, factors)
    return values * opened[:, routing.expert]


def _own(module: Any) -> Any:
    return getattr(module, "original_component", module)


def _k(config: Any, site: str, width: int) -> int | None:
    k = config.kept(site, width)
    return None if k is None or k >= width else int(k)
