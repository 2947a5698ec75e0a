"""The bridge's class: a `TransformerBridge` that refuses, by name of the setting, what would give wrong numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import SparseLensError
from sparse_lens.hooks.cache import CONCATENATED, CircuitGPTCache
from sparse_lens.models import CircuitGPTConfig


class CircuitGPTBridge(TransformerBridge):
    """`TransformerBridge` of a weight-sparse transformer; nothing is added but `W_pos`, some calls are refused."""

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

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens' method; the cache knows where its decompositions do not hold."""
        output, cache = super().run_with_cache(*args, **kwargs)
        if isinstance(cache, ActivationCache):
            cache.__class__ = CircuitGPTCache
        return output, cache

    def _is_valid_bridge_path(self, hf_path: str) -> bool:
        """Whether `state_dict` keeps a parameter: TransformerLens drops all not called weight or bias."""
        return hf_path.endswith(".sink_logit") or super()._is_valid_bridge_path(hf_path)

    def all_composition_scores(self, mode: str) -> Any:
        """TransformerLens' method; raises `SparseLensError` with concatenated positions."""
        if (width := self.model_config.d_pos_emb) is not None:
            what = "a composition of one head's output with another head's whole input"
            instead = "slice W_Q, W_K and W_V to their first d_model rows"
            raise SparseLensError(CONCATENATED.format(width=width, what=what, instead=instead))
        return super().all_composition_scores(mode)


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
        yield "fold_value_biases", "sink=True makes pattern rows sum to less than 1"
