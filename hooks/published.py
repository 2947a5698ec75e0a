"""`check_published`: the first contact with a released model, figure by figure against what is published of it.

Sources: openai/circuit_sparsity (README; `circuit_sparsity/viz.py` for the layout of the store;
`circuit_sparsity/examples/bracket_counting_example.py` for the bracket prompt, which csp_yolo2 answers with one bracket).
"""

from __future__ import annotations

import json
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import CheckpointError, UnknownNameError
from sparse_lens.hooks.loading import load
from sparse_lens.hooks.sparsity import sparsity_report
from sparse_lens.models.downloads import DownloadError, fetch
from sparse_lens.models.released import RELEASED_MODELS, ReleasedModel, released_model
from sparse_lens.models.torch_files import is_plain_tensor, read_plain

_BRACKETS = {"csp_yolo2": "viz/csp_yolo2/bracket_counting_beeg/prune_v4/k_optim/viz_data.pt"}
_ONE, _TWO = 330, 1252
"""Ids of "]" and "]]", each with its newline, in tinypython_2k."""

_WINDOW, _MOST_WINDOWS = 256, 64
_NEAR = 0.5


@dataclass(frozen=True)
class PublishedFigure:
    """One figure: what is published, what was found here, and whether they agree (None: nothing to hold it to)."""

    what: str
    published: str
    found: str
    agrees: bool | None


def check_published(name: str) -> list[PublishedFigure]:
    """Load a released model, fetching what is needed, and compare it with everything that is published of it.

    Raises `UnknownNameError` for a name that is no released model's, and what `load` raises. A file of the store that is missing or
    damaged becomes a figure that says so.
    """
    model = released_model(name)
    if model is None:
        raise UnknownNameError("released model", name, RELEASED_MODELS)
    bridge = load(name)
    steps: list[tuple[str, Callable[[TransformerBridge, ReleasedModel], list[PublishedFigure]]]] = [
        ("parameters", _parameters),
        ("nonzeros", _nonzeros),
        ("bracket prompt", _brackets),
        ("validation loss", _loss),
    ]
    figures: list[PublishedFigure] = []
    for what, step in steps:
        try:
            figures += step(bridge, model)
        except (DownloadError, CheckpointError) as error:
            figures.append(PublishedFigure(what, "not to be had", str(error), None))
    return figures


def _parameters(bridge: TransformerBridge, model: ReleasedModel) -> list[PublishedFigure]:
    count = bridge.n_params_total - bridge.cfg.d_vocab  # the logit bias is a buffer there
    published = "not published" if model.parameters is None else f"{model.parameters:,} (from the file's size)"
    agrees = None if model.parameters is None else count == model.parameters
    return [PublishedFigure("parameters", published, f"{count:,}", agrees)]


def _nonzeros(bridge: TransformerBridge, model: ReleasedModel) -> list[PublishedFigure]:
    report = sparsity_report(bridge)
    inside = [matrix for matrix in report.matrices if matrix.name.startswith("blocks.")]
    total = sum(matrix.nonzeros for matrix in inside)
    agrees = None if model.nonzeros is None else round(total / 1e6, 1) == round(model.nonzeros / 1e6, 1)
    published = "not published" if model.nonzeros is None else f"{model.nonzeros / 1e6:.1f} M (from the name)"
    figures = [PublishedFigure("nonzero weights in blocks", published, f"{total:,}", agrees)]
    kinds: dict[str, list[int]] = {}
    for matrix in report.matrices:
        kind = matrix.name.split(".", 2)[-1]
        entries, nonzeros = kinds.get(kind, [0, 0])
        kinds[kind] = [entries + matrix.entries, nonzeros + matrix.nonzeros]
    for kind, (entries, nonzeros) in kinds.items():
        figures.append(PublishedFigure(f"density of {kind}", "not published", f"{nonzeros / entries:.3%}", None))
    return figures


def _brackets(bridge: TransformerBridge, model: ReleasedModel) -> list[PublishedFigure]:
    if model.name not in _BRACKETS:
        return []
    tokens = _first_sample(fetch(_BRACKETS[model.name]))
    with torch.no_grad():
        last = bridge(tokens[None])[0, -1]
    one, two = float(last[_ONE]), float(last[_TWO])
    found = f"logits {one:.3f} for ], {two:.3f} for ]]"
    return [PublishedFigure("first bracket prompt", "prefers ] to ]] (a mistake)", found, one > two)]


def _first_sample(path: Path) -> Tensor:
    try:
        data = read_plain(path)
        sample = data["importances"]["task_samples"][0][0]
        if not is_plain_tensor(sample):
            raise TypeError("no tensor with all its entries in the file")
        return sample[: int(sample.nonzero().max()) + 1].long()  # padded with zeros on the right
    except Exception as error:  # torch raises pickle, runtime and key errors alike
        raise CheckpointError(f"{path} does not hold task samples where they are expected ({type(error).__name__})") from error


def _loss(bridge: TransformerBridge, model: ReleasedModel) -> list[PublishedFigure]:
    """Their validation text is not published: held beside the loss on Python's own library, in windows of 256 tokens."""
    path = fetch(f"train_curves/{model.name}/progress.json")
    losses = _last_losses(path)
    ours = _library_loss(bridge)
    found = "no tokenizer to read text with" if ours is None else f"{ours:.3f} on the standard library, another text"
    figures = []
    for key, value in losses.items():
        agrees = None if ours is None else abs(ours - value) <= _NEAR
        figures.append(PublishedFigure(f"{key}, last", f"{value:.3f}", f"{found} (agrees within {_NEAR})", agrees))
    return figures or [PublishedFigure("validation loss", "no loss in the curve's file", found, None)]


def _last_losses(path: Path) -> dict[str, float]:
    """The last value of every validation loss in a file of JSON lines; of every loss, if none is called so."""
    last: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
            last |= {key: float(value) for key, value in numbers.items() if "loss" in key or "xent" in key}
    validation = {key: value for key, value in last.items() if "val" in key or "test" in key}
    return validation or last


@torch.no_grad()
def _library_loss(bridge: TransformerBridge) -> float | None:
    tokenizer: Any = bridge.tokenizer
    if tokenizer is None:
        return None
    size = min(_WINDOW, int(bridge.cfg.n_ctx))
    total, count = 0.0, 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:_MOST_WINDOWS]:
        ids = tokenizer(path.read_text(encoding="utf-8", errors="replace"))["input_ids"][:size]
        if len(ids) > size // 2:
            total, count = total + float(bridge(torch.tensor([ids]), return_type="loss")), count + 1
    return total / count if count else None
