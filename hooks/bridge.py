"""The bridge's class: a `TransformerBridge` that refuses, by name of the setting, what would give wrong numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.composition_scores import CompositionScores
from transformer_lens.utilities.matrix import composition_scores

from sparse_lens.errors import SparseLensError, UnknownNameError
from sparse_lens.hooks.cache import CircuitGPTCache
from sparse_lens.models import CircuitGPTConfig


class CircuitGPTBridge(TransformerBridge):
    """`TransformerBridge` of a weight-sparse transformer: what TransformerLens would compute wrongly is right or refused."""

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """Position embedding, `[block_size, d_model]`, or `[block_size, d_pos_emb]` with concatenated positions."""
        return self.pos_embed.W_pos

    @property
    def model_config(self) -> CircuitGPTConfig:
        """The model's own configuration, with the fields that TransformerLens' has no place for."""
        return self.original_model.config  # pyright: ignore[reportReturnType]

    def enable_compatibility_mode(
        self, disable_warnings: bool = False, no_processing: bool = False, *steps: bool, **processing: bool
    ) -> None:
        """TransformerLens' method; raises `SparseLensError` where the processing would change the function."""
        if not no_processing:
            refuse_wrong_processing(self.model_config, *steps, **processing)
        super().enable_compatibility_mode(disable_warnings, no_processing, *steps, **processing)

    def process_weights(self, verbose: bool = False, *steps: bool, **processing: bool) -> None:
        """TransformerLens' method; raises `SparseLensError` where the processing would change the function."""
        refuse_wrong_processing(self.model_config, *steps, **processing)
        super().process_weights(verbose, *steps, **processing)

    @torch.no_grad()
    def fold_final_norm(self) -> None:
        """Fold gain and bias of the last norm into the unembedding: exact in every model of this architecture.

        With `enable_compatibility_mode(no_processing=True)` it is what direct logit attribution asks for; TransformerLens' own
        `fold_ln`, which folds every norm, is refused where AbsTopK selects after a norm. A tied unembedding is untied.
        """
        core: Any = self.original_model.core
        norm, head = core.ln_f.original_component, core.lm_head.original_component
        if (bias := getattr(norm, "bias", None)) is not None:
            head.bias += head.weight @ bias
            bias.zero_()
        head.weight = nn.Parameter(head.weight * norm.weight)
        norm.weight.fill_(1)
        self.model_config.tied_unembed = False

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*tokens d_model"]:
        """The directions whose products with the normalized residual stream are the tokens' logits.

        TransformerLens' method, with the gain of the last norm: there it is expected to be folded into W_U, which here is often
        impossible, and without it attributions of logits would not add up.
        """
        return super().tokens_to_residual_directions(tokens) * self.ln_final.weight

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens' method; the cache is a `CircuitGPTCache`, whose decompositions hold."""
        output, cache = super().run_with_cache(*args, **kwargs)
        return output, CircuitGPTCache.of(cache) if isinstance(cache, ActivationCache) else cache

    def run_with_hooks(self, input: Any, fwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Any:
        """TransformerLens' method; raises `SparseLensError` for direct path patching through a path that is not linear."""
        fwd_hooks = list(fwd_hooks)  # an iterator would be used up by the look at it
        for name, hook in fwd_hooks:
            if getattr(hook, "__qualname__", "").startswith("_make_direct_path_hook."):
                refuse_direct_path(self.model_config, str(name))
        return super().run_with_hooks(input, fwd_hooks, *args, **kwargs)

    def all_composition_scores(self, mode: str) -> CompositionScores:
        """TransformerLens' method; with concatenated positions, of the inputs' part that is the residual stream."""
        width = self.cfg.d_model
        query, key, value = (weights[:, :, :width] for weights in (self.W_Q, self.W_K, self.W_V))
        writes, reads = FactoredMatrix(value, self.W_O), FactoredMatrix(query, key.transpose(-2, -1))
        rights = {"Q": reads, "K": reads.T, "V": writes}
        if mode not in rights:
            raise UnknownNameError("composition", str(mode), rights)
        scores = composition_scores(writes, rights[mode], broadcast_dims=True)
        layers = torch.arange(self.cfg.n_layers, device=scores.device)
        later = layers[:, None, None, None] < layers[None, None, :, None]
        labels = [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]
        return CompositionScores(torch.where(later, scores, 0.0), layers.tolist(), labels)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """TransformerLens' method; warns of the hooks that are passed by while it is on."""
        super().set_use_attn_result(use_attn_result)
        if use_attn_result:
            _warn_passed_by("use_attn_result", "attn.o.hook_in, attn.o.hook_out", "attn.hook_z, attn.hook_result, hook_attn_out")

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """TransformerLens' method; warns of the hooks that are passed by while it is on."""
        super().set_use_split_qkv_input(use_split_qkv_input)
        if use_split_qkv_input:
            _warn_passed_by("use_split_qkv_input", _PASSED_BY_FORKS, "attn.hook_q_input and its like, attn.hook_q, hook_k, hook_v")

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """TransformerLens' method; warns of the hooks that are passed by while it is on."""
        super().set_use_attn_in(use_attn_in)
        if use_attn_in:
            _warn_passed_by("use_attn_in", _PASSED_BY_FORKS, "attn.hook_attn_in, attn.hook_q, hook_k, hook_v")

    def _is_valid_bridge_path(self, hf_path: str) -> bool:
        """Whether `state_dict` keeps a parameter: TransformerLens drops all not called weight or bias."""
        return hf_path.endswith(".sink_logit") or super()._is_valid_bridge_path(hf_path)

    def _validate_attention_fork_supported(self, flag_name: str) -> None:
        """TransformerLens' check of the attention's class; ours forks the input in every model."""


_PASSED_BY_FORKS = "ln1.hook_out, attn.hook_act_in, attn.q.hook_in, attn.q.hook_out (and those of k and v)"


def _warn_passed_by(flag: str, hooks: str, instead: str) -> None:
    warnings.warn(f"while {flag} is on, edits at {hooks} have no effect; use {instead}", stacklevel=3)


def refuse_direct_path(config: CircuitGPTConfig, hook: str) -> None:
    """Raise `SparseLensError` if the path from a head's output to what is computed at `hook` is not linear."""
    reader = f"attn_{hook.rsplit('hook_', 1)[-1][0]}"
    between = ("attn_out", "resid_post_attn", "resid_post_mlp", "attn_in", reader)
    reasons = [f"AbsTopK on {site}" for site in between if site in config.sparse_sites]
    if config.residual_activation_type != "identity":
        reasons.append(f"residual_activation_type={config.residual_activation_type}")
    if config.d_pos_emb is not None and not hook.endswith("_input"):
        reasons.append(f"d_pos_emb={config.d_pos_emb}, which this version of TransformerLens cannot patch around")
    if reasons:
        raise SparseLensError(
            f"the path from one head into another head's {reader[-1]} is not linear in this model ({', '.join(reasons)}), so "
            "direct path patching does not apply; patch hook_z, or find a circuit with find_circuit"
        )


_ABSTOPK_CONFLICTS = {
    "fold_ln": (("attn_in", "mlp_in"), "selects by the norm's gain"),
    "center_writing_weights": (
        ("attn_out", "mlp_out", "resid_post_attn", "resid_post_mlp"),
        "does not commute with centering",
    ),
    "fold_value_biases": (("attn_v",), "selects by the bias too"),
    "refactor_factored_attn_matrices": (("attn_q", "attn_k", "attn_v"), "depends on the basis"),
}


def refuse_wrong_processing(
    config: CircuitGPTConfig,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,  # noqa: ARG001 - always exact: it shifts all logits of a position alike
    fold_value_biases: bool = True,
    refactor_factored_attn_matrices: bool = False,
) -> None:
    """Raise `SparseLensError` if one of TransformerLens' weight processings would change what the model computes."""
    folds_norm_bias = fold_ln and config.ln_bias and not config.rms_norm  # which gives the values a bias
    asked = {
        "fold_ln": fold_ln,
        "center_writing_weights": center_writing_weights and not config.rms_norm,  # a no-op with RMSNorm
        "fold_value_biases": fold_value_biases and (config.bias or folds_norm_bias),
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    reasons = [f"{step}: {reason}" for step, reason in _conflicts(config) if asked[step]]
    if reasons:
        raise SparseLensError(
            "weight processing would change what this model computes (" + "; ".join(reasons) + "); "
            "use enable_compatibility_mode(no_processing=True), or switch off the processing named"
        )


def _conflicts(config: CircuitGPTConfig) -> Iterator[tuple[str, str]]:
    """Every processing that is wrong for this configuration, with the reason."""
    for step, (sites, why) in _ABSTOPK_CONFLICTS.items():
        yield from ((step, f"AbsTopK on {site} {why}") for site in sites if site in config.sparse_sites)
    if config.d_pos_emb is not None:
        for step in ("fold_ln", "center_writing_weights"):
            yield step, f"d_pos_emb={config.d_pos_emb} makes inputs wider than d_model"
    if config.residual_activation_type != "identity":
        yield "center_writing_weights", f"residual_activation_type={config.residual_activation_type} is not linear"
    if config.sink:
        for step in ("fold_value_biases", "refactor_factored_attn_matrices"):  # which folds the value biases too
            yield step, "sink=True makes pattern rows sum to less than 1"
    if not config.bias:
        yield "refactor_factored_attn_matrices", "bias=False leaves it nothing to fold biases into"
