"""The cells of the full comparison: top-level functions of plain arguments with plain records, so that they run anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons.column_specs import ColumnSpec, mlp_units, model_folder, open_column, windows_of
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.concepts.absorption import measure_absorption
from sparse_lens.comparisons.concepts.coverage import measure_concepts
from sparse_lens.comparisons.concepts.pair_labels import label_role, split_labels
from sparse_lens.comparisons.concepts.probes import measure_probes
from sparse_lens.comparisons.concepts.separability import measure_separability
from sparse_lens.comparisons.curves.circuit_curve import circuit_curve
from sparse_lens.comparisons.full.maps import concept_map, matching_map
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.reading import reading_windows
from sparse_lens.comparisons.rows.activation import activation, decoder_redundancy
from sparse_lens.comparisons.rows.capability import capability, dictionary_numbers
from sparse_lens.comparisons.rows.correspondence import concept_agreement, measure_correspondence
from sparse_lens.comparisons.rows.jacobians import measure_jacobian, weight_sparsity
from sparse_lens.comparisons.rows.reconstruction import reconstruction, spliced_loss, spliced_windows
from sparse_lens.comparisons.rows.stability import matched_units, spread
from sparse_lens.comparisons.rows.superposition import decoder_similarity, measure_superposition
from sparse_lens.data import load_tokenizer
from sparse_lens.dictionaries import (
    Dictionary,
    IdentityDictionary,
    SAETrainingConfig,
    TranscoderTrainingConfig,
    train_sae,
    train_transcoder,
)
from sparse_lens.errors import UnknownNameError
from sparse_lens.hooks import load
from sparse_lens.hooks.layout import decoder_layout
from sparse_lens.results import Result
from sparse_lens.training.evaluation import window_losses

Plain = dict[str, Any]

ROW_TOKENS = 100_000
"""Tokens that a row reads, at most: all held-out windows are a third of that."""

_UNREAD = 1_000_003
"""Seed of text that no dictionary was trained on the same draw of: held-out windows are too few to call a latent dead."""

ACTIVATION, WEIGHTS = "activation", "weights"
"""The row that reads training files; and the one of the model's weights alone, the same for all columns of one model."""

JACOBIAN_WINDOWS = 4
"""Windows of 64 tokens: a Jacobian takes as many backward passes as a token has active units."""


def train_dictionary(
    pair: str, model: str, kind: str, layer: int, tokens: int, d_sae: int, k: int, seed: int, folder: str
) -> Plain:
    """Train one dictionary for a layer's MLP of a model of the pair and keep it in `folder`.

    `kind` is an SAE's architecture, `frozen` (topk with a frozen decoder), `transcoder` or `skip_transcoder`. The record holds the
    folder, the dictionary's hash and its statistics on held-out tokens.
    """
    opened = ModelPair.at(pair)
    spec = ColumnSpec("", model)
    bridge, held_out = load(model_folder(opened, spec)), windows_of(opened, spec)["heldout"][:, :-1]
    windows = reading_windows(opened, int(1.3 * tokens) + 131_072, seed=seed, role=_role(opened, spec))
    batches = (windows[start : start + 16] for start in range(0, len(windows), 16))
    common: Plain = {"d_sae": d_sae, "k": k, "tokens": tokens, "batch_size": 2048, "seed": seed}
    how: Plain = {"held_out": np.array_split(held_out, 16), "progress": False}
    if kind in ("transcoder", "skip_transcoder"):
        config = TranscoderTrainingConfig(skip=kind == "skip_transcoder", **common)
        hooks = (f"blocks.{layer}.mlp.hook_act_in", f"blocks.{layer}.hook_mlp_out")
        trained = train_transcoder(bridge, *hooks, batches, config, folder, **how)
    else:
        common |= {"architecture": "topk" if kind == "frozen" else kind, "frozen_decoder": kind == "frozen"}
        sae = SAETrainingConfig(**common)
        trained = train_sae(bridge, f"blocks.{layer}.mlp.hook_post", batches, sae, folder, **how)
    return {"folder": str(Path(folder)), "hash": trained.dictionary.hash, "statistics": vars(trained.statistics)}


def curve_cell(
    pair: str,
    column: Mapping[str, Any],
    task: str,
    seed: int,
    targets: Sequence[float],
    edge_targets: Sequence[float],
    functional_targets: Sequence[float],
    config: Mapping[str, Any],
    also_traced: Sequence[float] = (),
    n_windows: int = 32,
    n_pairs: int = 128,
) -> Plain:
    """The curve of one column on one task for one search seed, measured on held-out windows and pairs; see `circuit_curve`."""
    opened, spec = ModelPair.at(pair), ColumnSpec.from_plain(column)
    windows = windows_of(opened, spec)
    found = circuit_curve(
        open_column(pair, spec, seed=seed),
        task,
        windows["heldout"][:n_windows, :-1],
        windows["reference"],
        targets=targets,
        edge_targets=edge_targets,
        functional_targets=functional_targets,
        error_mode=spec.error_mode,
        config=SearchConfig(**config),
        also_traced=also_traced,
        heldout_pairs=n_pairs,
        seed=seed,
    )
    return found.to_plain()


def capability_cell(pair: str, column: Mapping[str, Any], tokens: int = ROW_TOKENS) -> Plain:
    """Loss and size of a column's model, and, with dictionaries, the loss with all of them in place and their errors left out.

    `loss_added_mean` and the like are those of all these sites at once; `dictionary_numbers` counts what the dictionaries add to
    the model's nonzeros. Under `per_window` is the loss of each window, and its loss with the dictionaries in place.
    """
    opened, spec = ModelPair.at(pair), ColumnSpec.from_plain(column)
    found, windows = open_column(pair, spec), _heldout(opened, spec, tokens)
    results = capability(found.bridge, windows, load_tokenizer(model_folder(opened, spec)))
    inexact = [site.dictionary for site in found.space.sites if not site.dictionary.exact]
    if not inexact:
        return {**results, "per_window": {"loss": window_losses(found.bridge, windows).tolist()}}
    spliced = spliced_windows(found.bridge, inexact, windows)
    per_window = {"loss": spliced.losses["own"].tolist(), "loss_spliced": spliced.losses["spliced"].tolist()}
    results |= {"dictionary_numbers": dictionary_numbers(inexact)} | _without(spliced.results(), "loss")
    return {**results, "per_window": per_window}


def row_cell(pair: str, column: Mapping[str, Any], row: str, layer: int, seed: int = 0, tokens: int = ROW_TOKENS) -> Plain:
    """One row of one layer's MLP units in one column: results by name, and under `map` what a heat map of it shows."""
    if row not in ROWS:
        raise UnknownNameError("row", row, ROWS)
    opened, spec = ModelPair.at(pair), ColumnSpec.from_plain(column)
    found = open_column(pair, spec, seed=seed)
    return ROWS[row](opened, spec, found, mlp_units(found)[layer], tokens)


def _reconstruction(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> dict[str, Result]:
    windows = _heldout(pair, spec, tokens)
    rows = reconstruction(column.bridge, units, _batches(windows[:, :-1]))
    return rows if units.exact else rows | spliced_loss(column.bridge, [units], windows)


def _activation(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> dict[str, Result]:
    windows = reading_windows(pair, tokens, seed=_UNREAD, role=_role(pair, spec))
    return activation(column.bridge, units, _batches(windows)) | ({} if units.exact else decoder_redundancy(units))


def _superposition(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> dict[str, Result]:
    neurons = decoder_layout(column.bridge).widths["mlp_neuron"]
    return measure_superposition(column.bridge, units, _batches(_heldout(pair, spec, tokens)[:, :-1]), neurons=neurons)


def _signed(units: Dictionary) -> bool:
    """Whether units mean something below zero, too, so that they are scored by magnitude: neurons, and latents of AbsTopK."""
    return units.exact or getattr(units, "architecture", "") == "abstopk"


def _concepts(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> Plain:
    train, test = split_labels(pair.address, label_role(pair, spec.model), tokens)
    scores = measure_concepts(column.bridge, units, train, test, magnitude=_signed(units))
    of_labels = {name: result["f1"].value for name, result in scores.per_label.items() if result["f1"].value is not None}
    return {**scores.results, "map": concept_map(scores), "per_label": {"coverage_f1": of_labels}}


def _probes(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> Plain:
    scores = measure_probes(column.bridge, units, *split_labels(pair.address, label_role(pair, spec.model), tokens))
    of_labels = {name: numbers["probe_accuracy_k1"] for name, numbers in scores.per_label.items()}
    return {**scores.results, "per_label": {"probe_accuracy_k1": of_labels}}


def _separability(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> dict[str, Result]:
    train, test = split_labels(pair.address, label_role(pair, spec.model), tokens)  # upper lines were fitted on the first
    return dict(measure_separability(column.bridge, units, test, train=train, magnitude=_signed(units)).results)


def _absorption(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> dict[str, Result]:
    labelled = split_labels(pair.address, label_role(pair, spec.model), tokens)
    return dict(measure_absorption(column.bridge, units, *labelled).results)


def _jacobian(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> Plain:  # noqa: ARG001
    """How the units change with the channels that the MLP reads."""
    layout, layer = decoder_layout(column.bridge), units.hook_in.split(".")[1]
    source = IdentityDictionary(layout.widths["mlp_in"], f"blocks.{layer}.{layout.hooks['mlp_in']}")
    windows = windows_of(pair, spec)["heldout"][:JACOBIAN_WINDOWS, :64]
    return dict(measure_jacobian(column.bridge, source, units, [windows]))


def _weights(pair: ModelPair, spec: ColumnSpec, column: Column, units: Dictionary, tokens: int) -> Plain:  # noqa: ARG001
    """How sparse the weights around the neurons are."""
    return dict(weight_sparsity(column.bridge, int(units.hook_in.split(".")[1])))


Row = Callable[[ModelPair, ColumnSpec, Column, Dictionary, int], Plain]

ROWS: dict[str, Row] = {
    "reconstruction": _reconstruction,
    ACTIVATION: _activation,
    "superposition": _superposition,
    "concepts": _concepts,
    "probes": _probes,
    "separability": _separability,
    "absorption": _absorption,
    "jacobian": _jacobian,
    WEIGHTS: _weights,
}
"""Rows of MLP units by name; none of them asks which column it is for."""


def correspondence_cell(
    pair: str, first: Mapping[str, Any], second: Mapping[str, Any], layer: int, tokens: int = ROW_TOKENS
) -> Plain:
    """Units of one column's layer matched with those of another's, on held-out windows; for models of one tokenizer.

    Matched units are also asked whether they mean the same, by their best labels.
    """
    opened, specs = ModelPair.at(pair), [ColumnSpec.from_plain(side) for side in (first, second)]
    sides = [open_column(pair, spec) for spec in specs]
    units = [mlp_units(side)[layer] for side in sides]
    batches = _batches(_heldout(opened, specs[0], tokens)[:, :-1])
    found = measure_correspondence(sides[0].bridge, units[0], sides[1].bridge, units[1], batches)
    role = label_role(opened, specs[0].model)
    scores = [_scores(pair, json.dumps(spec.to_plain()), role, layer, tokens) for spec in specs]
    return {**found.results, **concept_agreement(found, *scores), "map": matching_map(found)}


@lru_cache(maxsize=4)
def _scores(pair: str, column: str, role: str, layer: int, tokens: int) -> Float[np.ndarray, "unit label"]:
    """What every unit of a column's layer gains in F1 over firing everywhere, for every label."""
    found = open_column(pair, json.loads(column))
    units = mlp_units(found)[layer]
    return measure_concepts(found.bridge, units, *split_labels(pair, role, tokens), magnitude=_signed(units)).gained.T


def stability_cell(pair: str, column: Mapping[str, Any], layer: int, others: Sequence[str] = (), tokens: int = ROW_TOKENS) -> Plain:
    """Do the same units come back with another seed? Of a column's dictionaries, or of its models in `others`, pairs' addresses.

    Units of all seeds are matched by activation on held-out windows; directions of one model's dictionaries by cosine, too.
    """
    opened, spec = ModelPair.at(pair), ColumnSpec.from_plain(column)
    if others:
        columns = [open_column(address, spec) for address in (pair, *others)]
    else:
        columns = [open_column(pair, spec, seed=seed) for seed in range(len(spec.dictionaries))]
    units = [(found.bridge, mlp_units(found)[layer]) for found in columns]
    windows = _heldout(opened, spec, tokens)[:, :-1]
    results = matched_units(units, _batches(windows))
    if others:
        return dict(results)
    alike = [decoder_similarity(a.W_dec, b.W_dec) for (_, a), (_, b) in combinations(units, 2)]
    return results | {name: result for name, result in spread(alike).items() if not name.endswith("_sd")}


def _role(pair: ModelPair, spec: ColumnSpec) -> str:
    """In whose tokens a column's model reads: models given by folder have those of the sparse one."""
    return spec.model if spec.model in pair.record else "sparse"


def _heldout(pair: ModelPair, spec: ColumnSpec, tokens: int) -> np.ndarray:
    """The column's held-out windows, as many as hold these tokens."""
    windows = windows_of(pair, spec)["heldout"]
    return windows[: max(1, tokens // windows.shape[1])]


def _batches(windows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(windows, max(1, len(windows) // 16))


def _without(results: Mapping[str, Result], name: str) -> dict[str, Result]:
    return {key: value for key, value in results.items() if key != name}
