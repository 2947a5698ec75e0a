"""The configuration of a CircuitGPT model: every field of the reference implementation's `GPTConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from sparse_lens.errors import ConfigError

ABSTOPK_SITES = (
    "attn_in",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_out",
    "resid_post_attn",
    "mlp_in",
    "mlp_neuron",
    "mlp_out",
    "resid_post_mlp",
)
"""Where AbsTopK can stand (openai/circuit_sparsity, circuit_sparsity/inference/gpt.py)."""

PAPER_SITES = tuple(site for site in ABSTOPK_SITES if not site.startswith("resid_"))
"""The eight sites that the released training script makes sparse, and the node sites of a circuit."""


@strict
class CircuitGPTConfig(PreTrainedConfig):
    """Hugging Face configuration of a weight-sparse transformer (arXiv:2511.13653).

    Field names and defaults are those of `GPTConfig` in openai/circuit_sparsity, `circuit_sparsity/inference/gpt.py`.
    `d_head` and `d_mlp` default to `d_model // n_head` and `4 * d_model`; `afrac` is the kept fraction at the sites of
    `afrac_loctypes` (comma-separated), None for no activation sparsity; `d_pos_emb` switches to concatenated positions.

    Beyond the reference, `n_experts` cuts the MLP's neurons into as many equal groups, of which a router opens
    `experts_per_token` at every token (mixture of experts).
    """

    model_type = "circuitgpt"
    attribute_map = {  # noqa: RUF012 - the base class declares it so
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "block_size",
        "intermediate_size": "d_mlp",
        "head_dim": "d_head",
        "tie_word_embeddings": "tied_unembed",
    }

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    d_model: int = 768
    d_head: int | None = None
    d_mlp: int | None = None
    dropout: float | int = 0.0
    bias: bool = True
    ln_bias: bool = True
    rms_norm: bool = False
    residual_activation_type: str = "identity"
    activation_type: str = "gelu"
    afrac: float | int | None = None
    afrac_loctypes: str = "attn_in,attn_out,mlp_in,mlp_out"
    tied_unembed: bool = True
    tokenizer_name: str | None = "tinypython_2k"
    enable_bigram_table: bool = False
    learnable_bigram_table: bool = False
    d_pos_emb: int | None = None
    dropout_cat_pos_emb: bool = False
    sinusoidal_cat_pos_emb: bool = False
    sink: bool = False
    flash: bool = True
    grad_checkpointing: bool = True
    debug_nans: bool = False
    enable_sparse_kernels: bool = False
    n_experts: int | None = None
    experts_per_token: int = 1
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.d_head is None and self.n_head > 0:
            self.d_head = self.d_model // self.n_head
        if self.d_mlp is None:
            self.d_mlp = 4 * self.d_model
        super().__post_init__(**kwargs)

    @property
    def d_model_in(self) -> int:
        """Input width of an attention or MLP sublayer: `d_model`, plus `d_pos_emb` with concatenated positions."""
        return self.d_model + (self.d_pos_emb or 0)

    @property
    def d_attn(self) -> int:
        """Width of the flat query, key and value vectors: `n_head * d_head`."""
        return self.n_head * self.head_width

    @property
    def head_width(self) -> int:
        """`d_head` with its default applied."""
        assert self.d_head is not None
        return self.d_head

    @property
    def mlp_width(self) -> int:
        """`d_mlp` with its default applied."""
        assert self.d_mlp is not None
        return self.d_mlp

    @property
    def norm_eps(self) -> float:
        """eps of the norms: float32's machine epsilon for RMSNorm whatever the dtype, 1e-5 for LayerNorm."""
        return float(torch.finfo(torch.float32).eps) if self.rms_norm else 1e-5

    @property
    def sparse_sites(self) -> tuple[str, ...]:
        """The AbsTopK sites in use, empty without activation sparsity."""
        if self.afrac is None:
            return ()
        return tuple(site.strip() for site in self.afrac_loctypes.split(",") if site.strip())

    def kept(self, site: str, width: int) -> int | None:
        """How many of `width` channels AbsTopK keeps at `site`; None where it does not act."""
        if self.afrac is None or site not in self.sparse_sites:
            return None
        return int(self.afrac * width)


REFERENCE_FIELDS = (
    "block_size vocab_size n_layer n_head d_model d_head d_mlp dropout bias ln_bias rms_norm residual_activation_type "
    "activation_type afrac afrac_loctypes tied_unembed tokenizer_name enable_bigram_table learnable_bigram_table "
    "d_pos_emb dropout_cat_pos_emb sinusoidal_cat_pos_emb sink flash grad_checkpointing debug_nans enable_sparse_kernels"
).split()
"""The fields that `beeg_config.json` may hold."""

assert {f.name for f in dataclasses.fields(CircuitGPTConfig)} >= set(REFERENCE_FIELDS)

EXTENSION_FIELDS = ("n_experts", "experts_per_token")
"""Fields that the reference does not have; a model that uses them cannot be written in its format."""

_POSITIVE = ("block_size", "vocab_size", "n_layer", "n_head", "d_model", "d_head", "d_mlp")
_SWITCHES = (
    "bias ln_bias rms_norm tied_unembed enable_bigram_table learnable_bigram_table dropout_cat_pos_emb sinusoidal_cat_pos_emb sink"
).split()
_NUMBERS = ("dropout", "afrac", "d_pos_emb")
_LARGEST = 1 << 20
_MOST_LAYERS = 1 << 12
MAX_PARAMETERS = 20_000_000_000
"""A configuration promising more than this is taken for a broken or hostile file, before anything is allocated."""


def validate_config(config: CircuitGPTConfig) -> None:
    """Raise `ConfigError` for a configuration that cannot be built, before any memory is taken."""
    for name in _POSITIVE:
        value, most = getattr(config, name), _MOST_LAYERS if name == "n_layer" else _LARGEST
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise ConfigError(f"{name} must be an integer from 1 to {most}, got {value!r}; correct the configuration file")
    for name in _SWITCHES:
        if not isinstance(value := getattr(config, name), bool):
            raise ConfigError(f"{name} must be true or false, got {value!r}; correct the configuration file")
    for name in _NUMBERS:
        if isinstance(value := getattr(config, name), bool) or not isinstance(value, int | float | None):
            raise ConfigError(f"{name} must be a number, got {value!r}; correct the configuration file")
    if not isinstance(config.afrac_loctypes, str):
        raise ConfigError(f"afrac_loctypes must be names of sites with commas between them, got {config.afrac_loctypes!r}")
    _check_choice("activation_type", config.activation_type, ("gelu", "relu"))
    _check_choice("residual_activation_type", config.residual_activation_type, ("identity", "relu"))
    if config.d_pos_emb is not None and not (isinstance(config.d_pos_emb, int) and 0 < config.d_pos_emb <= _LARGEST):
        raise ConfigError(f"d_pos_emb must be a positive integer or null, got {config.d_pos_emb!r}")
    if config.dropout is None or not 0 <= config.dropout < 1:
        raise ConfigError(f"dropout must lie in [0, 1), got {config.dropout!r}")
    _check_sparsity(config)
    _check_experts(config)
    if (count := parameter_count(config)) > MAX_PARAMETERS:
        raise ConfigError(
            f"the configuration promises {count:.2e} parameters, more than the limit of {MAX_PARAMETERS:.0e}; is the file damaged?"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_sparsity(config: CircuitGPTConfig) -> None:
    if config.afrac is None:
        return
    if not 0 < config.afrac <= 1:
        raise ConfigError(f"afrac must lie in (0, 1] or be null, got {config.afrac!r}")
    for site in config.sparse_sites:
        _check_choice("every name in afrac_loctypes", site, ABSTOPK_SITES)


def _check_experts(config: CircuitGPTConfig) -> None:
    if config.n_experts is None:
        return
    n, each = config.n_experts, config.experts_per_token
    if not isinstance(n, int) or isinstance(n, bool) or n < 1 or config.mlp_width % n:
        raise ConfigError(f"n_experts must be null or divide d_mlp ({config.mlp_width}), got {n!r}")
    if not isinstance(each, int) or isinstance(each, bool) or not 1 <= each <= n:
        raise ConfigError(f"experts_per_token must lie between 1 and n_experts ({n}), got {each!r}")


def parameter_count(config: CircuitGPTConfig) -> int:
    """Number of weights that a model of this configuration stores, the bigram table and buffers included."""
    d, d_in, d_attn, d_mlp, vocab = config.d_model, config.d_model_in, config.d_attn, config.mlp_width, config.vocab_size
    block = 3 * d_attn * d_in + d * d_attn + d_mlp * d_in + d * d_mlp + 2 * d
    block += (config.n_experts or 0) * d_in
    if config.bias:
        block += 3 * d_attn + d + d_mlp + d
    embeddings = vocab * d * (1 if config.tied_unembed else 2) + config.block_size * (config.d_pos_emb or d)
    return config.n_layer * block + embeddings + (vocab * vocab if config.enable_bigram_table else 0)
