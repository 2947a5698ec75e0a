"""Names of trained dictionaries, from what their folder says of the training: two seeds, or two kinds, must not share a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "transcoder", "skip_transcoder")
"""What `metadata.training_architecture` may say: SAELens' names, and those of our own training."""


def training_record(config: Any) -> dict[str, Any]:
    """What a training adds to the metadata of its folder, from a configuration with `k`, `seed` and, of SAEs, `frozen_decoder`."""
    return {"k": config.k, "seed": config.seed, "frozen_decoder": getattr(config, "frozen_decoder", False)}


def trained_name(metadata: Mapping[str, Any], n_latents: int) -> str | None:
    """`frozen_topk1024k16s2` of the frozen TopK SAE of seed 2; None where the metadata of a folder do not say it all.

    Metadata come from outside: only known kinds and whole numbers get into a name.
    """
    kind, numbers = metadata.get("training_architecture"), [metadata.get(key) for key in ("k", "seed")]
    if kind not in KINDS or not all(type(number) is int for number in numbers):
        return None
    return f"{'frozen_' if metadata.get('frozen_decoder') is True else ''}{kind}{n_latents}k{numbers[0]}s{numbers[1]}"
