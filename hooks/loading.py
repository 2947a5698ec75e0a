"""`load`: a checkpoint in any supported format as a checked `TransformerBridge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import PreTrainedTokenizerFast

from sparse_lens.errors import CheckpointError, SparseLensError, UnknownNameError
from sparse_lens.hooks.adapter import ARCHITECTURE
from sparse_lens.models import CircuitGPTForCausalLM, load_checkpoint, load_sparse, read_tokenizer
from sparse_lens.models.downloads import HUB_ID, fetch_hub, fetch_released
from sparse_lens.models.released import RELEASED_MODELS, released_model
from sparse_lens.models_shipped import WINDOWS_FILE, read_windows

TOLERANCE = 1e-5


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    execution: str = "dense",
) -> TransformerBridge:
    """Load a model by name, folder or hub id, as a `TransformerBridge`.

    | `name_or_path` | what is loaded |
    |---|---|
    | a shipped name (`available_models()`) | a model of this package |
    | a folder | any format of `sparse_lens.models.checkpoints` |
    | a released name (`csp_yolo2`, `csp_sweep1_1x_3.7Mnonzero_afrac0.250`, `dense1_1x`) | fetched once, then from the cache |
    | `owner/name`, `owner/name@revision` | that repository of the Hugging Face hub |

    `dtype` converts the weights (default float32); weights of that dtype are mapped from their file, not copied. A tokenizer in
    the folder is attached, and its `add_bos_token` (False for every tokenizer of this package) becomes
    `bridge.cfg.default_prepend_bos`; windows that `sparse-lens train` has left there become `bridge.reference_windows`. No code
    from anywhere is run, and nothing is fetched for the first two kinds.

    With `execution="sparse"` the model holds and multiplies the nonzeros of its sparse matrices alone: for inference in float32 on
    the CPU, with every hook point (`sparse_lens.models.sparse_execution`); of a packed folder no two matrices are ever dense at a
    time.

    Raises `UnknownNameError` for a name that is none of these, `DownloadError` for what cannot be fetched, `CheckpointError` or
    `ConfigError` for a folder that does not hold a complete, finite, consistent model, or whose bridge does not reproduce the
    model's logits, `SparseLensError` for sparse execution on another device or in another dtype.
    """
    target, dtype = torch.device(device), dtype or torch.float32
    if execution not in ("dense", "sparse"):
        raise UnknownNameError("execution", str(execution), ["dense", "sparse"])
    if execution == "sparse" and (target.type != "cpu" or dtype != torch.float32):
        raise SparseLensError(f"sparse execution is in float32 on the CPU, asked for was {dtype} on {target}; load it so, or dense")
    folder = find_model(name_or_path)
    model = load_sparse(folder) if execution == "sparse" else load_checkpoint(folder, dtype=dtype)
    if target.type != "cpu":
        model = model.to(cast(Any, target))
    bridge = wrap(model, tokenizer=read_tokenizer(folder, model.config.vocab_size), name=model_name(name_or_path, folder))
    if (folder / WINDOWS_FILE).is_file():
        bridge.reference_windows = read_windows(folder / WINDOWS_FILE)["reference"]  # pyright: ignore[reportAttributeAccessIssue]
    return bridge


def available_models() -> list[str]:
    """Names of the models that come with the package, sorted."""
    return sorted(_shipped())


def find_model(name_or_path: str | Path) -> Path:
    """Folder of the model that `load` would load, fetched if that is what it takes; raises as `load` does."""
    if isinstance(name_or_path, str) and name_or_path in (shipped := _shipped()):
        return shipped[name_or_path]
    path = Path(name_or_path)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (RuntimeError, OSError, ValueError):  # no such home directory, a name too long, a null byte: no path at all
        exists = False
    if exists:
        return path
    name = name_or_path if isinstance(name_or_path, str) else ""  # a Path is meant as one
    if (released := released_model(name)) is not None:
        return fetch_released(released)
    if HUB_ID.fullmatch(name) and not Path(name).parent.exists():
        return fetch_hub(name)
    raise UnknownNameError("model", str(name_or_path), [*_shipped(), *RELEASED_MODELS])


def model_name(name_or_path: str | Path, folder: Path) -> str:
    """What a bridge calls its model: the hub id or the folder's name."""
    return name_or_path if isinstance(name_or_path, str) and HUB_ID.fullmatch(name_or_path) else folder.name


def wrap(
    model: CircuitGPTForCausalLM, *, tokenizer: PreTrainedTokenizerFast | None = None, name: str = "circuitgpt"
) -> TransformerBridge:
    """Bridge around a model in memory, checked on a small random batch; the model's modules are replaced in place.

    Raises `CheckpointError` if the bridge's logits differ from the model's by more than 1e-5 (relative above 1).
    """
    if any("_original_component" in name for name, _ in model.named_parameters()):
        raise SparseLensError("this model is inside a bridge already; use that bridge, or load the model again")
    tokens, training = _probe(model), model.training
    model.eval()  # dropout would make any two passes differ
    model.core.use_fast_kernels(False)  # the compiled ones take longer to be read from disk than this check takes
    try:
        expected = _logits(model.core, tokens)
        prepends_bos = bool(tokenizer.init_kwargs.get("add_bos_token", False)) if tokenizer is not None else False
        bridge = build_bridge_from_module(
            model, ARCHITECTURE, hf_config=model.config, tokenizer=tokenizer, device=model.device, model_name=name
        )
        bridge.cfg.default_prepend_bos = prepends_bos
        difference = float((_logits(bridge, tokens) - expected).abs().max())
    finally:
        model.core.use_fast_kernels()
        model.train(training)
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise CheckpointError(
            f"the bridge around {name!r} does not reproduce its logits: largest difference {difference:.3g}, "
            f"allowed {TOLERANCE:g}; please report it with the model's configuration"
        )
    return bridge


def _shipped() -> dict[str, Path]:
    from sparse_lens.models_shipped import shipped_models

    return shipped_models()


def _probe(model: CircuitGPTForCausalLM) -> Tensor:
    """A few random tokens, from a generator of their own: loading leaves the global random state alone."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    length = min(config.block_size, 4)
    return torch.randint(config.vocab_size, (1, length), generator=generator).to(model.device)


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens).float()
