"""Reading and writing models in every supported format, strictly.

| files in the folder | format |
|---|---|
| `beeg_config.json`, `final_model.pt` | the reference's (openai/circuit_sparsity) |
| `config.json`, `model.safetensors` (or shards) | Hugging Face |
| `config.json`, `model.packed.safetensors` | packed (`sparse_lens.models.packed`), as the shipped models |

No pickle is executed and nothing is allocated on the word of a configuration file alone. What a file lacks, has too much, or has in
another shape is an error: the reference loads with `strict=False`, which hides all three.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_lens.errors import CheckpointError, ConfigError
from sparse_lens.files import new_directory
from sparse_lens.models.config import REFERENCE_FIELDS, CircuitGPTConfig, validate_config
from sparse_lens.models.hf import CircuitGPTForCausalLM
from sparse_lens.models.keys import to_core_names, to_reference_names
from sparse_lens.models.packed import read_packed, write_packed

REFERENCE_CONFIG, REFERENCE_WEIGHTS = "beeg_config.json", "final_model.pt"
HF_CONFIG, HF_WEIGHTS, HF_INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PACKED_WEIGHTS = "model.packed.safetensors"

# Fields of unpublished revisions: harmless when null or false, another architecture otherwise.
_INERT_FIELDS = (
    "unembed_rank bigram_table_rank pfrac afrac_ste afrac_ste_only_non_neurons afrac_approx rtopk mup mup_width_multiplier "
    "enable_fp8_linear scale_invariance use_tied_aux_matrix"
).split()
_HF_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What transformers writes beside a model's own fields; none of it changes what a model of this architecture computes.
_HF_IGNORED = (
    "model_type architectures auto_map transformers_version dtype torch_dtype _name_or_path use_cache is_decoder "
    "is_encoder_decoder return_dict output_hidden_states output_attentions chunk_size_feed_forward id2label label2id problem_type "
    "initializer_range max_length task_specific_params"
).split()
_MOST_JSON_BYTES = 1 << 22
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_checkpoint(path: str | Path, *, dtype: torch.dtype = torch.float32) -> CircuitGPTForCausalLM:
    """The model in the folder `path`, in evaluation mode, its weights converted to `dtype`.

    Raises `CheckpointError` or `ConfigError` for anything missing, superfluous, wrongly shaped, not finite or unreadable.
    """
    folder = Path(path)
    config = read_config(folder)
    raw = _read_weights(folder)
    _check_tensors(raw, folder)
    state = to_core_names(raw, config)
    with torch.device("meta"):
        model = CircuitGPTForCausalLM(config)
    _check_shapes(state, {name: tensor.shape for name, tensor in model.core.state_dict().items()}, folder)
    state = {name: tensor.to(dtype).clone() for name, tensor in state.items()}
    _check_finite(state, folder)
    model.core.load_state_dict(state, strict=True, assign=True)
    if config.tied_unembed:
        model.core.lm_head.weight = model.core.wte.weight
    return model.eval()


def read_config(folder: str | Path) -> CircuitGPTConfig:
    """The validated configuration of the model in `folder`, without touching its weights."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {folder}; give a folder with {HF_CONFIG} or {REFERENCE_CONFIG} in it")
    if (folder / REFERENCE_CONFIG).is_file():
        fields = _reference_fields(_read_json(folder / REFERENCE_CONFIG), folder / REFERENCE_CONFIG)
    elif (folder / HF_CONFIG).is_file():
        fields = _hf_fields(_read_json(folder / HF_CONFIG), folder / HF_CONFIG)
    else:
        raise CheckpointError(f"{folder} holds neither {HF_CONFIG} nor {REFERENCE_CONFIG}; is it a model's folder?")
    try:
        config = CircuitGPTConfig(**fields)
    except Exception as error:  # the strict configuration class raises errors of several libraries
        raise ConfigError(f"the configuration in {folder} is not valid: {error}") from error
    validate_config(config)
    return config


def save_reference(model: CircuitGPTForCausalLM, path: str | Path) -> None:
    """Write the reference's folder format, `beeg_config.json` and `final_model.pt`."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.core.state_dict().items()}
    fields = {name: getattr(model.config, name) for name in REFERENCE_FIELDS}
    with new_directory(path) as folder:
        (folder / REFERENCE_CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        torch.save(to_reference_names(state, model.core.config), folder / REFERENCE_WEIGHTS)


def save_packed(model: CircuitGPTForCausalLM, folder: Path) -> None:
    """Write `config.json` and the packed weights into an existing folder; values are rounded to fp16."""
    state = dict(model.core.state_dict())
    if model.config.tied_unembed:
        del state["lm_head.weight"]
    model.config.architectures = ["CircuitGPTForCausalLM"]
    (folder / HF_CONFIG).write_text(model.config.to_json_string())
    write_packed(folder / PACKED_WEIGHTS, state)


def _read_json(path: Path) -> dict[str, Any]:
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


def _reference_fields(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The reference's own rules: `n_mlp` is `d_mlp`, fields of other revisions must be inert."""
    fields = dict(raw)
    if "n_mlp" in fields:
        fields["d_mlp"] = fields.pop("n_mlp")
    fields = _drop_inert(fields, path)
    unknown = sorted(set(fields) - set(REFERENCE_FIELDS))
    if unknown:
        raise CheckpointError(f"{path} holds unknown fields: {', '.join(unknown)}; known: {', '.join(REFERENCE_FIELDS)}")
    return fields


def _hf_fields(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    model_type = raw.get("model_type")
    if model_type != CircuitGPTConfig.model_type:
        raise CheckpointError(f"{path} describes model_type {model_type!r}, this package loads 'circuitgpt' models only")
    aliases = CircuitGPTConfig.attribute_map
    fields = {aliases.get(name, name): value for name, value in _drop_inert(raw, path).items() if name not in _HF_IGNORED}
    # Everything else would reach transformers, where names of attention kernels, for one, are fetched and run.
    if unknown := sorted(set(fields) - set(REFERENCE_FIELDS) - set(_HF_TOKENS)):
        raise CheckpointError(
            f"{path} holds unknown fields: {', '.join(unknown)}; known: {', '.join([*REFERENCE_FIELDS, *_HF_TOKENS])}"
        )
    return fields


def _drop_inert(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    for name in _INERT_FIELDS:
        if fields.get(name):
            raise CheckpointError(
                f"{path} sets {name}={fields[name]!r}, an unpublished feature that changes the model; it cannot be loaded"
            )
    return {name: value for name, value in fields.items() if name not in _INERT_FIELDS}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        if (folder / PACKED_WEIGHTS).is_file():
            return read_packed(folder / PACKED_WEIGHTS)
        if (folder / HF_WEIGHTS).is_file():
            return _read_safetensors(folder / HF_WEIGHTS)
        if (folder / HF_INDEX).is_file():
            return _read_shards(folder)
        if (folder / REFERENCE_WEIGHTS).is_file():
            return _read_torch_file(folder / REFERENCE_WEIGHTS)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the weights in {folder} cannot be read: {error}; copy or download them again") from error
    raise CheckpointError(f"{folder} holds no weights; expected {HF_WEIGHTS}, {PACKED_WEIGHTS} or {REFERENCE_WEIGHTS}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping


def _read_shards(folder: Path) -> dict[str, Tensor]:
    weight_map = _read_json(folder / HF_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{folder / HF_INDEX} has no table of weights and their files; copy or download it again")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{folder / HF_INDEX} names the shard {shard!r} outside its own folder; refused")
        state |= _read_safetensors(folder / shard)
    return state


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a torch zip file, with the unpickler that builds tensors and nothing else."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no torch zip archive ({path.stat().st_size} bytes); it is truncated or another file")
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        state = {} if compressed else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, runtime and key errors alike
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({first_line}); it is damaged or not a weights file"
        ) from error
    if compressed:
        raise CheckpointError(f"{path} has compressed entries, which torch never writes; refused")
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} does not hold a dictionary of tensors; it is not a weights file")
    return state


def _check_tensors(state: dict[str, Tensor], folder: Path) -> None:
    """Raise unless every tensor is a plain one of floats whose entries all lie in the file: views can promise terabytes."""
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not plain or tensor.dtype not in _DTYPES:
            is_mask = tensor.dtype == torch.bool and name.endswith(".attn.bias")
            if not (plain and is_mask):
                kind = f"{tensor.layout}, {tensor.dtype}, {tensor.device.type}"
                raise CheckpointError(f"{name} in {folder} is no plain tensor of floats ({kind}); the checkpoint is damaged")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{name} in {folder} claims {tensor.numel()} entries but holds fewer; the checkpoint is damaged")


def _check_shapes(state: dict[str, Tensor], expected: dict[str, torch.Size], folder: Path) -> None:
    """Raise unless exactly the expected tensors are there, in their shapes."""
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"the weights in {folder} do not fit their configuration: missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    for name, shape in expected.items():
        if state[name].shape != shape:
            found = tuple(state[name].shape)
            raise CheckpointError(f"{name} in {folder} has shape {found}, the configuration promises {tuple(shape)}")


def _check_finite(state: dict[str, Tensor], folder: Path) -> None:
    """Raise for values that are not finite, or not any more in the dtype asked for."""
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{name} in {folder} holds values that are not finite numbers in {tensor.dtype}; "
                "the checkpoint is damaged, or too large for that dtype"
            )


def _some(names: list[str], most: int = 6) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
