"""Packed safetensors: fp16 values, and for sparse matrices a bit mask with only the nonzero values.

For a tensor `name` of density below one half the file holds `name::bits` (uint8, the mask in row-major order, eight entries a
byte) and `name::values` (fp16, the nonzeros in the same order); any other tensor is stored whole under its own name. Shapes are
in the file's metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparse_lens.errors import CheckpointError
from sparse_lens.kernels import CompressedRows, rows_from_mask

_LARGEST_ENTRIES = 1 << 34


def write_packed(path: Path, state: dict[str, Tensor]) -> None:
    """Write `state` to `path`, rounding every value to fp16."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in state.items():
        half = tensor.detach().to("cpu", torch.float16).contiguous()
        nonzero = half != 0
        if half.ndim == 2 and int(nonzero.sum()) * 2 < half.numel():
            tensors[f"{name}::bits"] = torch.from_numpy(np.packbits(nonzero.view(-1).numpy()))
            tensors[f"{name}::values"] = half[nonzero]
            shapes[name] = list(half.shape)
        else:
            tensors[name] = half
    save_file(tensors, path, metadata={"format": "sparse_lens-packed-1", "shapes": json.dumps(shapes)})


def read_packed(path: Path) -> dict[str, Tensor]:
    """The tensors of a packed file, as float32. Raises `CheckpointError` where mask, values and shape disagree."""
    return {name: cast(Tensor, tensor) for name, tensor in each_packed(path)}


def each_packed(path: Path, *, most: float = 0.0) -> Iterator[tuple[str, Tensor | CompressedRows]]:
    """As `read_packed`, one tensor after the other, masked matrices of a density up to `most` as their nonzeros."""
    with safe_open(path, framework="pt") as file:
        shapes = _shapes(path, file.metadata() or {})
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            name, _, part = key.partition("::")
            if part == "bits":
                if f"{name}::values" not in file.keys() or name not in shapes:  # noqa: SIM118
                    raise CheckpointError(f"{path}: {name!r} has a mask but no values or shape; the file is damaged")
                bits, values = file.get_tensor(key), file.get_tensor(f"{name}::values")
                shape = shapes[name]
                _check_mask(path, name, shape, bits)
                few = len(shape) == 2 and values.ndim == 1 and 0 < len(values) <= most * math.prod(shape)
                yield name, (_compressed if few else _unpack)(path, name, shape, bits, values)
            elif not part:
                yield name, file.get_tensor(key).float()


def _shapes(path: Path, metadata: dict[str, str]) -> dict[str, list[int]]:
    shapes = json.loads(metadata.get("shapes", "{}"))
    if not isinstance(shapes, dict):
        raise CheckpointError(f"{path}: its table of shapes is a {type(shapes).__name__}; the file is damaged")
    for name, shape in shapes.items():
        whole = isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape)
        if not whole or math.prod(shape) > _LARGEST_ENTRIES:
            raise CheckpointError(f"{path}: {name!r} claims the shape {shape}; the file is damaged")
    return shapes


def _check_mask(path: Path, name: str, shape: list[int], bits: Tensor) -> None:
    needed = (math.prod(shape) + 7) // 8
    if bits.dtype != torch.uint8 or bits.ndim != 1 or bits.numel() != needed:
        raise CheckpointError(f"{path}: the mask of {name!r} has {bits.numel()} bytes, its shape {shape} needs {needed}")


def _unpack(path: Path, name: str, shape: list[int], bits: Tensor, values: Tensor) -> Tensor:
    entries = math.prod(shape)
    mask = torch.from_numpy(np.unpackbits(bits.numpy(), count=entries).astype(bool))
    if int(mask.sum()) != values.numel():
        raise CheckpointError(f"{path}: {name!r} has {values.numel()} values for a mask of {int(mask.sum())}; the file is damaged")
    flat = torch.zeros(entries)
    flat[mask] = values.float()
    return flat.view(shape)


def _compressed(path: Path, name: str, shape: list[int], bits: Tensor, values: Tensor) -> CompressedRows:
    rows = rows_from_mask(bits.numpy(), values.float().numpy(), shape[0], shape[1])
    if rows is None:
        raise CheckpointError(f"{path}: {name!r} has {values.numel()} values for a mask of another number; the file is damaged")
    return rows
