"""`load`: a checkpoint in any supported format as a checked `TransformerBridge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import PreTrainedTokenizerFast

from sparse_lens.errors import CheckpointError, UnknownNameError
from sparse_lens.hooks.adapter import ARCHITECTURE
from sparse_lens.models import CircuitGPTForCausalLM, load_checkpoint

END_OF_TEXT = "<|endoftext|>"
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


def read_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast | None:
    """The tokenizer in `folder`, None without a `tokenizer.json`; `<|endoftext|>` serves as eos, bos and pad.

    Raises `CheckpointError` if the file is unreadable, has ids the model does not know, or lacks an end-of-text token.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    settings = _tokenizer_settings(folder)
    try:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(path),
            padding_side="right",
            clean_up_tokenization_spaces=False,
            add_bos_token=bool(settings.get("add_bos_token", False)),
        )
    except Exception as error:  # the Rust side raises bare exceptions
        raise CheckpointError(f"{path} is not a readable tokenizer: {error}; copy it again") from error
    vocabulary = tokenizer.get_vocab()
    if vocabulary and max(vocabulary.values()) >= vocab_size:
        raise CheckpointError(
            f"{path} has token ids up to {max(vocabulary.values())}, the model knows {vocab_size}; "
            "tokenizer and weights do not belong together"
        )
    end = _text(settings.get("eos_token")) or END_OF_TEXT
    if end not in vocabulary:
        raise CheckpointError(f"{path} has no token {end!r}, which ends a text; name another as eos_token in tokenizer_config.json")
    # bos stays unset: with one, TransformerLens would build the tokenizer anew from a name, over the network.
    tokenizer.eos_token = tokenizer.pad_token = end
    return tokenizer


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _text(token: Any) -> str | None:
    """A special token's text, written plainly or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


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
