"""The Hugging Face shell around the core: `from_pretrained`, `generate`, Auto classes; no mathematics of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from sparse_lens.files import replaced_files
from sparse_lens.models.config import CircuitGPTConfig
from sparse_lens.models.core import CircuitGPTCore

IGNORED_TARGET = -100
_SHARD = re.compile(r"model(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)")
_INSIDE_BRIDGE = "._original_component"  # in the names of what a TransformerLens bridge wraps


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

    def initialize_weights(self) -> None:
        """Fresh values, by the core's scheme, for all parameters that no checkpoint gave.

        Hugging Face's own method goes by a module's type, where ours goes by a parameter's place, and passes over modules
        without parameters of their own. A bias that a checkpoint lacks (the reference's older ones have no final_logits_bias)
        is zero.
        """
        given = {name for name, parameter in self.core.named_parameters() if getattr(parameter, "_is_hf_initialized", False)}
        self.core.initialize(leave=given)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.core.wte

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.core.lm_head

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Int[Tensor, "batch key"] | Shaped[Tensor, "batch 1 pos key"] | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        labels: Int[Tensor, "batch pos"] | None = None,
        use_cache: bool = False,
        **unused: Any,  # noqa: ARG002 - generate() passes what other models need
    ) -> CausalLMOutputWithPast:
        """Logits `[batch pos vocab]`, and with `labels` (the ids themselves, shifted here) the mean loss in nats per token.

        `use_cache` fills `past_key_values`, or a new `DynamicCache`, with this call's keys and values, and returns it.
        """
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        logits = self.core(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        loss = None if labels is None else next_token_loss(logits, labels)
        return CausalLMOutputWithPast(loss=cast(Any, loss), logits=logits, past_key_values=past_key_values)

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride] - only these matter here
        self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The new tokens and the cache; of more tokens than the model has positions, the last ones, without a cache."""
        mask, size = kwargs.get("attention_mask"), self.config.block_size
        if input_ids.shape[1] > size:  # every token's position changes, so no key of the cache holds any more
            return {"input_ids": input_ids[:, -size:], "attention_mask": None if mask is None else mask[:, -size:]}
        past = kwargs.get("past_key_values")
        new = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        return {"input_ids": new, "attention_mask": mask, "past_key_values": past, "use_cache": bool(kwargs.get("use_cache"))}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hugging Face's method, also for a model inside a bridge; every file is renamed into its place when it is whole.

        Weights stay mapped to the file they were loaded from: writing over that file in place would lose both.
        """
        state = kwargs.pop("state_dict", None) or self._own_state()
        if self.config.tied_unembed and not torch.equal(state["core.lm_head.weight"], state["core.wte.weight"]):
            self.config.tied_unembed = False  # folding a norm into the unembedding has untied it
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).absolute().name)
        with replaced_files(save_directory) as staging:
            super().save_pretrained(staging, state_dict=state, **kwargs)
            written = {path.name for path in staging.iterdir()}
        for old in Path(save_directory).glob("model*.safetensors*"):  # shards, or the whole of what was saved here before
            if old.name not in written and (old.name == "model.safetensors" or _SHARD.fullmatch(old.name)):
                old.unlink()

    def _own_state(self) -> dict[str, torch.Tensor]:
        """The parameters by this class's names, though a bridge has wrapped modules and registered them by its own names too."""
        state = self.state_dict()
        if not any(_INSIDE_BRIDGE in name for name in state):
            return state
        with torch.device("meta"):
            expected = CircuitGPTForCausalLM(cast(CircuitGPTConfig, self.config)).state_dict()
        plain = {name.replace(_INSIDE_BRIDGE, ""): tensor for name, tensor in state.items()}
        return {name: plain[name] for name in expected}


def next_token_loss(logits: Float[Tensor, "batch pos vocab"], labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of each position's prediction of the next label, in nats per token; -100 is left out."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED_TARGET)


def register_auto_classes() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know `model_type="circuitgpt"`; safe to call again."""
    AutoConfig.register(CircuitGPTConfig.model_type, CircuitGPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(CircuitGPTConfig, CircuitGPTForCausalLM, exist_ok=True)
