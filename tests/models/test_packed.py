"""The packed format: what comes back is the fp16 rounding of what went in, and a damaged file is a `CheckpointError`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparse_lens.errors import CheckpointError
from sparse_lens.models.packed import read_packed, write_packed


def random_matrix(rows: int, columns: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    return values * (torch.rand(rows, columns, generator=generator) < density)


def write_parts(path: Path, tensors: dict[str, Tensor], shapes: object) -> Path:
    """A packed file from its raw parts, to be damaged at will."""
    save_file(tensors, path, metadata={"format": "sparse_lens-packed-1", "shapes": json.dumps(shapes)})
    return path


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(0, 99))
def test_matrices_come_back(tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, density: float, seed: int) -> None:
    """Any shape and density, the mask's last byte full or not: the values are the fp16 rounding, as float32."""
    path = tmp_path_factory.mktemp("packed") / "model.packed.safetensors"
    weight = random_matrix(rows, columns, density, seed)
    write_packed(path, {"w": weight})
    back = read_packed(path)
    assert back.keys() == {"w"}
    assert back["w"].dtype == torch.float32
    assert torch.equal(back["w"], weight.half().float())


def test_only_sparse_matrices_are_packed(tmp_path: Path) -> None:
    """Below one half a matrix is a mask and its nonzeros; denser ones and vectors are stored whole."""
    path = tmp_path / "model.packed.safetensors"
    state = {"sparse": random_matrix(64, 64, 0.05), "dense": random_matrix(64, 64, 0.9), "bias": torch.zeros(64)}
    write_packed(path, state)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"sparse::bits", "sparse::values", "dense", "bias"}
        assert file.get_tensor("sparse::bits").numel() == 64 * 64 // 8
        assert file.get_tensor("sparse::values").numel() == int((state["sparse"] != 0).sum())
    assert all(torch.equal(read_packed(path)[name], state[name].half().float()) for name in state)


BITS, VALUES = torch.tensor([0b10100000], dtype=torch.uint8), torch.ones(2, dtype=torch.float16)


@pytest.mark.parametrize(
    ("tensors", "shapes", "message"),
    [
        ({"w::bits": BITS}, {"w": [2, 3]}, "'w' has a mask but no values or shape"),
        ({"w::bits": BITS, "w::values": VALUES}, {}, "'w' has a mask but no values or shape"),
        ({"w::bits": BITS, "w::values": VALUES}, {"w": [4, 3]}, r"has 1 bytes, its shape \[4, 3\] needs 2"),
        ({"w::bits": BITS.float(), "w::values": VALUES}, {"w": [2, 3]}, "the mask of 'w'"),
        ({"w::bits": BITS, "w::values": VALUES[:1]}, {"w": [2, 3]}, "1 values for a mask of 2"),
        ({"w::bits": BITS, "w::values": VALUES}, {"w": [2, -3]}, r"claims the shape \[2, -3\]"),
        ({"w::bits": BITS, "w::values": VALUES}, {"w": [1 << 20, 1 << 20]}, "claims the shape"),
        ({"w::bits": BITS, "w::values": VALUES}, {"w": ["2", 3]}, "claims the shape"),
    ],
    ids=["no values", "no shape", "short mask", "mask of floats", "few values", "negative", "absurd", "text"],
)
def test_damaged_parts(tmp_path: Path, tensors: dict[str, Tensor], shapes: dict[str, object], message: str) -> None:
    """Mask, values and shape must agree; the error names the file and the tensor, and nothing large is allocated."""
    path = write_parts(tmp_path / "model.packed.safetensors", tensors, shapes)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_packed(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("shapes", [["w"], {"w": 6}, "w", 3])
def test_shapes_of_another_kind(tmp_path: Path, shapes: object) -> None:
    """Valid JSON that is no table of shapes."""
    path = write_parts(tmp_path / "model.packed.safetensors", {"w::bits": BITS, "w::values": VALUES}, shapes)
    with pytest.raises(CheckpointError):
        read_packed(path)
