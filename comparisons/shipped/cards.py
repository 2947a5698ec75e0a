"""Cards: what a trained model is, how it was made, and what it can do, for programs (`card.json`) and people (`README.md`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sparse_lens.circuits import both_sides
from sparse_lens.circuits.scoring import logit_differences
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.circuit_sizes import HELDOUT_PAIRS
from sparse_lens.comparisons.pair import model_facts
from sparse_lens.data import load_tokenizer
from sparse_lens.files import new_file
from sparse_lens.hooks import load
from sparse_lens.models_shipped import CARD_FILE, shipped_models
from sparse_lens.results import Result, bootstrap_mean
from sparse_lens.tasks import available_tasks, get_task


def write_card(
    folder: Path,
    heldout: np.ndarray,
    *,
    about: str,
    command: str,
    data: str,
    more: Mapping[str, Any] | None = None,
    accuracies: Mapping[str, Result] | None = None,
) -> dict[str, Any]:
    """Measure the trained model in `folder` and write its card there, as JSON and as a page; returns the card.

    `heldout` are windows `[window pos+1]` of real files; `command` and `data` say in words how it was made. The loss is in nats
    per token and in bits per byte of the text that those windows hold.
    """
    bridge = load(folder)
    facts = model_facts(bridge, heldout)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    card: dict[str, Any] = {name: int(fact.value or 0) for name, fact in facts.items() if name != "loss"}
    card |= {"loss": facts["loss"].value, "loss_result": facts["loss"].to_json()}
    card["bits_per_byte"] = bits_per_byte(facts["loss"].value or math.nan, heldout, load_tokenizer(folder))
    card |= {"about": about, "command": command, "data": data} | dict(more or {})
    card |= {name: training[name] for name in ("tokens", "seconds", "versions")}
    card["seed"] = training["config"]["seed"]
    found = task_accuracies(bridge) if accuracies is None else accuracies
    card["task_accuracies"] = {task: accuracy.to_json() for task, accuracy in found.items()}
    with new_file(folder / CARD_FILE) as path:
        path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    with new_file(folder / "README.md") as path:
        path.write_text(_page(folder.name, card), encoding="utf-8")
    return card


def task_accuracies(bridge: Any) -> dict[str, Result]:
    """Two-way accuracy of a model on held-out templates of every task, on 256 pairs each."""
    found = {}
    for name in available_tasks():
        prompts = both_sides(get_task(name).sample(bridge.tokenizer, HELDOUT_PAIRS, seed=0, split="heldout"))
        right = logit_differences(bridge, prompts, []) > 0
        found[name] = bootstrap_mean(right.float().numpy(), null=0.5)
    return found


def bits_per_byte(nats_per_token: float, windows: np.ndarray, tokenizer: Tokenizer) -> float:
    """The same loss, spread over the bytes of the predicted tokens: comparable between tokenizers."""
    texts = tokenizer.decode_batch([window[1:].tolist() for window in windows], skip_special_tokens=True)
    n_bytes = sum(len(text.encode()) for text in texts)
    return nats_per_token / math.log(2) * windows[:, 1:].size / n_bytes


def _shown(name: str) -> str:
    """What `load` takes: the name of a shipped model, or the folder of any other."""
    return f'"{name}"' if name in shipped_models() else "FOLDER"


def _page(name: str, card: Mapping[str, Any]) -> str:
    """The card as a model card of the Hugging Face kind."""
    tasks = card["task_accuracies"]
    done = [task for task, accuracy in tasks.items() if (accuracy["value"] or 0) >= ACCURACY_GATE]
    rows = "\n".join(f"| {task} | {accuracy['value']:.3f} |" for task, accuracy in tasks.items() if accuracy["value"] is not None)
    return f"""---
library_name: transformer-lens
tags: [weight-sparse, interpretability, sparse_lens]
---

# {name}

{card["about"].capitalize()}. Load it with `sparse_lens.load({_shown(name)})`.

| what | value |
|---|---|
| loss on held-out real files | {card["loss"]:.3f} nats per token, {card["bits_per_byte"]:.3f} bits per byte |
| nonzero weights in matrices | {card["matrix_nonzeros"]:,} of {card["matrix_parameters"]:,} |
| tokens, seconds, seed of the training | {card["tokens"]:,}, {card["seconds"]:,.0f}, {card["seed"]} |

Made by `{card["command"]}`. {card["data"]}.

## Tasks

Two-way accuracy on held-out templates; {len(done)} of {len(tasks)} reach {ACCURACY_GATE:.0%}.

| task | accuracy |
|---|---|
{rows}
"""
