"""The models that come with the package: one folder per pair, with its models, SAEs, windows and card.

A pair's folder holds `pair.json` (the names of its parts), `windows.safetensors` and one folder per model and dictionary; any
folder of that form can be compared (`sparse-lens compare --pair FOLDER`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparse_lens.errors import CheckpointError, UnknownNameError

DEFAULT_PAIR = "python"
PAIR_FILE, WINDOWS_FILE, CARD_FILE, CORPUS_FILE = "pair.json", "windows.safetensors", "card.json", "corpus.json"


def shipped_pairs() -> dict[str, Path]:
    """Folders of the shipped pairs by name."""
    root = Path(__file__).parent
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{PAIR_FILE}"))}


def shipped_models() -> dict[str, Path]:
    """Folders of the shipped models by name, over all pairs."""
    return {path.parent.name: path.parent for pair in shipped_pairs().values() for path in sorted(pair.glob("*/config.json"))}


def address_of(folder: Path) -> str:
    """The name of a shipped pair's or model's folder, of any other the absolute path.

    By its name it is the same wherever the package is installed: on another machine, or after it was installed anew.
    """
    names = {path: name for name, path in (shipped_pairs() | shipped_models()).items()}
    return names.get(folder.absolute(), str(folder.absolute()))


def folder_at(address: str) -> Path:
    """The folder of a shipped model by name, or any other by its path, as `address_of` gives it."""
    return shipped_models().get(address, Path(address))


def describe_models() -> list[dict[str, Any]]:
    """One object per shipped model, from its card: `name`, `shipped`, `pair`, `parameters`, `nonzeros`, `loss` (nats a token).

    `matrix_nonzeros` leave out the bigram table, biases and gains.
    """
    described = []
    for name, folder in shipped_models().items():
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        facts = {field: card[field] for field in ("parameters", "nonzeros", "matrix_nonzeros", "loss", "about")}
        described.append({"name": name, "shipped": True, "pair": folder.parent.name} | facts)
    return described


def find_pair(name_or_path: str | Path) -> Path:
    """Folder of a shipped pair by name, or of any folder with a `pair.json`; raises `UnknownNameError` otherwise."""
    shipped = shipped_pairs()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    if not (path / PAIR_FILE).is_file():
        raise UnknownNameError("pair (and no folder with a pair.json)", str(name_or_path), shipped)
    return path


def tokenizer_folder(pair: str | Path = DEFAULT_PAIR) -> Path:
    """A folder with the tokenizer of a pair's models."""
    return next(find_pair(pair).glob("*/tokenizer.json")).parent


def pair_corpus(name_or_path: str | Path) -> dict[str, Any]:
    """The corpus manifest of a pair (by name or folder), or of a manifest file; raises `CheckpointError` if it is none."""
    path = Path(name_or_path)
    path = path if path.is_file() else find_pair(name_or_path) / CORPUS_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a corpus' manifest: {error}") from error
    if not isinstance(manifest, dict) or not {"config", "config_hash", "files", "sources", "tokens"} <= manifest.keys():
        raise CheckpointError(f"{path} is no manifest of a corpus; give the corpus.json of a pair or the manifest.json of a corpus")
    return manifest


def pair_windows(pair: str | Path = DEFAULT_PAIR) -> dict[str, np.ndarray]:
    """Token windows `[window pos]` of a pair: `reference` (training distribution) and `heldout` (real files not trained on)."""
    return read_windows(find_pair(pair) / WINDOWS_FILE)


def read_windows(path: Path) -> dict[str, np.ndarray]:
    """The windows of a file that a pair or a trained model has; raises `CheckpointError` if it is not whole."""
    try:
        windows = {name: array.astype(np.int64) for name, array in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; make them again") from error
    for name in ("reference", "heldout"):
        if name not in windows or windows[name].ndim != 2 or windows[name].min() < 0:
            raise CheckpointError(f"{path} has no usable windows {name!r}, [window, position]; make them again")
    return windows


def write_windows(path: Path, reference: np.ndarray, heldout: np.ndarray) -> None:
    """Write windows `[window pos]` and `[window pos+1]` to a file that `read_windows` reads."""
    save_file({"reference": reference.astype(np.int32), "heldout": heldout.astype(np.int32)}, str(path))


def reference_windows() -> tuple[np.ndarray, dict[str, int]]:
    """The default pair's reference windows and the vocabulary (token to id) that they are written in."""
    tokenizer = next(find_pair(DEFAULT_PAIR).glob("*/tokenizer.json"))
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary = dict(content["model"]["vocab"]) | {token["content"]: token["id"] for token in content["added_tokens"]}
    return pair_windows(DEFAULT_PAIR)["reference"], vocabulary
