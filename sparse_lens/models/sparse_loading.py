"""Reading a checkpoint straight into sparse execution."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sparse_lens.errors import CheckpointError
from sparse_lens.kernels import CompressedRows, expand
from sparse_lens.models.checkpoints import check_shapes, load_checkpoint
from sparse_lens.models.config import CircuitGPTConfig
from sparse_lens.models.config_files import read_description
from sparse_lens.models.core import CircuitGPTCore
from sparse_lens.models.hf import CircuitGPTForCausalLM
from sparse_lens.models.keys import to_core_names
from sparse_lens.models.sparse_execution import SPARSE_ENOUGH, hold_rows, is_compressible, sparse_execution
from sparse_lens.models.weight_files import PACKED_WEIGHTS, check_finite, each_packed_weight


def load_sparse(path: str | Path, *, most: float = SPARSE_ENOUGH) -> CircuitGPTForCausalLM:
    """The model in the folder `path` in sparse execution, in evaluation mode; matrices of a density above `most` stay dense.

    From a packed folder the dense form of the others is never made. In the other formats the dense weights are mapped from their
    file while they are read: the operating system can drop them at any time, but counts them as the process's till then.
    Raises as `load_checkpoint` does.
    """
    folder = Path(path)
    if not (folder / PACKED_WEIGHTS).is_file():
        return sparse_execution(load_checkpoint(folder), most=most)
    description = read_description(folder)
    with torch.device("meta"):
        model = CircuitGPTForCausalLM(description.config)
    expected = {name: tensor.shape for name, tensor in model.core.state_dict().items()}
    found: dict[str, Tensor] = {}
    for stored, whole in each_packed_weight(folder, most):
        check_finite({stored: torch.from_numpy(whole.values) if isinstance(whole, CompressedRows) else whole}, folder)
        for name, part in _by_core_names(stored, whole, description.config, expected.keys()).items():
            if name in found:
                raise CheckpointError(f"the checkpoint holds {name!r} twice (again as {stored!r}); it is damaged")
            if expected.get(name) == part.shape:  # what does not fit is named below, with all that does not
                _place(model.core, name, part)
            found[name] = torch.empty(part.shape, device="meta")
    check_shapes(found, expected, description.omitted, folder)
    for name in description.omitted - found.keys():
        _place(model.core, name, torch.zeros(expected[name]))
    return sparse_execution(model.eval(), most=most)


def _by_core_names(
    stored: str, whole: Tensor | CompressedRows, config: CircuitGPTConfig, known: Container[str]
) -> Mapping[str, Tensor | CompressedRows]:
    """What is stored under a name, by the core's; by another format's name it may be several matrices, which are made dense."""
    if isinstance(whole, Tensor):
        return to_core_names({stored: whole}, config)
    if stored not in known:
        return to_core_names({stored: expand(whole)}, config)
    return dict.fromkeys(_TIED if config.tied_unembed and stored in _TIED else (stored,), whole)


_TIED = ("wte.weight", "lm_head.weight")


def _place(core: CircuitGPTCore, name: str, part: Tensor | CompressedRows) -> None:
    """Give a parameter of a model without memory its value."""
    tied = core.config.tied_unembed
    if tied and name == _TIED[1]:
        return  # comes with the embedding
    owner, _, kind = name.rpartition(".")
    layers = [core.get_submodule(owner), *([core.lm_head] if tied and name == _TIED[0] else [])]
    if isinstance(part, CompressedRows) and is_compressible(layers[0]):
        hold_rows(layers, part)
        return
    value = expand(part) if isinstance(part, CompressedRows) else part
    parameter = nn.Parameter(value.clone() if value._is_view() else value, requires_grad=False)  # not the rest of its storage
    for layer in layers:
        layer.register_parameter(kind, parameter)
