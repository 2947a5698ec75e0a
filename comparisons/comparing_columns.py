"""Any models on the axis of the full comparison: bridges of any architecture, with dictionaries of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from tqdm.auto import tqdm

from sparse_lens.circuits import SearchConfig, node_space
from sparse_lens.circuits.paths import paths_are_known
from sparse_lens.comparisons.circuit_sizes import HELDOUT_PAIRS
from sparse_lens.comparisons.column_specs import mlp_units
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.comparison import SCHEMA, Comparison
from sparse_lens.comparisons.curves.circuit_curve import TARGETS, circuit_curve
from sparse_lens.comparisons.full.full_verdict import CAVEATS_OF_CURVES, left_out, not_told_from_one, unmatched
from sparse_lens.comparisons.full.headline import ratios_to
from sparse_lens.comparisons.full.matching import ModelLosses, match_to_base
from sparse_lens.comparisons.rows.activation import activation
from sparse_lens.comparisons.rows.reconstruction import reconstruction, spliced_windows
from sparse_lens.comparisons.rows.superposition import measure_superposition
from sparse_lens.dictionaries import Dictionary, IdentityDictionary
from sparse_lens.errors import ConfigError
from sparse_lens.hooks.layout import decoder_layout
from sparse_lens.results import bootstrap_mean, to_plain
from sparse_lens.tasks import get_task
from sparse_lens.training.evaluation import window_losses


def compare_columns(
    columns: Mapping[str, tuple[Any, Sequence[Dictionary]]],
    tasks: Sequence[str],
    reference: Int[np.ndarray, "window pos"],
    heldout: Int[np.ndarray, "heldout_window pos_and_label"],
    *,
    base: str | None = None,
    targets: Sequence[float] = TARGETS,
    seeds: int = 1,
    config: SearchConfig | None = None,
    heldout_pairs: int = HELDOUT_PAIRS,
    command: str = "sparse_lens.comparisons.compare_columns(...)",
    progress: bool = True,
) -> Comparison:
    """Curves of bits against divergence, rows and losses of models that need not be weight-sparse, nor of a kind we know.

    A column is a bridge and the dictionaries in it: none for neurons, else at most one for each site (a layer's MLP neurons, what
    the MLP or the attention writes, a transcoder, the residual stream). Bits and edges are of columns whose dictionaries are all in
    MLPs; others are compared in nodes, for no single weight leads from node to node there. All columns read the same token ids, so
    their bridges need one tokenizer, set as `bridge.tokenizer`. `reference` is text of the kind the models were trained on, for the
    means of ablated nodes; `heldout` is text that divergences, losses and rows are measured on. Sizes are held against those of
    `base`, the first column if it is not named; effort and targets are equal. Edges are counted structurally; single edges are
    searched in CircuitGPT models alone.

    The comparison's `full_frame()` has every number, `sparse_lens.report.write_report(found.metrics, folder)` its tables and
    figures. Raises `ConfigError` for fewer than two columns, an unknown base or models of unlike vocabularies,
    `UnknownNameError` for an unknown task, and what `node_space` raises for dictionaries that are at no site.
    """
    base, config = base or next(iter(columns), ""), config or SearchConfig()
    _check(columns, base, seeds)
    for task in tasks:
        get_task(task)
    opened = {
        name: Column(name, name, bridge, node_space(bridge, list(dictionaries)), reference)
        for name, (bridge, dictionaries) in columns.items()
    }
    curves: dict[str, dict[str, list[dict[str, Any]]]] = {task: {} for task in tasks}
    with tqdm(total=len(tasks) * len(opened) * seeds, desc="curves", disable=not progress) as bar:
        for task in tasks:
            for name, column in opened.items():
                curves[task][name] = []
                for seed in range(seeds):
                    how: dict[str, Any] = {"targets": targets, "config": config, "heldout_pairs": heldout_pairs, "seed": seed}
                    curves[task][name].append(circuit_curve(column, task, heldout[:, :-1], reference, **how).to_plain())
                    bar.update()
    ratios = ratios_to(curves, base)
    matching = match_to_base({name: _losses(column, heldout) for name, column in opened.items()}, base=base)
    full = {
        "schema": 2,
        "base": base,
        "columns": {name: {"control": False} for name in opened},
        "targets": list(targets),
        "curves": curves,
        "rows": _rows(opened, heldout),
        "headline": ratios,
        "against_controls": {},
        "edge_parts": {},
        "matching": matching,
        "undistinguished": not_told_from_one(ratios, f"“{base}”"),
        "unmatched": unmatched({name: match for name, match in matching.items() if name != base}),
        "left_out": left_out({"": curves}, {}, []),
        "caveats": [*CAVEATS_OF_CURVES, *_without_paths(opened)],
    }
    return Comparison(to_plain({"schema": SCHEMA, "command": command, "models": {}, "tasks": {}, "verdict": [], "full": full}))


def _check(columns: Mapping[str, tuple[Any, Sequence[Dictionary]]], base: str, seeds: int) -> None:
    if len(columns) < 2:
        raise ConfigError(f"a comparison needs at least two columns, got {len(columns)}")
    if base not in columns:
        raise ConfigError(f"the base must be one of the columns {', '.join(columns)}, got {base!r}")
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    sizes = {name: int(bridge.cfg.d_vocab) for name, (bridge, _) in columns.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(f"the columns' models have vocabularies of unlike sizes ({told}), but read the same token ids")


def _losses(column: Column, heldout: np.ndarray) -> ModelLosses:
    """A column's loss on each window and, with dictionaries, with all of them in place and their errors left out."""
    inexact = [site.dictionary for site in column.space.sites if not site.dictionary.exact]
    if not inexact:
        losses = window_losses(column.bridge, heldout)
        return ModelLosses({"loss": bootstrap_mean(losses)}, {"loss": losses.tolist()})
    spliced = spliced_windows(column.bridge, inexact, heldout)
    per_window = {"loss": spliced.losses["own"].tolist(), "loss_spliced": spliced.losses["spliced"].tolist()}
    return ModelLosses(spliced.results(), per_window)


def _rows(columns: Mapping[str, Column], heldout: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
    """Reconstruction, activation and superposition of a column's MLP units, layer by layer, or of its dictionaries elsewhere."""
    rows: dict[str, dict[str, dict[str, Any]]] = {"reconstruction": {}, "activation": {}, "superposition": {}}
    batches = np.array_split(heldout[:, :-1], max(1, len(heldout) // 16))
    for name, column in columns.items():
        neurons = decoder_layout(column.bridge).widths["mlp_neuron"]
        elsewhere = _elsewhere(column)
        layers = {f"layer {layer}": (units, neurons) for layer, units in enumerate(mlp_units(column))}
        if elsewhere:  # tables have the mean over places: neurons that are not the column's subject have no part in it
            layers = {place: of for place, of in layers.items() if not isinstance(of[0], IdentityDictionary)}
        for place, (units, width) in (layers | elsewhere).items():
            found = {
                "reconstruction": reconstruction(column.bridge, units, batches),
                "activation": activation(column.bridge, units, batches),
                "superposition": measure_superposition(column.bridge, units, batches, neurons=width),
            }
            for row, results in found.items():
                rows[row].setdefault(name, {})[place] = results
    return rows


def _without_paths(columns: Mapping[str, Column]) -> list[str]:
    """What has to be said of columns in which nodes on no path are not dropped, where some are and some are not of that kind."""
    names = [name for name, column in columns.items() if not paths_are_known(column.space)]
    if not names or len(names) == len(columns):
        return []
    return [
        f"In {', '.join(names)} dictionaries see other places than MLPs: nodes that lie on no path from tokens to answers are not "
        "dropped there, as they are in the other columns, and latents of the residual stream come on top of all other nodes. Its "
        "circuits count more nodes for both reasons."
    ]


def _elsewhere(column: Column) -> dict[str, tuple[Dictionary, int]]:
    """A column's dictionaries at other sites than an MLP's neurons, and how many channels they are the latents of, by site."""
    sites = [site for site in column.space.sites if not site.is_identity and site.kind != "mlp_neuron"]
    return {site.name: (site.dictionary, int(site.dictionary.W_dec.shape[1])) for site in sites}
