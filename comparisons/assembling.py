"""`assemble_pair`: trained models, SAEs, windows and cards in one folder that `compare` opens; so the shipped pair was made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sparse_lens.comparisons.pair import ROLES, model_facts
from sparse_lens.data import Document, TokenData, encode_documents, rebuild_documents
from sparse_lens.errors import DataError
from sparse_lens.files import new_directory
from sparse_lens.hooks import load
from sparse_lens.models_shipped import CARD_FILE, PAIR_FILE, WINDOWS_FILE

_WINDOWS = 256


def assemble_pair(
    models: Mapping[str, Path],
    data: TokenData,
    folder: str | Path,
    *,
    dictionaries: Mapping[str, Path],
    tasks: Sequence[str],
    about: Mapping[str, str],
    commands: Mapping[str, str],
    source: str = "stdlib",
) -> None:
    """Copy `models` (by role), `dictionaries` (by name) and windows of real text of one `source` into `folder`, and write the cards.

    Only windows of `source` are copied, since they are published with the models: choose one whose licence allows it. Real text
    makes up half of the reference windows, generated programs the rest, as in training.
    """
    if missing := [role for role in ROLES if role not in models]:
        raise DataError(f"a pair needs models for {', '.join(ROLES)}; {', '.join(missing)} missing")
    windows = pair_source_windows(data, source)
    with new_directory(folder) as staging:
        for role in ROLES:
            target = staging / models[role].name
            shutil.copytree(models[role], target)
            _write_card(target, windows["heldout"], data, about[role], commands[role])
        for name, path in dictionaries.items():
            shutil.copytree(path, staging / name)
        save_file({name: array.astype(np.int32) for name, array in windows.items()}, str(staging / WINDOWS_FILE))
        record: dict[str, Any] = {"format": 1} | {role: models[role].name for role in ROLES}
        record |= {"dictionaries": list(dictionaries), "tasks": list(tasks), "windows_source": source}
        (staging / "corpus.json").write_text(json.dumps(_public_manifest(data.manifest), indent=1) + "\n", encoding="utf-8")
        (staging / PAIR_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _public_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The corpus' manifest without this machine's folders: sources are known by name, files by path below them and hash."""

    def without_paths(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in source.items() if key != "path"} for source in sources]

    config = manifest["config"] | {"sources": without_paths(manifest["config"]["sources"])}
    return {**manifest, "sources": without_paths(manifest["sources"]), "config": config}


def pair_source_windows(data: TokenData, source: str, *, context: int = 128) -> dict[str, np.ndarray]:
    """`reference [window pos]` and `heldout [window pos+1]` windows, their real part from one source of the corpus."""
    documents = rebuild_documents(data.manifest)
    real = {split: _tokens(data, [d for d in documents[split] if d.source == source]) for split in ("train", "valid")}
    half = _WINDOWS // 2
    generated = data.validation_windows(context, half, split="valid_generated")
    reference = np.concatenate([_spread(real["train"], half, context + 1), generated])[:, :context]
    return {"reference": reference, "heldout": _spread(real["valid"], _WINDOWS, context + 1)}


def _tokens(data: TokenData, documents: Sequence[Document]) -> np.ndarray:
    if not documents:
        raise DataError("the corpus has no documents of that source; name one of its manifest's sources")
    return np.concatenate(encode_documents(data.tokenizer, [document.text for document in documents]))


def _spread(tokens: np.ndarray, n_windows: int, length: int) -> np.ndarray:
    """`n_windows` windows, evenly spaced."""
    starts = np.linspace(0, len(tokens) - length, n_windows).astype(np.int64)
    return tokens[starts[:, None] + np.arange(length)].astype(np.int64)


def _write_card(folder: Path, heldout: np.ndarray, data: TokenData, about: str, command: str) -> None:
    bridge = load(folder)
    facts = model_facts(bridge, heldout)
    on_all = model_facts(bridge, data.validation_windows(heldout.shape[1] - 1, 2 * _WINDOWS))["loss"]
    card = {name: int(fact.value or 0) for name, fact in facts.items() if name != "loss"}
    card |= {"loss": facts["loss"].value, "loss_result": facts["loss"].to_json(), "loss_on_all_sources": on_all.to_json()}
    card |= {"about": about, "command": command}
    (folder / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
