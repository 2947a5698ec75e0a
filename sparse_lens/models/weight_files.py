"""Reading the tensors of a model's folder, whatever the file, without executing or believing anything in it.

Tensors stay mapped to their file (private pages: an edit in memory never reaches it), so a model takes its file's size once.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_lens.errors import CheckpointError
from sparse_lens.kernels import CompressedRows
from sparse_lens.models.config_files import read_json
from sparse_lens.models.packed import each_packed, read_packed

PACKED_WEIGHTS = "model.packed.safetensors"
HF_WEIGHTS, HF_INDEX = "model.safetensors", "model.safetensors.index.json"
REFERENCE_WEIGHTS, TORCH_WEIGHTS = "final_model.pt", "pytorch_model.bin"

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor in the folder's weights file, plain ones of floats, by the names in the file.

    Raises `CheckpointError` for a file that is missing, unreadable or hostile, and for two files that both claim to be the weights.
    """
    path = _weights_file(folder)
    with _as_checkpoint_errors(folder):
        state = _READERS[path.name](path)
    for name, tensor in state.items():
        _check_tensor(name, tensor, folder)
    return state


def each_packed_weight(folder: Path, most: float) -> Iterator[tuple[str, Tensor | CompressedRows]]:
    """As `read_weights` of a packed folder, one tensor after the other, matrices of a density up to `most` as their nonzeros."""
    with _as_checkpoint_errors(folder):
        for name, tensor in each_packed(_weights_file(folder), most=most):
            if isinstance(tensor, Tensor):
                _check_tensor(name, tensor, folder)
            yield name, tensor


def _weights_file(folder: Path) -> Path:
    present = [name for name in _READERS if (folder / name).is_file()]
    if not present:
        expected = ", ".join(name for name in _READERS if name != HF_INDEX)
        raise CheckpointError(f"{folder} holds no weights; expected one of {expected}")
    if len(present) > 1:
        raise CheckpointError(f"{folder} holds several sets of weights ({', '.join(present)}); move all but the right one away")
    _refuse_link_outside(folder / present[0])
    return folder / present[0]


@contextmanager
def _as_checkpoint_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the weights in {folder} cannot be read: {error}; copy or download them again") from error


def check_finite(state: dict[str, Tensor], folder: Path) -> None:
    """Raise `CheckpointError` for values that are not finite, or not any more in the dtype asked for."""
    for name, tensor in state.items():
        if tensor.numel() and not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):  # one sweep, no second tensor
            raise CheckpointError(
                f"{name} in {folder} holds values that are not finite numbers in {tensor.dtype}; "
                "the checkpoint is damaged, or too large for that dtype"
            )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping


def _read_shards(path: Path) -> dict[str, Tensor]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path} has no table of weights and their files; copy or download it again")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{path} names the shard {shard!r} outside its own folder; refused")
        _refuse_link_outside(path.parent / shard)
        state |= _read_safetensors(path.parent / shard)
    return state


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a torch zip file, with the unpickler that builds tensors and nothing else."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no torch zip archive ({path.stat().st_size} bytes); it is truncated or another file")
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            if not compressed:
                _scan_pickles(archive, path)
        state = {} if compressed else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
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


_WRITTEN_BY_TORCH = re.compile(
    r"(collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch\.storage UntypedStorage)"
)
_MOST_PICKLE_BYTES = 1 << 26


def _scan_pickles(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise for a pickle that asks for more than a dictionary of tensors does: torch's unpickler allows things that take any
    amount of memory (`bytearray`) or time (tuples of tuples of the same tuple, hashed as a key)."""
    for entry in archive.infolist():
        if not entry.filename.endswith(".pkl"):
            continue
        if entry.file_size > _MOST_PICKLE_BYTES:
            raise CheckpointError(f"{path}: its table of tensors has {entry.file_size} bytes; it is not a weights file")
        tuples: set[object] = set()
        before, memoized = "", 0
        for code, argument, _ in pickletools.genops(archive.read(entry)):
            if code.name == "GLOBAL" and not _WRITTEN_BY_TORCH.fullmatch(str(argument)):
                raise CheckpointError(f"{path} asks for {argument!r}, which no table of tensors holds; refused")
            if code.name in ("STACK_GLOBAL", "INST", "OBJ", "BYTEARRAY8", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise CheckpointError(f"{path} uses the pickle instruction {code.name}, which torch does not write; refused")
            if code.name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                if before.startswith("TUPLE"):
                    tuples.add(memoized if code.name == "MEMOIZE" else argument)
                memoized += 1
            if code.name in ("BINGET", "LONG_BINGET", "GET") and argument in tuples:
                raise CheckpointError(f"{path} holds one tuple in several places, which torch does not write; refused")
            before = code.name


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    PACKED_WEIGHTS: read_packed,
    HF_WEIGHTS: _read_safetensors,
    HF_INDEX: _read_shards,
    REFERENCE_WEIGHTS: _read_torch_file,
    TORCH_WEIGHTS: _read_torch_file,
}


def _refuse_link_outside(path: Path) -> None:
    """Raise for a link that leaves the model's folder, unless it leads into the Hugging Face cache the folder is part of."""
    try:
        folder, target = path.parent.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise CheckpointError(f"{path} leads nowhere: {error}; copy the file there") from error
    blobs = folder.parent.parent / "blobs"
    if path.is_symlink() and not (target.is_relative_to(folder) or target.is_relative_to(blobs)):
        raise CheckpointError(f"{path} is a link to {target}, outside the model's folder; refused, copy the file there")


def _check_tensor(name: str, tensor: Tensor, folder: Path) -> None:
    """Raise unless a tensor is a plain one of floats whose entries all lie in the file: views can promise terabytes."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    is_mask = tensor.dtype in (torch.bool, *_DTYPES) and name.endswith((".attn.bias", ".attn.causal_mask"))
    if not plain or not (tensor.dtype in _DTYPES or is_mask):
        kind = f"{tensor.layout}, {tensor.dtype}, {tensor.device.type}"
        raise CheckpointError(f"{name} in {folder} is no plain tensor of floats ({kind}); the checkpoint is damaged")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{name} in {folder} claims {tensor.numel()} entries but holds fewer; the checkpoint is damaged")
