"""Columns as plain data: which model, in which basis or through which dictionaries, so that any process can open one.

| kind | columns |
|---|---|
| A | dense neurons: the twin, and the loss-matched model, this one also in principal components and in singular vectors of heads |
| B | SAEs of the loss-matched model: topk, batchtopk, matryoshka, jumprelu |
| C | transcoders of the loss-matched model, plain and skip |
| D | the weight-sparse model's own neurons |
| controls | shuffled weights, frozen decoder, SAE before training, rotated neurons, SAE of the sparse model, further dense arms |
| upper line | a latent for each label, from the labels themselves, in the loss-matched model and in the sparse one |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sparse_lens.circuits import node_space
from sparse_lens.circuits.search.problems import ErrorMode
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.circuits.trust.controls import shuffle_weights
from sparse_lens.comparisons.bases import head_singular_vectors, random_bases, residual_components
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.concepts.pair_labels import label_role, split_labels, supervised_units
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.dictionaries import Dictionary, IdentityDictionary, harvest_activations, load_saelens, untrained_sae
from sparse_lens.errors import UnknownNameError
from sparse_lens.hooks import load
from sparse_lens.hooks.layout import decoder_layout
from sparse_lens.models_shipped import folder_at

Basis = Literal["neurons", "components", "singular_vectors", "rotated", "dictionaries", "untrained", "supervised"]

OWN_UNITS = ("neurons", "rotated", "dictionaries", "untrained", "supervised")
"""Bases with MLP units of their own; in the others these are the neurons."""

_OPEN = 3
"""Columns kept open in a process: each holds a model."""


@dataclass(frozen=True)
class ColumnSpec:
    """One column: `model` is a role of the pair, a shipped model or a folder.

    `dictionaries` are folders, one list for each dictionary seed. A search seed takes the dictionaries of that seed (the last
    list stands in for those beyond it), so that the spread over search seeds holds that of the dictionaries, too.
    """

    name: str
    model: str
    basis: Basis = "neurons"
    dictionaries: tuple[tuple[str, ...], ...] = ()
    shuffled: bool = False
    control: bool = False
    error_mode: ErrorMode = "scored"
    size: tuple[int, int] = (0, 0)
    tokens: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values; `from_plain` is the inverse."""
        return asdict(self)

    @classmethod
    def from_plain(cls, record: Mapping[str, Any]) -> ColumnSpec:
        """A spec from `to_plain`, or from JSON, where tuples have become lists."""
        folders, size = (tuple(tuple(folders) for folders in record["dictionaries"]), tuple(record["size"]))
        return cls(**{**record, "dictionaries": folders, "size": size})

    def own_dictionaries(self, seed: int) -> tuple[str, ...]:
        """Folders of the dictionaries for a search seed."""
        return self.dictionaries[min(seed, len(self.dictionaries) - 1)] if self.dictionaries else ()


def open_column(pair: str, spec: ColumnSpec | Mapping[str, Any], *, seed: int = 0) -> Column:
    """The column of a pair (by its address) for a search seed; the last few stay open in this process."""
    spec = spec if isinstance(spec, ColumnSpec) else ColumnSpec.from_plain(spec)
    place = min(seed, max(len(spec.dictionaries) - 1, 0)) if spec.basis == "dictionaries" else 0
    return _opened(pair, json.dumps(spec.to_plain(), sort_keys=True), place)


@lru_cache(maxsize=_OPEN)
def _opened(pair_name: str, plain: str, seed: int) -> Column:
    pair, spec = ModelPair.at(pair_name), ColumnSpec.from_plain(json.loads(plain))
    bridge = load(model_folder(pair, spec))
    if spec.shuffled:
        shuffle_weights(bridge)
    windows = windows_of(pair, spec)["reference"]
    space = node_space(bridge, _dictionaries(pair, bridge, spec, windows, seed))
    role = spec.model if spec.model in pair.record else "arm"
    return Column(spec.name, role, bridge, space, windows)


def _dictionaries(pair: ModelPair, bridge: Any, spec: ColumnSpec, windows: np.ndarray, seed: int) -> Sequence[Dictionary]:
    batches = np.array_split(windows, max(1, len(windows) // 16))
    made = {
        "neurons": lambda: (),
        "components": lambda: residual_components(bridge, batches),
        "singular_vectors": lambda: head_singular_vectors(bridge),
        "rotated": lambda: random_bases(bridge, seed=0),
        "dictionaries": lambda: [load_saelens(folder) for folder in spec.own_dictionaries(seed)],
        "untrained": lambda: [_untrained(bridge, neurons, spec, batches) for neurons in mlp_neurons(bridge)],
        "supervised": lambda: [_supervised(pair, bridge, neurons, spec) for neurons in mlp_neurons(bridge)],
    }
    if spec.basis not in made:
        raise UnknownNameError("basis", spec.basis, made)
    return made[spec.basis]()


def _untrained(bridge: Any, neurons: IdentityDictionary, spec: ColumnSpec, batches: Sequence[np.ndarray]) -> Dictionary:
    """An SAE as it is before training, but for its decoder's bias, which has the mean."""
    total, n = torch.zeros(neurons.n_latents, dtype=torch.float64), 0
    for harvested in harvest_activations(bridge, [neurons.hook_in], batches):
        total, n = total + harvested[neurons.hook_in].double().sum(0), n + len(harvested[neurons.hook_in])
    return untrained_sae(neurons.n_latents, *spec.size, neurons.hook_in, mean=total / n)


def _supervised(pair: ModelPair, bridge: Any, neurons: IdentityDictionary, spec: ColumnSpec) -> Dictionary:
    train, _ = split_labels(pair.address, label_role(pair, spec.model), spec.tokens)
    return supervised_units(bridge, neurons.hook_in, neurons.n_latents, train)


def model_folder(pair: ModelPair, spec: ColumnSpec) -> Path:
    """Where the column's model lies."""
    return pair.model_folder(spec.model) if spec.model in pair.record else folder_at(spec.model)


def windows_of(pair: ModelPair, spec: ColumnSpec) -> dict[str, np.ndarray]:
    """The pair's windows in the column's tokens; models given by folder have the pair's tokenizer."""
    return pair.windows_of(spec.model) if spec.model in pair.record else pair.windows


def fingerprints(pair: ModelPair, spec: ColumnSpec) -> list[str]:
    """What a column's numbers depend on: its weights, its tokenizer, its dictionaries' files, and the windows that it reads."""
    folder, windows = model_folder(pair, spec), hashlib.sha256()
    for name, tokens in sorted(windows_of(pair, spec).items()):
        windows.update(f"{name} {tokens.shape} {tokens.dtype}".encode())
        windows.update(np.ascontiguousarray(tokens).tobytes())
    dictionaries = (_dictionary_hash(one, _stamp(Path(one))) for folders in spec.dictionaries for one in folders)
    tokenizer = folder / "tokenizer.json"
    tokens = [f"tokenizer {hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:16]}"] if tokenizer.is_file() else []
    return [_model_hash(folder, _stamp(folder)), *tokens, f"windows {windows.hexdigest()[:16]}", *dictionaries]


Stamp = tuple[tuple[str, int, int], ...]


def _stamp(folder: Path) -> Stamp:
    """Names, sizes and times of a folder's files: what was read from it is read again when they change."""
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name) if folder.is_dir() else []
    return tuple((path.name, (found := path.stat()).st_size, found.st_mtime_ns) for path in files)


@cache
def _model_hash(folder: Path, stamp: Stamp) -> str:  # noqa: ARG001 - of the cache's key
    return model_fingerprint(load(folder))


@cache
def _dictionary_hash(folder: str, stamp: Stamp) -> str:  # noqa: ARG001 - of the cache's key
    return load_saelens(folder).hash


def mlp_units(column: Column) -> list[Dictionary]:
    """What a column has for MLP units, layer by layer: its dictionaries there, or the neurons themselves."""
    found: dict[str, Dictionary] = {
        s.name: s.dictionary for s in column.space.sites if s.kind == "mlp_neuron" and not s.is_identity
    }
    return [found.get(f"mlp_neuron.{layer}", own) for layer, own in enumerate(mlp_neurons(column.bridge))]


def mlp_neurons(bridge: Any) -> list[IdentityDictionary]:
    """The neurons of each layer's MLP as the dictionary that changes nothing."""
    layout = decoder_layout(bridge)
    hooks = [f"blocks.{layer}.{layout.hooks['mlp_neuron']}" for layer in range(layout.n_layers)]
    return [IdentityDictionary(layout.widths["mlp_neuron"], hook) for hook in hooks]
