"""A trained model's folder: what is in it, how it is written, and how a finished one is told from an unfinished one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sparse_lens.data import save_tokenizer
from sparse_lens.errors import CheckpointError
from sparse_lens.files import replaced_files
from sparse_lens.models import CircuitGPTForCausalLM, load_checkpoint
from sparse_lens.models.config_files import HF_CONFIG
from sparse_lens.models.weight_files import HF_WEIGHTS
from sparse_lens.models_shipped import WINDOWS_FILE, write_windows

CHECKPOINTS, LOG_FILE, RECORD_FILE = "checkpoints", "log.jsonl", "training.json"
MODEL_FILES = (
    HF_CONFIG,
    HF_WEIGHTS,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    RECORD_FILE,
    LOG_FILE,
    "card.json",
    "README.md",
    "curves.svg",
    "corpus.json",
    "tensorboard",
    "wandb",
    WINDOWS_FILE,
    CHECKPOINTS,
)
"""What a trained model's folder may hold; a folder with anything else in it is left alone."""


def write_model(
    model: CircuitGPTForCausalLM, tokenizer: Tokenizer, record: dict[str, Any], windows: dict[str, np.ndarray], folder: Path
) -> None:
    """Weights in Hugging Face's format, tokenizer, record and windows, each renamed into its place when all are whole."""
    with replaced_files(folder, last=HF_WEIGHTS) as staging:
        model.float().save_pretrained(staging)
        save_tokenizer(tokenizer, staging)
        write_windows(staging / WINDOWS_FILE, windows["reference"], windows["heldout"])
        (staging / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def finished_record(folder: Path) -> dict[str, Any] | None:
    """The record of the finished run in `folder`, None without a model; raises `CheckpointError` for a model of other origin."""
    if not (folder / HF_WEIGHTS).is_file():
        return None
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if {"fingerprint", "config", "data", "history"} <= record.keys():
            return record
    except (OSError, ValueError, AttributeError):
        pass
    raise CheckpointError(f"{folder} holds a model that was not trained here (no whole {RECORD_FILE}); choose another folder")


def open_finished(folder: Path) -> CircuitGPTForCausalLM:
    """The model of a finished run."""
    return load_checkpoint(folder).eval()
