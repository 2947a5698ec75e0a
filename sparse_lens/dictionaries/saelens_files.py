"""Reading SAELens folders, strictly: `cfg.json` and `sae_weights.safetensors`, never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_lens.dictionaries.latent_activations import CHOOSING, LATENT_ACTIVATIONS
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.dictionaries.transcoder import ARCHITECTURES as TRANSCODERS
from sparse_lens.dictionaries.transcoder import TranscoderDictionary
from sparse_lens.errors import CheckpointError

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_MOST_JSON_BYTES = 1 << 22
_FLOATS = ("F64", "F32", "F16", "BF16")
_NORMALIZATION = "normalize_activations"
_PER_TOKEN = ("constant_norm_rescale", "layer_norm")


def load_saelens(
    folder: str | Path,
    *,
    hook: str | None = None,
    hook_out: str | None = None,
    name: str | None = None,
    activation_scale: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SAELensDictionary | TranscoderDictionary:
    """The SAE (standard, topk, abstopk, gated, jumprelu, so also BatchTopK and Matryoshka) or transcoder in a SAELens folder.

    `hook` overrides the hook name in the folder (of a transcoder the one that is read, `hook_out` the one that is written), `name`
    the name in tables. `activation_scale` is the factor on the
    activations that an SAE with `normalize_activations: expected_average_only_in` was trained with, and which SAELens
    does not save beside it: it is folded into the weights; give 1 if that was done already. sae-lens is not needed.
    Folders of SAELens before 6.0 are read too.

    Raises `CheckpointError` for anything missing, superfluous, wrongly shaped, not finite, unreadable or not
    supported.
    """
    path = Path(folder)
    config = _modern(_read_config(path))
    _check_supported(config, path, activation_scale)
    weights = {key: tensor.to(device, dtype) for key, tensor in _read_weights(path, config).items()}
    if config.get("rescale_acts_by_decoder_norm"):
        weights = _fold_decoder_norm(weights)
    if activation_scale is not None:
        weights |= {"W_enc": weights["W_enc"] * activation_scale}
        weights |= {key: weights[key] / activation_scale for key in ("W_dec", "b_dec")}
    hook = hook or config["metadata"].get("hook_name")
    if not isinstance(hook, str):
        raise CheckpointError(f"{path / CFG} has no metadata.hook_name; say which it is: load_saelens(..., hook=...)")
    if config["architecture"] in TRANSCODERS:
        written = hook_out or config["metadata"].get("hook_name_out")
        if not isinstance(written, str):
            raise CheckpointError(f"{path / CFG} has no metadata.hook_name_out; say which: load_saelens(..., hook_out=...)")
        return TranscoderDictionary(weights, hook, written, name, config["metadata"])
    return SAELensDictionary(
        architecture=config["architecture"],
        weights=weights,
        hook=hook,
        k=config["k"] if config["architecture"] in CHOOSING else None,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        label=name,
        metadata=config["metadata"],
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CFG
    if not folder.is_dir():
        raise CheckpointError(f"no SAE folder at {folder}; give a folder with {CFG} and {WEIGHTS} in it")
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CFG}; is it a folder that SAELens saved?")
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, too many for a configuration; is it the file?")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}; copy or download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not an object of configuration fields")
    return config


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the fields of SAELens 6; earlier, TopK was an activation and metadata stood beside."""
    config = dict(config)
    metadata = config.get("metadata")
    if isinstance(metadata, dict):
        return config | {"architecture": config.get("architecture", "standard")}
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    settings = config.get("activation_fn_kwargs")
    config.setdefault("architecture", "standard")
    if activation == "topk":
        config |= {"architecture": "topk", "k": settings.get("k") if isinstance(settings, dict) else None}
    elif activation != "relu":
        config["architecture"] = f"{config['architecture']} with activation {activation}"
    if isinstance(config.get(_NORMALIZATION), bool):
        config[_NORMALIZATION] = "expected_average_only_in" if config[_NORMALIZATION] else "none"
    hook = config.get("hook_name", config.get("hook_point"))
    config.setdefault("reshape_activations", "hook_z" if "hook_z" in str(hook) else "none")
    return config | {"metadata": {"hook_name": hook, "model_name": config.get("model_name")}}


def _check_supported(config: dict[str, Any], folder: Path, activation_scale: float | None) -> None:
    path, architecture = folder / CFG, config["architecture"]
    if architecture not in (*LATENT_ACTIVATIONS, *TRANSCODERS):
        raise CheckpointError(
            f"{path} has architecture {architecture!r}; supported: {', '.join((*LATENT_ACTIVATIONS, *TRANSCODERS))}"
        )
    further = dict.fromkeys(CHOOSING, ("k",)) | dict.fromkeys(TRANSCODERS, ("d_out",))
    for key in ("d_in", "d_sae", *further.get(architecture, ())):
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{path} has {key}={value!r}, it must be a whole number above 0; the file is damaged")
    if architecture in CHOOSING and config["k"] > config["d_sae"]:
        raise CheckpointError(f"{path} has k={config['k']} of d_sae={config['d_sae']} latents; the file is damaged")
    if (reshape := config.get("reshape_activations") or "none") != "none":
        raise CheckpointError(f"{path} has reshape_activations={reshape!r}; only SAEs on flat activations are supported")
    _check_normalization(config.get(_NORMALIZATION) or "none", architecture, path, activation_scale)


def _check_normalization(normalization: str, architecture: str, path: Path, activation_scale: float | None) -> None:
    seen = f"{path} has {_NORMALIZATION}={normalization!r}"
    if normalization != "none" and architecture in TRANSCODERS:
        raise CheckpointError(f"{seen}; transcoders are read with 'none' only: fold the factors into the weights")
    if normalization in _PER_TOKEN:
        raise CheckpointError(
            f"{seen}: its decoder needs each token's own norm, so latents alone do not give the reconstruction; "
            "train with 'none' or 'expected_average_only_in'"
        )
    if normalization not in ("none", "expected_average_only_in"):
        raise CheckpointError(f"{seen}; supported: none, expected_average_only_in")
    if normalization == "none" and activation_scale is not None:
        raise CheckpointError(f"{seen}, yet activation_scale={activation_scale} is given; leave it out")
    if normalization != "none" and (activation_scale is None or not 0 < activation_scale < float("inf")):
        raise CheckpointError(
            f"{seen}, and the folder does not hold that factor; pass activation_scale= (got {activation_scale}): "
            "sqrt(d_in) / mean activation norm in training (see the run's activation_scaler.json), or 1 if folded in"
        )


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a folder of this configuration must hold."""
    d_in, d_sae, architecture = config["d_in"], config["d_sae"], config["architecture"]
    if architecture in TRANSCODERS:
        d_out = config["d_out"]
        shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
        shapes |= {"threshold": (d_sae,)} if architecture.startswith("jumprelu") else {}
        return shapes | ({"W_skip": (d_out, d_in)} if "skip" in architecture else {})
    vectors = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
    latent = dict.fromkeys(vectors.get(architecture, ("b_enc",)), (d_sae,))
    return {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), **latent}


def _read_weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    path, expected = folder / WEIGHTS, _shapes(config)
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}, and no other weights are read; save the SAE with SAELens again")
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            _check_names(keys - {"scaling_factor"}, set(expected), path)
            for key, shape in expected.items():
                _check_shape(key, file.get_slice(key), shape, path)
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy or download it again") from error
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not bool((scaling == 1).all()):
        raise CheckpointError(f"{path} has a fine-tuned scaling_factor, not supported; fold it into the weights first")
    for key, tensor in tensors.items():
        if bad := int((~tensor.isfinite()).sum()):
            raise CheckpointError(f"{key} in {path} has {bad} values that are not finite numbers; the file is damaged")
    return tensors


def _check_names(seen: set[str], expected: set[str], path: Path) -> None:
    if seen != expected:
        missing, unexpected = ", ".join(sorted(expected - seen)), ", ".join(sorted(seen - expected))
        raise CheckpointError(
            f"{path} does not fit its {CFG}: missing {missing or 'none'}; unexpected {unexpected or 'none'}; "
            "check the architecture, or save the SAE again"
        )


def _check_shape(key: str, tensor: Any, shape: tuple[int, ...], path: Path) -> None:
    """Compare with the file's header, before anything is allocated."""
    if (seen := tuple(tensor.get_shape())) != shape:
        raise CheckpointError(f"{key} in {path} has shape {seen}, {CFG} promises {shape}; they do not belong together")
    if tensor.get_dtype() not in _FLOATS:
        raise CheckpointError(f"{key} in {path} is of type {tensor.get_dtype()}, not of floating-point numbers")


def _fold_decoder_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function with decoder rows of norm one, so that TopK selects, and `W_dec` writes, in latent units."""
    norm = weights["W_dec"].norm(dim=-1).clamp(min=1e-8)
    return weights | {
        "W_enc": weights["W_enc"] * norm,
        "b_enc": weights["b_enc"] * norm,
        "W_dec": weights["W_dec"] / norm[:, None],
    }
