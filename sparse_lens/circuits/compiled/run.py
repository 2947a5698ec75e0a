"""One pass through a compiled circuit, value by value, each computed when it is asked for.

Nodes are named as sites are (`attn_q.0`: the varying channels of layer 0's queries after AbsTopK), with `embedding`, `heads.0` (the
features of its heads), `resid_mid.0`, `resid_post.0` and `logits` between them.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.compiled.attention import mix_heads
from sparse_lens.circuits.compiled.plan import (
    Affine,
    AttentionPart,
    LatentPart,
    MLPPart,
    Plan,
    PositionalPart,
    Projection,
    Read,
    SiteChoice,
    Write,
)
from sparse_lens.circuits.compiled.prefixes import Level, PrefixRows
from sparse_lens.circuits.compiled.weights import neurons
from sparse_lens.kernels import abs_topk


class Run:
    """The values of a plan on the rows of a batch; `answers` are the tokens whose logits are wanted."""

    def __init__(self, plan: Plan, rows: PrefixRows, answers: Int[Tensor, " answer"]) -> None:
        self.plan, self.rows, self.answers = plan, rows, answers
        self._found: dict[tuple[str, Level], Tensor] = {}

    def value(self, node: str, level: Level | None = None) -> Float[Tensor, "row channel"]:
        """What a node holds, at its own rows or at those of a later level."""
        own = self.plan.level_of(node)
        level = level or own
        if (node, level) not in self._found:
            self._found[node, level] = self._compute(node) if level == own else self.rows.move(self.value(node), own, level)
        return self._found[node, level]

    def _compute(self, node: str) -> Tensor:
        kind, _, layer = node.partition(".")
        return getattr(self, f"_{kind}")(*([int(layer)] if layer else []))

    # What other forms of a run do otherwise.

    def read(self, read: Read, x: Tensor, level: Level) -> Float[Tensor, "row kept"]:
        """The kept channels of a sublayer's input."""
        normed = read.norm(x)
        if read.positional is not None:
            normed = torch.cat([normed, read.positional[self.rows.position[level]]], dim=-1)
        return self.choose(read.site, normed)

    def choose(self, site: SiteChoice, values: Tensor) -> Float[Tensor, "row kept"]:
        """The kept channels of a site behind its AbsTopK; without one, `values` are those channels already, except of a read."""
        values = values if site.k is None else abs_topk(values, site.k, fast=True)
        return values if values.shape[1] == len(site.kept) else values[:, site.kept]

    def multiply(self, projection: Projection, inputs: Tensor, source: str | None = None) -> Float[Tensor, "row out"]:  # noqa: ARG002
        """What a matrix gives for its inputs, the channels of the site `source`; those of no site are heads' features."""
        return projection.matrix(inputs)

    def activate(self, part: MLPPart, pre: Tensor, inputs: Tensor) -> Float[Tensor, "row kept"]:
        """The kept neurons."""
        return self.choose(part.neuron.site, neurons(pre, inputs, part.gelu, part.routing))

    def latents(self, part: LatentPart, layer: int, u: Tensor) -> Float[Tensor, "row d_model"]:  # noqa: ARG002
        """All that an MLP writes that is seen through a dictionary."""
        return part.write(u)

    def cut(self, matrix: str, outputs: Tensor, site: SiteChoice, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """The outputs of a matrix, less what edges that are cut carried."""
        return outputs

    def final(self, x: Tensor) -> Float[Tensor, "prompt channel"]:
        """What the unembedding reads."""
        site = self.plan.final
        return self.plan.norm(_all_channels(site, x[:, site.kept]))

    def after(self, write: Write, x: Tensor, name: str) -> Tensor:  # noqa: ARG002
        """What the residual stream is after a write was added: its activation and AbsTopK."""
        x = x.relu_() if write.relu else x
        return x if write.k is None else abs_topk(x, write.k, fast=True)

    # The nodes.

    def _embedding(self) -> Tensor:
        level, plan = self.plan.level, self.plan
        x = plan.embedding[self.rows.token[level]]
        return x if plan.positions is None else x.add_(plan.positions[self.rows.position[level]])

    def _attn_in(self, layer: int) -> Tensor:
        level = self.plan.layers[layer].level_in
        return self.read(self._attention(layer).read, self._before(layer, level), level)

    def _attn_q(self, layer: int) -> Tensor:
        return self._projected(self._attention(layer).query.projection, "q", layer, self.plan.layers[layer].query_level)

    def _attn_k(self, layer: int) -> Tensor:
        return self._projected(self._attention(layer).key.projection, "k", layer, self.plan.layers[layer].level_in)

    def _attn_v(self, layer: int) -> Tensor:
        return self._projected(self._attention(layer).value, "v", layer, self.plan.layers[layer].level_in)

    def _projected(self, projection: Projection | None, letter: str, layer: int, level: Level) -> Tensor:
        assert projection is not None  # nobody asks for constants
        inputs = self.value(f"attn_in.{layer}", level)
        pre = self.multiply(projection, inputs, f"attn_in.{layer}")
        return self.choose(projection.site, self.cut(f"{letter}.{layer}", pre, projection.site, inputs))

    def _heads(self, layer: int) -> Tensor:
        plan, part = self.plan.layers[layer], self._attention(layer)
        operands = {"q": part.query.projection, "k": part.key.projection, "v": part.value}
        q, k, v = (None if operands[letter] is None else self.value(f"attn_{letter}.{layer}") for letter in "qkv")
        return mix_heads(part, self.rows, (q, k, v), (plan.level_in, plan.level_out))

    def _attn_out(self, layer: int) -> Tensor:
        part, level = self._attention(layer), self.plan.layers[layer].level_out
        features = self.value(f"heads.{layer}")
        pre = self.multiply(part.output, features).add_(part.table[self.rows.position[level]])
        return self.choose(part.output.site, self.cut(f"output.{layer}", pre, part.output.site, features))

    def _resid_mid(self, layer: int) -> Tensor:
        plan = self.plan.layers[layer]
        part, level = plan.attention, plan.level_out
        written = None
        if isinstance(part, PositionalPart):
            written = part.table[self.rows.position[level]]
        elif part is not None:
            written = self.value(f"attn_out.{layer}")
        return self.after(
            plan.attention_write, _added(self._before(layer, level), plan.attention_write, written), f"resid_mid.{layer}"
        )

    def _mlp_in(self, layer: int) -> Tensor:
        part = cast(MLPPart | LatentPart, self.plan.layers[layer].mlp)
        return self.read(part.read, self.value(f"resid_mid.{layer}"), self.plan.layers[layer].level_out)

    def _mlp_neuron(self, layer: int) -> Tensor:
        part, inputs = self._mlp(layer), self.value(f"mlp_in.{layer}")
        pre = self.cut(f"mlp_in.{layer}", self.multiply(part.neuron, inputs, f"mlp_in.{layer}"), part.neuron.site, inputs)
        return self.activate(part, pre, inputs)

    def _mlp_out(self, layer: int) -> Tensor:
        through = self.plan.layers[layer].mlp
        if isinstance(through, LatentPart):
            inputs = self.value(f"mlp_in.{layer}")
            return self.choose(through.site, self.latents(through, layer, _all_channels(through.read.site, inputs)))
        part, inputs = self._mlp(layer), self.value(f"mlp_neuron.{layer}")
        pre = self.cut(f"mlp_out.{layer}", self.multiply(part.output, inputs, f"mlp_neuron.{layer}"), part.output.site, inputs)
        return self.choose(part.output.site, pre)

    def _resid_post(self, layer: int) -> Tensor:
        write = self.plan.layers[layer].mlp_write
        written = None if self.plan.layers[layer].mlp is None else self.value(f"mlp_out.{layer}")
        return self.after(write, _added(self.value(f"resid_mid.{layer}"), write, written), f"resid_post.{layer}")

    def _final_resid(self) -> Tensor:
        return self.final(self._before(len(self.plan.layers), "prompt"))

    def _logits(self) -> Tensor:
        plan, inputs = self.plan, self.value("final_resid")
        found = Affine(plan.unembedding.weight[self.answers], plan.unembedding.bias[self.answers])(inputs)
        return found if plan.bigram is None else found.add_(plan.bigram[self.rows.token["prompt"]][:, self.answers])

    def _before(self, layer: int, level: Level) -> Tensor:
        """The residual stream before a layer."""
        return self.value("embedding" if layer == 0 else f"resid_post.{layer - 1}", level)

    def _attention(self, layer: int) -> AttentionPart:
        return cast(AttentionPart, self.plan.layers[layer].attention)

    def _mlp(self, layer: int) -> MLPPart:
        return cast(MLPPart, self.plan.layers[layer].mlp)


def _added(x: Tensor, write: Write, written: Tensor | None) -> Tensor:
    x = x + write.site.rest
    return x if written is None else x.index_add_(1, write.site.kept, written)


def _all_channels(site: SiteChoice, values: Tensor) -> Float[Tensor, "row d"]:
    """A site's channels from those that vary."""
    full = site.rest.expand(len(values), -1)
    return values if values.shape[1] == full.shape[1] else full.index_copy(1, site.kept, values)
