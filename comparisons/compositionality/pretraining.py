"""The second finding of arXiv:2301.10884: models trained on Python first are more compositional than those of the tasks alone.

Published, over 72 masks an arm: `d_abl` -.451 against -.259, both criteria met in 78 % against 51 %, .053 of the weights kept
against .081. A model of the tasks alone is one that was trained on `subroutine_texts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_lens.comparisons.compositionality.measuring import compositionality_columns
from sparse_lens.comparisons.side_by_side import difference
from sparse_lens.hooks import load
from sparse_lens.results import Result

COMPARED = ("d_sub", "d_abl", "score", "compositional", "kept_share")
"""What is subtracted."""


def pretraining_effect(
    pretrained: str | Path, alone: str | Path, task_a: str = "quote", task_b: str = "bracket", **options: Any
) -> dict[str, Result]:
    """`structural_compositionality` of two models, by folder or name: trained on Python first, and trained on the tasks alone.

    `pretrained_…` and `alone_…` are the results of each, `difference_…` the first less the second (below 0 for `d_abl` is the
    published direction); its bounds are the extremes over masks, and it is one pair of models, so no interval over trainings.
    `options` are those of the measure. Raises as it does, and what `load` raises.
    """
    columns = {"pretrained": load(pretrained), "alone": load(alone)}
    table = compositionality_columns(columns, task_a, task_b, **options)
    found = {f"{arm}_{name}": result for arm, results in table.items() for name, result in results.items()}
    return found | {f"difference_{name}": difference(table["pretrained"][name], table["alone"][name]) for name in COMPARED}
