"""Reading and writing models in every supported format, strictly.

| files in the folder | format |
|---|---|
| `beeg_config.json`, `final_model.pt` | the reference's (openai/circuit_sparsity) |
| `config.json`, `model.safetensors` (or shards) | Hugging Face, with the core's names or the reference's |
| `config.json`, `pytorch_model.bin` (or `model.safetensors`) | the public replication's (jacobcd52/sparse_pretrain_public) |
| `config.json`, `model.packed.safetensors` | packed (`sparse_lens.models.packed`), as the shipped models |

No pickle is executed and nothing is allocated on the word of a configuration file alone. What a file lacks, has too much, or has in
another shape is an error: the reference loads with `strict=False`, which hides all three.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from sparse_lens.errors import CheckpointError
from sparse_lens.files import new_directory
from sparse_lens.models.config import REFERENCE_FIELDS
from sparse_lens.models.config_files import HF_CONFIG, REFERENCE_CONFIG, read_description
from sparse_lens.models.hf import CircuitGPTForCausalLM
from sparse_lens.models.keys import to_core_names, to_reference_names
from sparse_lens.models.packed import write_packed
from sparse_lens.models.weight_files import PACKED_WEIGHTS, REFERENCE_WEIGHTS, check_finite, read_weights


def load_checkpoint(path: str | Path, *, dtype: torch.dtype = torch.float32) -> CircuitGPTForCausalLM:
    """The model in the folder `path`, in evaluation mode, its weights converted to `dtype`.

    Weights of that dtype already are mapped from the file, not copied. Raises `CheckpointError` or `ConfigError` for anything
    missing, superfluous, wrongly shaped, not finite or unreadable.
    """
    folder = Path(path)
    description = read_description(folder)
    config = description.config
    state = to_core_names(read_weights(folder), config)
    with torch.device("meta"):
        model = CircuitGPTForCausalLM(config)
    shapes = {name: tensor.shape for name, tensor in model.core.state_dict().items()}
    check_shapes(state, shapes, description.omitted, folder)
    if config.tied_unembed:
        del state["lm_head.weight"]
    state = _own(state, dtype) | {name: torch.zeros(shapes[name], dtype=dtype) for name in description.omitted - state.keys()}
    check_finite(state, folder)
    if config.tied_unembed:
        state["lm_head.weight"] = state["wte.weight"]
    model.core.load_state_dict(state, strict=True, assign=True)
    if config.tied_unembed:
        model.core.lm_head.weight = model.core.wte.weight
    return model.eval()


def save_reference(model: CircuitGPTForCausalLM, path: str | Path) -> None:
    """Write the reference's folder format, `beeg_config.json` and `final_model.pt`."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.core.state_dict().items()}
    if model.config.n_experts is not None:
        raise CheckpointError("the reference has no mixture of experts: this model can be saved with save_pretrained only")
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


def check_shapes(state: dict[str, Tensor], expected: dict[str, torch.Size], omitted: frozenset[str], folder: Path) -> None:
    """Raise unless exactly the expected tensors are there, in their shapes; `omitted` ones may be missing."""
    missing, unexpected = sorted(expected.keys() - state.keys() - omitted), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"the weights in {folder} do not fit their configuration: missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name]:
            found = tuple(tensor.shape)
            raise CheckpointError(f"{name} in {folder} has shape {found}, the configuration promises {tuple(expected[name])}")
    present = sum(tensor.numel() for tensor in state.values())
    for name in omitted - state.keys():
        if expected[name].numel() > max(present, 1 << 20):
            raise CheckpointError(
                f"{folder}: {name}, which this format leaves out, would have {expected[name].numel():,} entries beside the "
                f"{present:,} of all weights; the configuration is damaged"
            )


def _own(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in `dtype`, contiguous, none sharing memory with another: copied where they are not so already."""
    owned: dict[str, Tensor] = {}
    taken: dict[int, list[tuple[int, int]]] = {}
    for name, tensor in state.items():
        own = tensor.to(dtype).contiguous()
        start = int(own.storage_offset()) * own.element_size()
        end = start + own.numel() * own.element_size()
        spans = taken.setdefault(own.untyped_storage().data_ptr(), [])
        if any(start < other_end and other_start < end for other_start, other_end in spans):
            own = own.clone()
        else:
            spans.append((start, end))
        owned[name] = own
    return owned


def _some(names: list[str], most: int = 6) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
