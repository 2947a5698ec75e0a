"""The dictionaries that a plan needs, as jobs that train them, and every column of the full comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from sparse_lens.circuits import node_space
from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints, model_folder
from sparse_lens.comparisons.full.headline import BEST_BASIS, FIRST_TRAINING, INTERPOLATED
from sparse_lens.comparisons.full.plan import BASE, FullPlan
from sparse_lens.comparisons.jobs import Job, Record
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.reading import files_read
from sparse_lens.dictionaries import load_saelens
from sparse_lens.errors import ConfigError
from sparse_lens.hooks import load
from sparse_lens.hooks.layout import decoder_layout
from sparse_lens.models_shipped import address_of, folder_at

_CELLS = "sparse_lens.comparisons.full.cells"
MATCHED, SPARSE = "dense_matched", "sparse"


@dataclass(frozen=True)
class Wanted:
    """One dictionary for every layer's MLP of a model of the pair."""

    model: str
    kind: str
    seed: int
    d_sae: int
    k: int


@dataclass(frozen=True)
class Shape:
    """What a plan has to know of a model of the pair: its layers, the neurons of each, and what its numbers depend on."""

    layers: int
    neurons: int
    depends: tuple[str, ...]


@lru_cache
def shape_of(pair: str, model: str) -> Shape:
    """The shape of a model of the pair (by its address); opened once."""
    opened, spec = ModelPair.at(pair), ColumnSpec("", model)
    layout = decoder_layout(load(model_folder(opened, spec)))
    return Shape(layout.n_layers, layout.widths["mlp_neuron"], tuple(fingerprints(opened, spec)))


def wanted_dictionaries(pair: ModelPair, plan: FullPlan) -> list[Wanted]:
    """Every kind with every dictionary seed, the frontier of the first kind, and the first kind on the sparse model.

    The columns' own ones come first.
    """
    first, size = plan.kinds[0], _latents(pair, plan.ratio, MATCHED)
    wanted = [Wanted(MATCHED, kind, seed, size, plan.k) for seed in range(plan.dictionary_seeds) for kind in plan.kinds]
    wanted += [Wanted(SPARSE, first, 0, _latents(pair, plan.ratio, SPARSE), plan.k)]
    sizes = [(_latents(pair, ratio, MATCHED), k) for ratio in plan.frontier_ratios for k in plan.frontier_k]
    return list(dict.fromkeys([*wanted, *(Wanted(MATCHED, first, 0, *size) for size in sizes)]))


def _latents(pair: ModelPair, ratio: float, model: str) -> int:
    return max(1, round(ratio * shape_of(pair.address, model).neurons))


def training_jobs(pair: ModelPair, plan: FullPlan, folder: Path) -> dict[Wanted, list[Job]]:
    """One job for every dictionary that is wanted and layer; it depends on the model and on the files that it is trained on."""
    found: dict[Wanted, list[Job]] = {}
    files = files_read(pair)
    for wanted in wanted_dictionaries(pair, plan):
        shape = shape_of(pair.address, wanted.model)
        depends = [*shape.depends, files]
        for layer in range(shape.layers):
            settings = asdict(wanted) | {"layer": layer, "tokens": plan.tokens}
            place = hashlib.sha256(repr((sorted(settings.items()), depends)).encode()).hexdigest()[:12]
            where = str((folder / f"{wanted.kind}-{wanted.model}-{layer}-{wanted.seed}-{place}").absolute())
            size = f"{wanted.d_sae} latents, {wanted.k} active"
            name = f"train {wanted.kind} {wanted.seed} of layer {layer}, {wanted.model} ({size})"
            arguments = {"pair": pair.address, "folder": where} | settings
            found.setdefault(wanted, []).append(Job(name, f"{_CELLS}:train_dictionary", arguments, depends))
    return found


Trained = Mapping[Wanted, Sequence[Record]]
"""Records of `train_dictionary`, layer by layer."""


def column_specs(pair: ModelPair, plan: FullPlan, trained: Trained) -> list[ColumnSpec]:
    """Every column: neurons and bases of the pair's models, one for each kind of dictionary, controls, and upper lines."""
    first = plan.kinds[0]
    size = (_latents(pair, plan.ratio, MATCHED), plan.k)
    own = [wanted for wanted in trained if (wanted.model, wanted.d_sae, wanted.k) == (MATCHED, *size)]
    of_kinds = {kind: _folders(trained, [wanted for wanted in own if wanted.kind == kind]) for kind in plan.kinds}
    of_sparse = _folders(trained, [wanted for wanted in trained if wanted.model == SPARSE])
    specs = [
        ColumnSpec(BASE, SPARSE),
        ColumnSpec("dense_neurons", "dense"),
        ColumnSpec("dense_matched_neurons", MATCHED),
        ColumnSpec("dense_matched_components", MATCHED, "components"),
        ColumnSpec("dense_matched_singular_vectors", MATCHED, "singular_vectors"),
        *(ColumnSpec(f"dense_{kind}", MATCHED, "dictionaries", f, control=kind == "frozen") for kind, f in of_kinds.items()),
        ColumnSpec(f"dense_{first}_errors_kept", MATCHED, "dictionaries", of_kinds[first][:1], error_mode="kept"),
        ColumnSpec(f"dense_{first}_errors_ablated", MATCHED, "dictionaries", of_kinds[first][:1], error_mode="ablated"),
        ColumnSpec("dense_untrained", MATCHED, "untrained", size=size, control=True),
        ColumnSpec("dense_matched_rotated", MATCHED, "rotated", control=True),
        ColumnSpec("sparse_rotated", SPARSE, "rotated", control=True),
        ColumnSpec("shuffled_weights", MATCHED, shuffled=True, control=True),
        ColumnSpec(f"sparse_{first}", SPARSE, "dictionaries", of_sparse, control=True),
        ColumnSpec("dense_matched_supervised", MATCHED, "supervised", tokens=plan.row_tokens, control=True),
        ColumnSpec("sparse_supervised", SPARSE, "supervised", tokens=plan.row_tokens, control=True),
    ]
    arms = {name: address_of(folder_at(str(folder))) for name, folder in (pair.arms() | dict(plan.arms)).items()}
    for folder in arms.values():
        pair.check_tokens(folder_at(folder))
    names = {spec.name for spec in specs} | {BEST_BASIS, FIRST_TRAINING, INTERPOLATED}
    if taken := names & {*arms, *plan.dictionaries} | {*arms} & {*plan.dictionaries}:
        raise ConfigError(f"{', '.join(sorted(taken))}: no arm or dictionary can have the name of another column; give it another")
    return [*specs, *given_dictionaries(pair, plan), *(ColumnSpec(name, folder, control=True) for name, folder in arms.items())]


def given_dictionaries(pair: ModelPair, plan: FullPlan) -> list[ColumnSpec]:
    """Columns of the plan's own `dictionaries`. Raises `ConfigError` where one does not have each layer's MLP once.

    Raises also what `load_saelens` and `node_space` raise for files that are none, another width, and another hook point.
    """
    found = []
    bridge = load(pair.model_folder(MATCHED)) if plan.dictionaries else None
    for name, folders in plan.dictionaries.items():
        places = [str(Path(folder).absolute()) for folder in folders]
        space = node_space(bridge, [load_saelens(folder) for folder in places])
        has = [site.name for site in space.sites if site.kind == "mlp_neuron" and not site.is_identity]
        wanted = [site.name for site in space.sites if site.kind == "mlp_neuron"]
        if has != wanted or len(places) != len(wanted):
            lacking = f"dictionary {name!r} has {', '.join(has) or 'no MLP'}"
            raise ConfigError(f"{lacking}; give a folder for each of {', '.join(wanted)}: repeat NAME=FOLDER")
        found.append(ColumnSpec(name, MATCHED, "dictionaries", (tuple(places),)))
    return found


def frontier_specs(pair: ModelPair, plan: FullPlan, trained: Trained) -> dict[ColumnSpec, Wanted]:
    """The dictionaries of the frontier that are no column, each as one, and their sizes."""
    own = (_latents(pair, plan.ratio, MATCHED), plan.k)
    further = [wanted for wanted in trained if wanted.model == MATCHED and (wanted.d_sae, wanted.k) != own]
    named = {f"{wanted.kind} {wanted.d_sae} k{wanted.k}": wanted for wanted in further}
    return {ColumnSpec(name, MATCHED, "dictionaries", _folders(trained, [wanted])): wanted for name, wanted in named.items()}


def _folders(trained: Trained, chosen: Sequence[Wanted]) -> tuple[tuple[str, ...], ...]:
    """Folders by dictionary seed and layer."""
    by_seed = sorted(chosen, key=lambda wanted: wanted.seed)
    return tuple(tuple(str(record["folder"]) for record in trained[wanted]) for wanted in by_seed)
