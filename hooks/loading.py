"""`load`: a checkpoint in any supported format as a checked `TransformerBridge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import PreTrainedTokenizerFast

from sparse_lens.errors import CheckpointError, UnknownNameError
from sparse_lens.hooks.adapter import ARCHITECTURE
from sparse_lens.models import CircuitGPTForCausalLM, load_checkpoint, read_tokenizer

TOLERANCE = 1e-5


def load(name_or_path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> TransformerBridge:
    """Load a shipped model by name, or a model folder, as a `TransformerBridge`.

    `dtype` converts the weights (default float32). A tokenizer in the folder is attached, and its `add_bos_token`
    (False for every tokenizer of this package) becomes `bridge.cfg.default_prepend_bos`. Nothing is downloaded and no
    code from the folder is run.

    Raises `UnknownNameError` for a name that is neither, `CheckpointError` or `ConfigError` for a folder that does not
    hold a complete, finite, consistent model, or whose bridge does not reproduce the model's logits.
    """
    folder = find_model(name_or_path)
    model = load_checkpoint(folder, dtype=dtype or torch.float32).to(cast(Any, torch.device(device)))
    return wrap(model, tokenizer=read_tokenizer(folder, model.config.vocab_size), name=folder.name)


def available_models() -> list[str]:
    """Names of the models that come with the package, sorted."""
    return sorted(_shipped())


def find_model(name_or_path: str | Path) -> Path:
    """Folder of a shipped model or of a path; raises `UnknownNameError` if it is neither."""
    if isinstance(name_or_path, str) and name_or_path in (shipped := _shipped()):
        return shipped[name_or_path]
    path = Path(name_or_path)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (RuntimeError, OSError, ValueError):  # no such home directory, a name too long, a null byte: no path at all
        exists = False
    if not exists:
        raise UnknownNameError("model", str(name_or_path), _shipped())
    return path


def wrap(
    model: CircuitGPTForCausalLM, *, tokenizer: PreTrainedTokenizerFast | None = None, name: str = "circuitgpt"
) -> TransformerBridge:
    """Bridge around a model in memory, checked on a small random batch; the model's modules are replaced in place.

    Raises `CheckpointError` if the bridge's logits differ from the model's by more than 1e-5 (relative above 1).
    """
    tokens = _probe(model)
    expected = _logits(model.core, tokens)
    prepends_bos = bool(tokenizer.init_kwargs.get("add_bos_token", False)) if tokenizer is not None else False
    bridge = build_bridge_from_module(
        model, ARCHITECTURE, hf_config=model.config, tokenizer=tokenizer, device=model.device, model_name=name
    )
    bridge.cfg.default_prepend_bos = prepends_bos
    difference = float((_logits(bridge, tokens) - expected).abs().max())
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
    """Two rows of random tokens, from a generator of their own: loading leaves the global random state alone."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    length = min(config.block_size, 16)
    return torch.randint(config.vocab_size, (2, length), generator=generator).to(model.device)


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens).float()
