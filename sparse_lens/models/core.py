"""The forward pass of a weight-sparse transformer: the only one there is.

Order of operations after openai/circuit_sparsity, `circuit_sparsity/inference/gpt.py` (arXiv:2511.13653). Attention and MLP hand
each named intermediate tensor to a `tap`, a callable that owns the hook points: a no-op here, the bridge component under
TransformerLens. Activation sparsity is a module (`AbsTopK`), so no tool can switch it off by resetting hooks.

Axes: batch pos d_model head d_head d_mlp vocab; `d_in` is d_model, plus d_pos_emb with concatenated positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from functools import partial
from typing import cast

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import Cache

from sparse_lens.errors import SparseLensError
from sparse_lens.kernels import CompressedWeight, abs_topk, compress, share_rows, sparse_linear
from sparse_lens.models.config import CircuitGPTConfig, validate_config

Tap = Callable[[str, Tensor], Tensor]
"""Receives a hook's name and its tensor, returns the tensor to go on with."""

Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""One layer's key-value cache: from keys and values of the new positions, `[batch head new d_head]`, to those of all so far."""


def no_tap(name: str, tensor: Tensor) -> Tensor:  # noqa: ARG001 - the signature of every tap
    """The tap of a model that nobody watches."""
    return tensor


class AbsTopK(nn.Module):
    """Keep the k largest magnitudes of the last axis; the identity when `k` is None."""

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.k = k
        self.fast = True

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return x if self.k is None else abs_topk(x, self.k, fast=self.fast)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class Linear(nn.Linear):
    """A linear layer that can multiply by its nonzeros alone; see `CircuitGPTCore.compress_weights`."""

    compressed: CompressedWeight | None = None

    def forward(self, input: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        if self.compressed is None:
            return super().forward(input)
        return sparse_linear(input, self.weight, self.bias, self.compressed)


class Attention(nn.Module):
    """Causal self-attention with AbsTopK on its input, on q, k, v (jointly over heads) and on its output.

    With `sink`, one extra key with a zero vector, a zero value and the learned logit `sink_logit[head]` is visible to every
    query, so that the pattern over the real keys sums to less than one.
    """

    def __init__(self, config: CircuitGPTConfig) -> None:
        super().__init__()
        d_attn = config.d_attn
        self.n_head, self.d_head = config.n_head, config.head_width
        self.q = Linear(config.d_model_in, d_attn, bias=config.bias)
        self.k = Linear(config.d_model_in, d_attn, bias=config.bias)
        self.v = Linear(config.d_model_in, d_attn, bias=config.bias)
        self.o = Linear(d_attn, config.d_model, bias=config.bias)
        self.topk_in = AbsTopK(config.kept("attn_in", config.d_model_in))
        self.topk_q = AbsTopK(config.kept("attn_q", d_attn))
        self.topk_k = AbsTopK(config.kept("attn_k", d_attn))
        self.topk_v = AbsTopK(config.kept("attn_v", d_attn))
        self.topk_out = AbsTopK(config.kept("attn_out", config.d_model))
        self.sink_logit = nn.Parameter(torch.zeros(config.n_head)) if config.sink else None
        self.pattern_dropout, self.out_dropout = nn.Dropout(config.dropout), nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        positional: Float[Tensor, "batch pos d_pos_emb"] | None = None,
        mask: Bool[Tensor, "batch #head #pos key"] | None = None,
        remember: Remember | None = None,
        tap: Tap = no_tap,
        per_head: bool = False,
        forks: tuple[Tensor, Tensor, Tensor] | None = None,
        watched: bool | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Write of the attention sublayer into the residual stream, before the addition.

        `mask` is True where a query must not look (padding); the causal mask is always there. `per_head` computes
        the output as a sum over heads through the tap "hook_result" (`[batch pos head d_model]`). With a cache (`remember`), keys
        and values pass their taps before they are remembered, and an edit stays. `forks` are copies of `x` for every head's query,
        key and value, `[batch pos head d_model]`. `watched` says whether anything sits at the taps from scores to pattern; by
        default it does wherever there are taps.
        """
        u = tap("hook_act_in", self.topk_in(_concatenate(x, positional)))
        flat = (self.q(u), self.k(u), self.v(u)) if forks is None else self._project_forks(forks, positional)
        q = tap("hook_q", self._heads(self.topk_q(flat[0])))
        k = tap("hook_k", self._heads(self.topk_k(flat[1])))
        v = tap("hook_v", self._heads(self.topk_v(flat[2])))
        keys, values = (rearrange(new, "batch pos head d_head -> batch head pos d_head") for new in (k, v))
        if remember is not None:
            keys, values = remember(keys, values)
        z = tap("hook_z", self._mix(q, keys, values, mask, tap, tap is not no_tap if watched is None else watched))
        out = self._result(z, tap) if per_head else self.o(rearrange(z, "batch pos head d_head -> batch pos (head d_head)"))
        return self.topk_out(self.out_dropout(out))

    def _project_forks(self, forks: tuple[Tensor, Tensor, Tensor], positional: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, flat over heads, each head's from its own copy of the input."""

        def project(linear: nn.Module, copies: Tensor) -> Tensor:
            shared = None if positional is None else positional[:, :, None].expand(-1, -1, self.n_head, -1)
            u = self.topk_in(_concatenate(copies, shared))
            weight, bias = cast(Tensor, linear.weight), cast(Tensor | None, linear.bias)
            per_head = rearrange(weight, "(head d_head) d_in -> head d_head d_in", head=self.n_head)
            out = einsum(u, per_head, "batch pos head d_in, head d_head d_in -> batch pos head d_head").flatten(-2)
            return out if bias is None else out + bias

        return project(self.q, forks[0]), project(self.k, forks[1]), project(self.v, forks[2])

    def _heads(self, flat: Tensor) -> Tensor:
        return rearrange(flat, "batch pos (head d_head) -> batch pos head d_head", head=self.n_head)

    def _mix(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, tap: Tap, watched: bool) -> Tensor:  # noqa: ARG002
        """What every query takes of the values, `[batch pos head d_head]`; not `watched`, a subclass may do without the pattern."""
        pattern = self._pattern(q, keys, mask, tap)
        return einsum(self.pattern_dropout(pattern), values, "batch head q k, batch head k d_head -> batch q head d_head")

    def _pattern(self, q: Tensor, keys: Tensor, mask: Tensor | None, tap: Tap) -> Tensor:
        """Attention weights over the real keys, `[batch head q k]`."""
        scaled = q / math.sqrt(self.d_head)  # smaller than the scores, where the reference divides
        scores = einsum(scaled, keys, "batch q head d_head, batch head k d_head -> batch head q k")
        hidden = _causal_mask(scores.shape[-2], scores.shape[-1], scores.device)
        hidden = hidden if mask is None else hidden | mask
        scores = tap("hook_attn_scores", scores.masked_fill(hidden, torch.finfo(scores.dtype).min))
        if self.sink_logit is None:
            return tap("hook_pattern", scores.softmax(-1))
        batch, head, pos, _ = scores.shape
        sink = tap("hook_sink", self.sink_logit.to(scores.dtype)[None, :, None].expand(batch, head, pos))
        return tap("hook_pattern", torch.cat([scores, sink[..., None]], dim=-1).softmax(-1)[..., :-1])

    def _result(self, z: Tensor, tap: Tap) -> Tensor:
        """The output projection as an explicit sum over heads."""
        weight = rearrange(self.o.weight, "d_model (head d_head) -> head d_head d_model", head=self.n_head)
        result = tap("hook_result", einsum(z, weight, "batch pos head d, head d d_model -> batch pos head d_model"))
        return result.sum(-2) if self.o.bias is None else result.sum(-2) + self.o.bias


class Router(nn.Module):
    """Opens a few groups of neurons at every token, by the softmax of their scores (arXiv:2101.03961, section 2.1).

    With one expert a token its neurons are multiplied by its share of the softmax, with several by their shares among those chosen.
    """

    def __init__(self, config: CircuitGPTConfig) -> None:
        super().__init__()
        assert config.n_experts is not None
        self.n_experts, self.n_open = config.n_experts, config.experts_per_token
        self.score = nn.Linear(config.d_model_in, config.n_experts, bias=False)

    def forward(self, u: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows n_experts"]:
        """Factor of every expert, zero for those that stay closed."""
        shares = self.score(u).softmax(-1)
        best = shares.topk(self.n_open, dim=-1)
        factors = best.values if self.n_open == 1 else best.values / best.values.sum(-1, keepdim=True)
        return torch.zeros_like(shares).scatter(-1, best.indices, factors)


class MLP(nn.Module):
    """Two-layer perceptron with AbsTopK on its input, its neurons and its output; with a router, a mixture of experts."""

    def __init__(self, config: CircuitGPTConfig) -> None:
        super().__init__()
        self.fc_in = Linear(config.d_model_in, config.mlp_width, bias=config.bias)
        self.fc_out = Linear(config.mlp_width, config.d_model, bias=config.bias)
        self.activation = nn.GELU() if config.activation_type == "gelu" else nn.ReLU()
        self.router = None if config.n_experts is None else Router(config)
        self.topk_in = AbsTopK(config.kept("mlp_in", config.d_model_in))
        self.topk_neuron = AbsTopK(config.kept("mlp_neuron", config.mlp_width))
        self.topk_out = AbsTopK(config.kept("mlp_out", config.d_model))
        self.out_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        positional: Float[Tensor, "batch pos d_pos_emb"] | None = None,
        tap: Tap = no_tap,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Write of the MLP sublayer into the residual stream, before the addition."""
        return self.write(tap("hook_act_in", self.topk_in(_concatenate(x, positional))), tap)

    def write(self, u: Float[Tensor, "*rows d_in"], tap: Tap = no_tap) -> Float[Tensor, "*rows d_model"]:
        """The same from what the neurons read."""
        pre = tap("hook_pre", self.fc_in(u))
        neurons = self.activation(pre)
        if self.router is not None:
            neurons = neurons * self.router(u).repeat_interleave(neurons.shape[-1] // self.router.n_experts, dim=-1)
        post = tap("hook_post", self.topk_neuron(neurons))
        return self.topk_out(self.out_dropout(self.fc_out(post)))


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the residual stream and passed through its activation and AbsTopK."""

    def __init__(self, config: CircuitGPTConfig) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = make_norm(config, config.d_model), make_norm(config, config.d_model)
        if config.d_pos_emb is not None:
            self.ln_p1, self.ln_p2 = make_norm(config, config.d_pos_emb), make_norm(config, config.d_pos_emb)
        self.has_positional = config.d_pos_emb is not None
        self.attn, self.mlp = Attention(config), MLP(config)
        self.residual_activation = nn.ReLU() if config.residual_activation_type == "relu" else nn.Identity()
        self.topk_post_attn = AbsTopK(config.kept("resid_post_attn", config.d_model))
        self.topk_post_mlp = AbsTopK(config.kept("resid_post_mlp", config.d_model))
        self.resid_mid = nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        positional: Float[Tensor, "batch pos d_pos_emb"] | None = None,
        mask: Bool[Tensor, "batch #head #pos key"] | None = None,
        remember: Remember | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        p1 = self.ln_p1(positional) if self.has_positional else None
        x = self.topk_post_attn(self.residual_activation(x + self.attn(self.ln_1(x), p1, mask, remember)))
        x = self.resid_mid(x)
        p2 = self.ln_p2(positional) if self.has_positional else None
        return self.topk_post_mlp(self.residual_activation(x + self.mlp(self.ln_2(x), p2)))


class CircuitGPTCore(nn.Module):
    """Token ids to logits, `[batch pos] -> [batch pos vocab]`.

    `final_logits_bias` of the reference is `lm_head.bias`; its bigram table is the embedding `bigram_table`, whose last row never
    receives a gradient (the reference looks it up with `padding_idx=-1`).
    """

    def __init__(self, config: CircuitGPTConfig) -> None:
        super().__init__()
        validate_config(config)
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.block_size, config.d_pos_emb or config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config, config.d_model)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=True)
        self.lm_head.bias.requires_grad_(False)
        self.bigram_table = None
        if config.enable_bigram_table:
            self.bigram_table = nn.Embedding(config.vocab_size, config.vocab_size, padding_idx=config.vocab_size - 1)
            self.bigram_table.weight.requires_grad_(config.learnable_bigram_table)
        if config.d_pos_emb is not None and config.sinusoidal_cat_pos_emb:
            self.wpe.weight.requires_grad_(False)
        if config.tied_unembed:
            self.lm_head.weight = self.wte.weight
        self.embed_dropout = nn.Dropout(config.dropout)
        self.positional_dropout = nn.Dropout(config.dropout if config.dropout_cat_pos_emb else 0.0)

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None,
        attention_mask: Int[Tensor, "batch key"] | Shaped[Tensor, "batch 1 pos key"] | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        past: Cache | None = None,
        embeds: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits; with an `attention_mask` (1 real, 0 padding) padded positions are hidden and not counted as positions.

        A Boolean mask of every query and key (True where it looks, never ahead) is for sequences that branch, as in transformers.
        It says nothing of positions; give `position_ids`.

        With `past` the ids are those that follow what it holds, and it comes to hold them too; the mask then covers both.
        `embeds` stand for the token embeddings of `input_ids`, which are None then. Raises `SparseLensError` for ids that the
        vocabulary does not have, for more positions than the model has, and for embeddings in a model whose bigram table reads ids.
        """
        embeds = self._embeds(input_ids, embeds)
        n_past = 0 if past is None else past.get_seq_length()
        derived, mask = _positions_and_mask(embeds, attention_mask, n_past)
        positions = derived if position_ids is None else position_ids.expand_as(derived)
        if position_ids is not None or n_past + embeds.shape[1] > self.config.block_size:
            _check_positions(positions, self.config.block_size)
        if self.config.d_pos_emb is None:
            x, positional = self.embed_dropout(embeds + self.wpe(positions)), None
        else:
            x, positional = self.embed_dropout(embeds), self.positional_dropout(self.wpe(positions))
        for layer, block in enumerate(self.blocks):
            x = block(x, positional, mask, None if past is None else partial(past.update, layer_idx=layer))
        logits = self.lm_head(self.ln_f(x))
        return logits if self.bigram_table is None else logits + self.bigram_table(cast(Tensor, input_ids))

    def _embeds(self, input_ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        """Token embeddings, looked up or given."""
        if (input_ids is None) == (embeds is None):
            raise SparseLensError("give either token ids or embeddings, not both and not neither")
        if input_ids is not None:
            _check_ids(input_ids, self.config.vocab_size)
            return self.wte(input_ids)
        if self.bigram_table is not None:
            raise SparseLensError(
                "this model has enable_bigram_table=True: its table reads token ids, so embeddings are not enough"
            )
        return cast(Tensor, embeds)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None, leave: Container[str] = ()) -> None:
        """Fresh weights: N(0, 0.02), residual writes scaled by 1/sqrt(2 n_layer), bigram U(0, 0.02), unit norm gains.

        Fixed positions are their sinusoids. Parameters named in `leave` stay as they are.
        """
        for name, parameter in self.named_parameters():
            if name in leave:
                continue
            if name.startswith("bigram_table"):
                parameter.uniform_(0, 0.02, generator=generator)
            elif name.endswith(("attn.o.weight", "mlp.fc_out.weight")):
                parameter.normal_(0, 0.02 / math.sqrt(2 * self.config.n_layer), generator=generator)
            elif parameter.ndim == 2:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0)
        if self.config.d_pos_emb is not None and self.config.sinusoidal_cat_pos_emb and "wpe.weight" not in leave:
            self.wpe.weight.copy_(sinusoidal_positions(self.config.block_size, self.config.d_pos_emb))

    def compress_weights(self, most: float = 0.1) -> int:
        """Let every matrix of a density up to `most` multiply by its nonzeros alone; returns how many do.

        A matrix that changes afterwards is multiplied whole again, until the next call; changes by way of `.data` go unseen, so
        call it with `most=0` before making any. In float32 on the CPU a product is about 2.5 times as fast at 5 % and 4 times at
        1 % (`sparse-lens bench train`); elsewhere nothing changes.
        """
        linears = [module for module in self.modules() if isinstance(module, Linear)]

        def choose(part: slice) -> None:
            for linear in linears[part]:
                weight = linear._parameters.get("weight")  # a weight that is computed anew at every pass is none
                linear.compressed = None
                if weight is not None and most > 0 and int(weight.detach().count_nonzero()) <= most * weight.numel():
                    linear.compressed = compress(weight)

        share_rows(choose, len(linears), least=2)
        return sum(linear.compressed is not None for linear in linears)

    def use_fast_kernels(self, fast: bool = True) -> None:
        """Whether every AbsTopK takes its fast form (the default) or `torch.topk`; see `sparse_lens.kernels.abstopk`."""
        for module in self.modules():
            if isinstance(module, AbsTopK):
                module.fast = fast


def make_norm(config: CircuitGPTConfig, width: int) -> nn.Module:
    """RMSNorm or LayerNorm as the reference builds it."""
    if config.rms_norm:
        return nn.RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.ln_bias)


def sinusoidal_positions(n_positions: int, width: int) -> Float[Tensor, "pos d_pos_emb"]:
    """Fixed positions: periods 4 to `n_positions`, log-spaced, all sines and then all cosines."""
    n_sines = (width + 1) // 2
    periods = torch.logspace(math.log10(4), math.log10(max(n_positions, 4)), n_sines)
    angles = 2 * math.pi * torch.arange(n_positions)[:, None] / periods[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width]


def _concatenate(x: Tensor, positional: Tensor | None) -> Tensor:
    return x if positional is None else torch.cat([x, positional], dim=-1)


def _causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """True where a key comes after the query; the queries are the last of the positions that have keys."""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).triu(1 + n_keys - n_queries)


def _positions_and_mask(embeds: Tensor, attention_mask: Tensor | None, n_past: int) -> tuple[Tensor, Tensor | None]:
    """Position of every token, counted over real tokens only, and where padding hides keys (`[batch 1 1 key]`)."""
    batch, length = embeds.shape[:2]
    straight = torch.arange(n_past, n_past + length, device=embeds.device).expand(batch, length)
    if attention_mask is not None and attention_mask.ndim == 4:
        return straight, _hidden(attention_mask, (batch, 1, length, n_past + length))
    if attention_mask is not None and attention_mask.shape != (batch, n_past + length):
        raise SparseLensError(
            f"the attention mask has the shape {tuple(attention_mask.shape)}, the tokens need {(batch, n_past + length)}: one "
            "entry for every token, those in the key-value cache included"
        )
    if attention_mask is None or bool(cast(Tensor, attention_mask != 0).all()):
        return straight, None
    real = attention_mask != 0
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    return positions[:, n_past:], ~real[:, None, None, :]


def _hidden(attention_mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Where a mask of queries and keys hides a key."""
    if attention_mask.dtype != torch.bool or attention_mask.shape != shape:
        raise SparseLensError(
            f"the attention mask has the shape {tuple(attention_mask.shape)} and type {attention_mask.dtype}; "
            f"a mask of queries and keys is Boolean and of shape {shape}"
        )
    return ~attention_mask


def _check_ids(input_ids: Tensor, vocab_size: int) -> None:
    if torch.compiler.is_compiling():
        return
    if input_ids.numel() == 0:
        raise SparseLensError(f"the input of shape {tuple(input_ids.shape)} holds no token; give at least one")
    lowest, highest = (int(extreme) for extreme in input_ids.aminmax())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise SparseLensError(f"token id {wrong} does not exist: this model has vocab_size={vocab_size}, ids 0 to {vocab_size - 1}")


def _check_positions(positions: Tensor, block_size: int) -> None:
    lowest, highest = (int(extreme) for extreme in positions.aminmax())
    if highest >= block_size:
        raise SparseLensError(
            f"the input has {highest + 1} tokens, this model has block_size={block_size} positions; "
            "shorten the input or generate fewer tokens"
        )
    if lowest < 0:
        raise SparseLensError(f"position {lowest} does not exist: positions run from 0 to {block_size - 1}")
