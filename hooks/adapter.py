"""How TransformerLens sees a `CircuitGPTForCausalLM`, and how it learns of it."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from transformer_lens.factories import architecture_adapter_factory as factory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter

from sparse_lens.hooks import components
from sparse_lens.hooks.bridge import CircuitGPTBridge
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM, register_auto_classes

ARCHITECTURE = CircuitGPTForCausalLM.__name__


class CircuitGPTArchitectureAdapter(ArchitectureAdapter):
    """Maps the core's modules to TransformerLens' names (arXiv:2511.13653; hook names in the documentation).

    TransformerLens' configuration keeps few of the model's fields, so what depends on the others (bigram table, norms
    of concatenated positions) is added in `prepare_model`, which sees the model.
    """

    supports_kv_cache = True
    supports_hf_output_attentions = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.tokenizer_name = None  # a bare name here would be looked up on the Hub
        self.cfg.default_prepend_bos = False  # the tokenizers add nothing, so nothing is added behind the user's back
        self.cfg.default_padding_side = "right"
        self.cfg.gated_mlp = self.cfg.attn_only = False
        self.weight_processing_conversions = {**self._qkvo_weight_conversions(include_biases=True)}
        self.component_mapping = {
            "embed": components.Embedding(name="core.wte"),
            "pos_embed": components.Positions(name="core.wpe"),
            "blocks": self._block(),
            "ln_final": components.Norm("core.ln_f", self.cfg),
            "unembed": components.Unembedding(name="core.lm_head"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Complete configuration and components for this model; calling it again changes nothing."""
        config: CircuitGPTConfig = hf_model.config
        self.cfg.eps = config.norm_eps
        self.cfg.normalization_type = "RMS" if config.rms_norm else "LN"
        self.cfg.uses_rms_norm = self.cfg.final_rms = config.rms_norm
        self.cfg.act_fn = config.activation_type
        self.cfg.d_mlp = config.mlp_width
        self.cfg.tie_word_embeddings = config.tied_unembed
        self.cfg.positional_embedding_type = "standard" if config.d_pos_emb is None else "concat"
        if config.enable_bigram_table and "bigram" not in self.components:
            self.components["bigram"] = components.Embedding(name="core.bigram_table")
        if config.d_pos_emb is not None:
            for norm in ("ln_p1", "ln_p2"):
                self.components["blocks"].submodules.setdefault(norm, components.Norm(norm, self.cfg))

    def setup_hook_compatibility(self, bridge_model: Any) -> None:
        """Give a finished bridge our class, on whatever way it was built: TransformerLens fixes the class itself."""
        if type(bridge_model) is TransformerBridge:
            bridge_model.__class__ = CircuitGPTBridge

    def _block(self) -> components.Block:
        attention = {letter: components.Linear(name=letter) for letter in "qkvo"}
        mlp = {"in": components.Linear(name="fc_in"), "out": components.Linear(name="fc_out")}
        return components.Block(
            name="core.blocks",
            config=self.cfg,
            submodules={
                "ln1": components.Norm("ln_1", self.cfg),
                "attn": components.Attention("attn", self.cfg, {**attention}),
                "resid_mid": components.ResidMid(name="resid_mid"),
                "ln2": components.Norm("ln_2", self.cfg),
                "mlp": components.MLP("mlp", self.cfg, {**mlp}),
            },
        )


def register() -> None:
    """Make TransformerLens and the Hugging Face Auto classes know the architecture; safe to call again.

    `boot_transformers` reads the static table, `build_bridge_from_module` the factory. The factory finds installed
    packages by their entry point and warns if the name is taken already, hence no registration there unless the entry
    point is missing.
    """
    factory.SUPPORTED_ARCHITECTURES.setdefault(ARCHITECTURE, CircuitGPTArchitectureAdapter)
    group = entry_points(group="transformer_lens.architectures")
    if ARCHITECTURE not in group.names:
        factory.ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, CircuitGPTArchitectureAdapter)
    register_auto_classes()
