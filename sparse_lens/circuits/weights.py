"""The weight graph of a model: which channel of which site can reach which, read off its nonzero weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.dictionaries.protocol import Dictionary, Skips
from sparse_lens.hooks.layout import decoder_layout, gather, layer_matrices, spread
from sparse_lens.tasks import TaskBatch


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Nonzero patterns of one layer's matrices, `[out, in]`; a gated neuron reads what its gate reads, too.

    `skip` is what a skip transcoder in the MLP's place has from its input to its output, past all nodes.
    """

    q: Bool[Tensor, "d_attn d_in"]
    k: Bool[Tensor, "d_kv d_in"]
    v: Bool[Tensor, "d_kv d_in"]
    o: Bool[Tensor, "d_model d_attn"]
    fc_in: Bool[Tensor, "d_mlp d_in"]
    fc_out: Bool[Tensor, "d_model d_mlp"]
    skip: Bool[Tensor, "d_model d_in"] | None = None


@dataclass(frozen=True, eq=False)
class WeightGraph:
    """Nonzero patterns of all matrices between a task's input tokens and its answers.

    `inputs` are the tokens in which clean and corrupt prompts were made to differ: what a circuit has to tell apart.
    `answers` are the target and distractor tokens, the only logits that the task loss reads.
    """

    layers: tuple[LayerWeights, ...]
    embedding: Bool[Tensor, "vocab d_model"]
    positions: Bool[Tensor, "pos d_pos"]
    unembedding: Bool[Tensor, "vocab d_model"]
    bigram: Bool[Tensor, "vocab vocab"] | None
    biases: dict[str, Bool[Tensor, " d"]]
    inputs: tuple[int, ...]
    last_tokens: tuple[int, ...]
    answers: tuple[int, ...]
    d_model: int
    n_head: int
    n_kv_head: int
    sink: bool
    concatenated: bool

    def spread(self, channels: Bool[Tensor, " d_kv"]) -> Bool[Tensor, " d_attn"]:
        """From key or value channels to those of the query heads that use them."""
        return spread(channels, self.n_kv_head, self.n_head)

    def gather(self, channels: Bool[Tensor, " d_attn"]) -> Bool[Tensor, " d_kv"]:
        """From channels of query heads to those of the key-value heads that they use."""
        return gather(channels, self.n_kv_head, self.n_head)


def weight_graph(bridge: Any, prompts: TaskBatch) -> WeightGraph:
    """The nonzero weights of `bridge`, and the tokens of `prompts` that delimit the graph."""
    layout, layers, biases = decoder_layout(bridge), [], {}
    for layer in range(layout.n_layers):
        matrices = layer_matrices(bridge, layer)
        fc_in = _nonzero(matrices.fc_in)
        fc_in = fc_in if matrices.gate is None else fc_in | _nonzero(matrices.gate)
        q, k, v, o = (_nonzero(matrix) for matrix in (matrices.q, matrices.k, matrices.v, matrices.o))
        layers.append(LayerWeights(q, k, v, o, fc_in, _nonzero(matrices.fc_out)))
        biases |= {f"blocks.{layer}.{name}.bias": _nonzero(bias) for name, bias in matrices.biases.items()}
    row = np.arange(len(prompts))
    last = [side[row, prompts.length - 1] for side in (prompts.clean, prompts.corrupt)]
    return WeightGraph(
        layers=tuple(layers),
        embedding=_nonzero(bridge.W_E),
        positions=_positions(bridge, layout.d_model),
        unembedding=_nonzero(bridge.W_U.T),
        bigram=_nonzero(bridge.bigram.W_E) if "bigram" in bridge.adapter.component_mapping else None,
        biases=biases,
        inputs=_unique([prompts.clean[prompts.clean_fork], prompts.corrupt[prompts.corrupt_fork]]),
        last_tokens=_unique(last),
        answers=_unique([prompts.target, prompts.distractor]),
        d_model=layout.d_model,
        n_head=layout.n_head,
        n_kv_head=layout.n_kv_head,
        sink=layout.sink,
        concatenated=layout.concatenated,
    )


def _nonzero(tensor: Tensor) -> Tensor:
    return (tensor.detach() != 0).cpu()


def _positions(bridge: Any, d_model: int) -> Bool[Tensor, "pos d_pos"]:
    """Learned positions; none, where they are rotary."""
    if "pos_embed" not in bridge.adapter.component_mapping:
        return torch.zeros(0, d_model, dtype=torch.bool)
    return _nonzero(bridge.pos_embed.W_pos)


def _unique(arrays: Sequence[np.ndarray]) -> tuple[int, ...]:
    return tuple(int(token) for token in np.unique(np.concatenate(arrays)))


def reaching(pattern: Bool[Tensor, "out in"], inputs: Bool[Tensor, " in"]) -> Bool[Tensor, " out"]:
    """Outputs with a nonzero weight from any of `inputs`."""
    return pattern[:, inputs].any(1)


def reached_by(pattern: Bool[Tensor, "out in"], outputs: Bool[Tensor, " out"]) -> Bool[Tensor, " in"]:
    """Inputs with a nonzero weight to any of `outputs`."""
    return pattern[outputs].any(0)


def heads_of(channels: Bool[Tensor, " d_attn"], n_head: int) -> Bool[Tensor, " d_attn"]:
    """All channels of every head that has one of `channels`."""
    per_head = channels.view(n_head, -1)
    return per_head.any(1, keepdim=True).expand_as(per_head).reshape(-1)


def dense_layer(pattern: Bool[Tensor, "d_out d_in"], n_latents: int, *, axis: int) -> Bool[Tensor, "out in"]:
    """The pattern with `n_latents` dictionary nodes in place of neurons on `axis`: each is taken to reach everything."""
    shape = (n_latents, pattern.shape[1]) if axis == 0 else (pattern.shape[0], n_latents)
    return torch.ones(shape, dtype=torch.bool)


def skip_pattern(dictionary: Dictionary, d_in: int) -> Bool[Tensor, "d_model d_in"] | None:
    """Which input a dictionary hands on to which output past its latents; None for one that hands on nothing."""
    if not isinstance(dictionary, Skips):
        return None
    matrix = dictionary.skip(torch.eye(d_in, dtype=dictionary.W_dec.dtype)).T != 0
    return matrix if bool(matrix.any()) else None
