"""The released weight-sparse models, by name: what they are and what is known of them before they are fetched.

Names, layout and sizes after openai/circuit_sparsity (README, `circuit_sparsity/viz.py`); parameter counts are computed from the
published file sizes and shapes. The list may be shorter than the store: any name of the same pattern can be asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RELEASED_NAME = re.compile(r"csp_yolo\d+|csp_sweep\d+_\d+x_[\d.]+Mnonzero_afrac[\d.]+|dense\d+_\d+x|csp_bridges?\d+")

_ALIASES = {"csp_bridge1": "csp_bridges1", "csp_bridge2": "csp_bridges2"}
"""Spellings of the released README for folders of another name."""


@dataclass(frozen=True)
class ReleasedModel:
    """What is known of a released model; `parameters` counts trained weights (the logit bias, a buffer there, is left out)."""

    name: str
    about: str
    parameters: int | None = None
    nonzeros: float | None = None


def _catalogue() -> list[ReleasedModel]:
    models = [
        ReleasedModel("csp_yolo1", "12 layers, d_model 1024, 128 heads of 8, bigram table", 160_568_320),
        ReleasedModel(
            "csp_yolo2", "8 layers, d_model 2048, 128 heads of 16, sink, bigram table, 32 concatenated positions", 419_122_688
        ),
        *(ReleasedModel(f"dense1_{width}x", "weight-dense, 4 layers") for width in (1, 2, 4)),
        *(ReleasedModel(f"csp_bridges{n}", "couplings to a dense model; its files were found empty or damaged") for n in (1, 2)),
    ]
    grid = {
        1: ((0.9, 1.9, 3.7, 7.4), ("0.062", "0.125", "0.250", "0.500", "1.000")),
        2: ((0.9, 1.9, 3.7, 7.4, 14.8), ("0.062", "0.125", "0.250", "0.500", "1.000")),
        4: ((3.7, 7.4, 14.8), ("0.250", "0.500")),
        8: ((3.7, 7.4, 14.8), ("0.250", "0.500")),
        16: ((7.4,), ("0.125",)),
    }
    for width, (millions, fractions) in grid.items():
        for nonzeros in millions:
            for fraction in fractions:
                name = f"csp_sweep1_{width}x_{nonzeros}Mnonzero_afrac{fraction}"
                about = f"8 layers, d_model {256 * width}, {nonzeros} M nonzero weights, activations kept {float(fraction):g}"
                models.append(ReleasedModel(name, about, nonzeros=nonzeros * 1e6))
    return models


RELEASED_MODELS = {model.name: model for model in _catalogue()}


def released_model(name: str) -> ReleasedModel | None:
    """The released model of that name, None if the name is not one's."""
    name = _ALIASES.get(name, name)
    if name in RELEASED_MODELS:
        return RELEASED_MODELS[name]
    return ReleasedModel(name, "not in this package's list") if RELEASED_NAME.fullmatch(name) else None
