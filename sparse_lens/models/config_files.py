"""Reading the configuration of a model's folder, in every format, strictly.

| file | format |
|---|---|
| `beeg_config.json` | the reference's (openai/circuit_sparsity, `circuit_sparsity/inference/gpt.py`) |
| `config.json` with `model_type: circuitgpt` | Hugging Face, ours and openai/circuit-sparsity |
| `config.json` with `model_config` and `sparsity_config` | the public replication's (jacobcd52/sparse_pretrain_public) |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_lens.errors import CheckpointError, ConfigError
from sparse_lens.models.config import EXTENSION_FIELDS, PAPER_SITES, REFERENCE_FIELDS, CircuitGPTConfig, validate_config

REFERENCE_CONFIG, HF_CONFIG = "beeg_config.json", "config.json"

# Fields of unpublished revisions: harmless when null or false, another architecture otherwise.
_INERT_FIELDS = (
    "unembed_rank bigram_table_rank afrac_ste afrac_ste_only_non_neurons afrac_approx rtopk mup mup_width_multiplier "
    "enable_fp8_linear scale_invariance use_tied_aux_matrix"
).split()
_TRAINING_FIELDS = ("pfrac",)  # the density it was trained to: no part of the forward pass, dropped by older loaders too
_HF_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What transformers of any age writes beside a model's own fields; none of it changes what a model of this architecture computes.
_HF_IGNORED = (
    "model_type architectures auto_map transformers_version dtype torch_dtype _name_or_path use_cache is_decoder "
    "is_encoder_decoder return_dict output_hidden_states output_attentions chunk_size_feed_forward id2label label2id problem_type "
    "initializer_range max_length task_specific_params _attn_implementation_autoset gradient_checkpointing pruned_heads "
    "add_cross_attention cross_attention_hidden_size tie_encoder_decoder tokenizer_class prefix sep_token_id "
    "decoder_start_token_id torchscript finetuning_task use_bfloat16"
).split()
_MOST_JSON_BYTES = 1 << 22


@dataclass(frozen=True)
class Description:
    """What a folder says of its model: the configuration, and which tensors its format leaves out because they are zeros."""

    config: CircuitGPTConfig
    omitted: frozenset[str] = frozenset({"lm_head.bias"})


def read_config(folder: str | Path) -> CircuitGPTConfig:
    """The validated configuration of the model in `folder`, without touching its weights."""
    return read_description(folder).config


def read_description(folder: str | Path) -> Description:
    """As `read_config`, with what the weights may lack."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {folder}; give a folder with {HF_CONFIG} or {REFERENCE_CONFIG} in it")
    if (folder / REFERENCE_CONFIG).is_file():
        path = folder / REFERENCE_CONFIG
        return Description(_config(_reference_fields(read_json(path), path), folder))
    path = folder / HF_CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} holds neither {HF_CONFIG} nor {REFERENCE_CONFIG}; is it a model's folder?")
    raw = read_json(path)
    if isinstance(raw.get("model_config"), dict):
        return _replication(raw, path)
    return Description(_config(_hf_fields(raw, path), folder))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of reasonable size; raises `CheckpointError` for anything else."""
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, too many for a configuration; is it the right file?")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object of configuration fields")
    return content


def _config(fields: dict[str, Any], folder: Path) -> CircuitGPTConfig:
    try:
        config = CircuitGPTConfig(**fields)
    except Exception as error:  # the strict configuration class raises errors of several libraries
        raise ConfigError(f"the configuration in {folder} is not valid: {error}") from error
    validate_config(config)
    return config


def _reference_fields(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The reference's own rules: `n_mlp` is `d_mlp`, fields of other revisions must be inert."""
    fields = dict(raw)
    if "n_mlp" in fields:
        fields["d_mlp"] = fields.pop("n_mlp")
    fields = _drop_inert(fields, path)
    _refuse_unknown(fields, REFERENCE_FIELDS, path)
    return fields


def _hf_fields(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    model_type = raw.get("model_type")
    if model_type != CircuitGPTConfig.model_type:
        raise CheckpointError(f"{path} describes model_type {model_type!r}, this package loads 'circuitgpt' models only")
    own = {name: value for name, value in _drop_inert(raw, path).items() if name not in _HF_IGNORED}
    aliases = CircuitGPTConfig.attribute_map
    fields = {aliases.get(name, name): value for name, value in own.items()}
    fields |= {name: value for name, value in own.items() if name not in aliases}  # of two spellings, the model's own counts
    # Everything else would reach transformers, where names of attention kernels, for one, are fetched and run.
    _refuse_unknown(fields, [*REFERENCE_FIELDS, *EXTENSION_FIELDS, *_HF_TOKENS], path)
    return fields


_REPLICATION_FIELDS = {
    "n_layer": "n_layer",
    "d_model": "d_model",
    "n_ctx": "block_size",
    "d_head": "d_head",
    "d_mlp": "d_mlp",
    "vocab_size": "vocab_size",
    "use_rms_norm": "rms_norm",
    "tie_embeddings": "tied_unembed",
    "use_bigram_table": "enable_bigram_table",
    "use_attention_sinks": "sink",
    "activation": "activation_type",
    "dropout": "dropout",
    "use_bias": "bias",
}
_REPLICATION_DEFAULTS = {
    "rms_norm": True,
    "tied_unembed": False,
    "enable_bigram_table": True,
    "sink": True,
    "bias": True,
    "learnable_bigram_table": True,
    "tokenizer_name": None,
}
_REPLICATION_OTHER = ("use_positional_embeddings", "use_flash_attention")


def _replication(raw: dict[str, Any], path: Path) -> Description:
    """The public replication's `config.json`; without position embeddings, as there by default, they are zeros here."""
    model, sparsity = raw["model_config"], raw.get("sparsity_config") or {}
    if not isinstance(sparsity, dict):
        raise CheckpointError(f"{path}: sparsity_config is a {type(sparsity).__name__}, not an object")
    _refuse_unknown(model, [*_REPLICATION_FIELDS, *_REPLICATION_OTHER], path)
    fields = _REPLICATION_DEFAULTS | {_REPLICATION_FIELDS[name]: model[name] for name in model if name in _REPLICATION_FIELDS}
    if model.get("use_flash_attention") is False and fields["sink"]:
        raise CheckpointError(
            f"{path} sets use_flash_attention=false, where the replication's sink does nothing; set it, or no sink"
        )
    d_model, d_head = fields.get("d_model"), fields.get("d_head", 16)
    if not (isinstance(d_model, int) and isinstance(d_head, int) and d_head > 0 and d_model % d_head == 0):
        raise ConfigError(f"{path}: d_model ({d_model!r}) must be a multiple of d_head ({d_head!r}); correct the configuration")
    fields |= {"n_head": d_model // d_head, "d_head": d_head} | _replication_sparsity(sparsity, path)
    omitted = {"lm_head.bias"} | (set() if model.get("use_positional_embeddings") else {"wpe.weight"})
    config = _config(fields, path.parent)
    for site in config.sparse_sites:
        if config.kept(site, config.d_model) == 0:  # it keeps one there, we none
            raise ConfigError(f"{path}: activation_topk_fraction={config.afrac} keeps no channel of {config.d_model}; raise it")
    return Description(config, frozenset(omitted))


def _replication_sparsity(sparsity: dict[str, Any], path: Path) -> dict[str, Any]:
    if not sparsity.get("enable_activation_sparsity"):
        return {"afrac": None}
    locations = sparsity.get("activation_sparsity_locations", ",".join(PAPER_SITES))  # its upload leaves the sites out
    if not isinstance(locations, str):
        raise ConfigError(f"{path}: activation_sparsity_locations must be names with commas between them, got {locations!r}")
    if "resid_pre" in locations:
        raise CheckpointError(
            f"{path} makes resid_pre sparse, after the embedding and not after the last layer; no site here is that one"
        )
    return {
        "afrac": sparsity.get("activation_topk_fraction", 0.25),
        "afrac_loctypes": locations.replace("resid_mid", "resid_post_attn"),
    }


def _refuse_unknown(fields: dict[str, Any], known: Sequence[str], path: Path) -> None:
    if unknown := sorted(set(fields) - set(known)):
        raise CheckpointError(f"{path} holds unknown fields: {', '.join(unknown)}; known: {', '.join(known)}")


def _drop_inert(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    for name in _INERT_FIELDS:
        if fields.get(name):
            raise CheckpointError(
                f"{path} sets {name}={fields[name]!r}, an unpublished feature that changes the model; it cannot be loaded"
            )
    return {name: value for name, value in fields.items() if name not in (*_INERT_FIELDS, *_TRAINING_FIELDS)}
