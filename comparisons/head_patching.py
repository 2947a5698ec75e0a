"""Activation patching on a task: which head, and which position, carries the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.search.learning import frozen
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.hooks import patching
from sparse_lens.tasks import AnyTask, Task, TaskBatch, get_task


@dataclass(frozen=True, eq=False)
class PatchingTable:
    """Effects of copying a clean activation into the corrupt run: 0 changes nothing, 1 restores the clean answer.

    `heads [layer head]` patches a head's output at all positions; `attn [layer pos]` and `mlp [layer pos]` a sublayer's output
    at one position. `tokens` are those of the first prompt; the pairs all come from its template.
    """

    task: str
    heads: Float[Tensor, "layer head"]
    attn: Float[Tensor, "layer pos"]
    mlp: Float[Tensor, "layer pos"]
    tokens: list[str]
    corrupt_tokens: list[str]
    n: int
    clean_difference: float
    corrupt_difference: float

    def top(self, count: int = 8) -> list[dict[str, Any]]:
        """The strongest effects over all three kinds, as rows."""
        rows = [
            {"component": f"head {layer}.{head}", "position": "all", "token": "", "effect": float(self.heads[layer, head])}
            for layer, head in np.ndindex(*self.heads.shape)
        ]
        for kind, effects in (("attention", self.attn), ("MLP", self.mlp)):
            rows += [
                {
                    "component": f"{kind} {layer}",
                    "position": int(pos),
                    "token": self.tokens[pos],
                    "effect": float(effects[layer, pos]),
                }
                for layer, pos in np.ndindex(*effects.shape)
            ]
        return sorted(rows, key=lambda row: -abs(row["effect"]))[:count]

    def to_plain(self) -> dict[str, Any]:
        """JSON values, as the report draws them."""
        return {
            "metric": "share of the clean logit difference restored",
            "n": self.n,
            "clean_difference": self.clean_difference,
            "corrupt_difference": self.corrupt_difference,
            "rows": self.top(),
            "heads": self.heads.tolist(),
            "attn_positions": self.attn.tolist(),
            "mlp_positions": self.mlp.tolist(),
            "tokens": self.tokens,
            "corrupt_tokens": self.corrupt_tokens,
        }


def patch_task(bridge: Any, task: str | AnyTask, *, n_pairs: int = 16, seed: int = 0) -> PatchingTable:
    """Patch every head, and attention and MLP output at every position, with `sparse_lens.hooks.patching`.

    Uses `n_pairs` pairs (or as many as there are) of one held-out template that differ at the same positions, so that a
    position means the same in all of them. Raises `ConfigError` for fewer than one pair.
    """
    if n_pairs < 1:
        raise ConfigError(f"n_pairs must be at least 1, got {n_pairs}")
    task = get_task(task) if isinstance(task, str) else task
    batch = pairs_of_one_layout(task, bridge.tokenizer, n_pairs, seed=seed)
    clean, corrupt = torch.from_numpy(batch.clean), torch.from_numpy(batch.corrupt)
    with torch.no_grad(), frozen(bridge):
        clean_logits, cache = bridge.run_with_cache(clean)
        corrupt_logits = bridge(corrupt)
        high, low = (float(_difference(logits, batch).mean()) for logits in (clean_logits, corrupt_logits))
        if high - low < 1e-3:
            raise DataError(
                f"task {task.name!r}: clean and corrupt prompts give the model the same answer; there is nothing to restore"
            )

        def restored(logits: Tensor) -> Tensor:
            return (_difference(logits, batch).mean() - low) / (high - low)

        heads = patching.get_act_patch_attn_head_out_all_pos(bridge, corrupt, cache, restored, progress=False)
        attn = patching.get_act_patch_attn_out(bridge, corrupt, cache, restored, progress=False)
        mlp = patching.get_act_patch_mlp_out(bridge, corrupt, cache, restored, progress=False)
    return PatchingTable(
        task=task.name,
        heads=heads.cpu(),
        attn=attn.cpu(),
        mlp=mlp.cpu(),
        tokens=_texts(bridge, batch.clean[0]),
        corrupt_tokens=_texts(bridge, batch.corrupt[0]),
        n=len(batch.clean),
        clean_difference=high,
        corrupt_difference=low,
    )


def pairs_of_one_layout(task: AnyTask, tokenizer: Any, n_pairs: int, *, seed: int) -> TaskBatch:
    """Pairs of the task's first held-out template, of the most frequent length and places where clean and corrupt differ."""
    single = replace(task, heldout=task.heldout[:1]) if isinstance(task, Task) else task
    batch = single.sample(tokenizer, 8 * n_pairs, seed=seed, split="heldout")
    layouts: dict[tuple[int, ...], list[int]] = {}
    for row, differ in enumerate(batch.clean != batch.corrupt):
        layouts.setdefault((int(batch.length[row]), *np.flatnonzero(differ).tolist()), []).append(row)
    rows = max(layouts.values(), key=len)[:n_pairs]
    length = int(batch.length[rows[0]])
    return TaskBatch(
        clean=batch.clean[rows, :length],
        corrupt=batch.corrupt[rows, :length],
        clean_fork=batch.clean_fork[rows, :length],
        corrupt_fork=batch.corrupt_fork[rows, :length],
        length=batch.length[rows],
        target=batch.target[rows],
        distractor=batch.distractor[rows],
        pairs=tuple(batch.pairs[row] for row in rows),
    )


def _difference(logits: Tensor, batch: TaskBatch) -> Tensor:
    """Target's logit minus the distractor's at the last position."""
    row = torch.arange(len(batch.target))
    last = logits[:, -1]
    return last[row, torch.from_numpy(batch.target)] - last[row, torch.from_numpy(batch.distractor)]


def _texts(bridge: Any, ids: np.ndarray) -> list[str]:
    return [bridge.tokenizer.decode([int(token)]) for token in ids]
