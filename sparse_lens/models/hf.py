"""The Hugging Face shell around the core: `from_pretrained`, `generate`, Auto classes; no mathematics of its own."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import CausalLMOutput

from sparse_lens.models.config import CircuitGPTConfig
from sparse_lens.models.core import CircuitGPTCore

IGNORED_TARGET = -100


class CircuitGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """A weight-sparse transformer as a Hugging Face causal language model; the core sits at `.core`."""

    config_class = CircuitGPTConfig
    base_model_prefix = "core"
    main_input_name = "input_ids"
    _tied_weights_keys = {"core.lm_head.weight": "core.wte.weight"}  # noqa: RUF012
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: CircuitGPTConfig) -> None:
        super().__init__(config)
        self.core = CircuitGPTCore(config)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Initialize once, for the whole core: its scheme depends on a parameter's place, not on its module's type.

        A bias that a checkpoint lacks (the reference's older ones have no final_logits_bias) is zero.
        """
        if isinstance(module, CircuitGPTCore):
            module.initialize()
        elif isinstance(module, torch.nn.Linear) and module.bias is not None:
            initialization.zeros_(module.bias)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.core.wte

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.core.lm_head

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        labels: Int[Tensor, "batch pos"] | None = None,
        **unused: Any,  # noqa: ARG002 - generate() passes what other models need
    ) -> CausalLMOutput:
        """Logits `[batch pos vocab]`, and with `labels` (the ids themselves, shifted here) the mean loss in nats per token."""
        logits = self.core(input_ids, attention_mask)
        loss = None if labels is None else next_token_loss(logits, labels)
        return CausalLMOutput(loss=cast(Any, loss), logits=logits)

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride] - only ids and mask matter here
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """Whole sequence each step (there is no key-value cache), cut to the positions that the model has."""
        mask = kwargs.get("attention_mask")
        size = self.config.block_size
        return {"input_ids": input_ids[:, -size:], "attention_mask": None if mask is None else mask[:, -size:]}


def next_token_loss(logits: Float[Tensor, "batch pos vocab"], labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of each position's prediction of the next label, in nats per token; -100 is left out."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED_TARGET)


def register_auto_classes() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know `model_type="circuitgpt"`; safe to call again."""
    AutoConfig.register(CircuitGPTConfig.model_type, CircuitGPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(CircuitGPTConfig, CircuitGPTForCausalLM, exist_ok=True)
