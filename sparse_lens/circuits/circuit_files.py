"""Circuits on disk: `circuit.safetensors` (masks and ablation values by site) and `circuit.json` (all the rest)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_lens.circuits.ablation import AblationKind
from sparse_lens.circuits.circuit import NOT_MEASURED, Circuit
from sparse_lens.circuits.edges.cutting import CircuitEdges, edge_matrices, edge_module
from sparse_lens.circuits.edges.latents import LatentSite, latent_sites
from sparse_lens.circuits.edges.space import EdgeSpace
from sparse_lens.circuits.masking import Reference
from sparse_lens.circuits.sites import NodeSpace, node_space
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import CircuitError
from sparse_lens.files import new_directory

_FORMAT = 1
WEIGHTS_FILE, RECORD_FILE, CARD_FILE = FILES = ("circuit.safetensors", "circuit.json", "card.json")
"""What a circuit's folder holds; the card comes later, from `evaluate_circuit`, and goes when another circuit is saved there."""


def save_circuit(circuit: Circuit, path: str | Path) -> None:
    """Write `circuit` into the folder `path`."""
    tensors = {f"mask.{name}": part.clone() for name, part in circuit.space.split(circuit.mask).items()}
    for name, reference in circuit.reference.items():
        tensors[f"reference.{name}"] = reference.latents.contiguous()
        tensors[f"error.{name}"] = reference.error.contiguous()
    for part, tensor in _edge_tensors(circuit.edges).items():
        tensors[part] = tensor.clone(memory_format=torch.contiguous_format)  # matrices that read the same input share its mean
    record = {
        "format": _FORMAT,
        "task": circuit.task,
        "model": circuit.model,
        "target_loss": circuit.target_loss,
        "loss": circuit.loss if math.isfinite(circuit.loss) else None,
        "nodes": circuit.n_nodes,
        "space": circuit.space.signature(),
        "search": circuit.search,
        "ablation": circuit.ablation,
        "frozen_norms": circuit.frozen_norms,
    }
    with new_directory(path, also=[CARD_FILE]) as folder:
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_circuit(path: str | Path, bridge: Any, dictionaries: Sequence[Dictionary] = ()) -> Circuit:
    """Read a circuit of `bridge`; raises `CircuitError` if file, model or dictionaries do not fit."""
    folder = Path(path)
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise CircuitError(f"no readable circuit in {folder}: {error}") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise CircuitError(f"{folder} holds a circuit of another format than {_FORMAT}; find it again")
    space = node_space(bridge, dictionaries)
    if record.get("space") != space.signature():
        raise CircuitError(f"the circuit in {folder} has other sites or dictionaries than those given; pass its own")
    circuit = _assemble(record, tensors, space, folder, bridge)
    circuit.check_model(bridge)
    return circuit


def _assemble(record: dict[str, Any], tensors: dict[str, Tensor], space: NodeSpace, folder: Path, bridge: Any) -> Circuit:
    try:
        mask = space.join({site.name: tensors[f"mask.{site.name}"] for site in space.sites})
        reference = {s.name: Reference(tensors[f"reference.{s.name}"], tensors[f"error.{s.name}"]) for s in space.sites}
        fields = {name: record[name] for name in ("task", "model", "target_loss", "loss", "search")}
    except KeyError as error:
        raise CircuitError(f"the circuit in {folder} lacks {error}; find it again") from error
    if mask.shape != (space.n_nodes,) or mask.dtype != torch.bool:
        raise CircuitError(f"the circuit in {folder} has {tuple(mask.shape)} mask entries, its model {space.n_nodes} nodes")
    for site in space.sites:
        d_out = site.n_latents if site.dictionary.exact else site.dictionary.W_dec.shape[-1]
        for part, width in ((reference[site.name].latents, site.n_latents), (reference[site.name].error, d_out)):
            if part.shape != (width,) or not part.is_floating_point() or not bool(part.isfinite().all()):
                raise CircuitError(f"the circuit in {folder} has no usable ablation values at {site.name}; find it again")
    fields["loss"] = NOT_MEASURED if fields["loss"] is None else fields["loss"]
    kinds = {"task": str, "model": str, "target_loss": float | int, "loss": float | int, "search": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(fields[name], kind) or isinstance(fields[name], bool)]:
        raise CircuitError(f"the circuit in {folder} has a {wrong[0]} of {fields[wrong[0]]!r}; its circuit.json is damaged")
    how = {"ablation": record.get("ablation", "mean"), "frozen_norms": record.get("frozen_norms", False)}
    if how["ablation"] not in get_args(AblationKind) or not isinstance(how["frozen_norms"], bool):
        raise CircuitError(f"the circuit in {folder} was found under an ablation that is not known here: {how}")
    edges = _edges(tensors, bridge, folder, latent_sites(space, mask, reference) if "edges.means.embedding" in tensors else ())
    return Circuit(mask=mask, space=space, reference=reference, **fields, **how, edges=edges)


def _edge_tensors(edges: CircuitEdges | None) -> dict[str, Tensor]:
    """Kept and cut edges and means of a circuit by their names in the file; none, where it has nodes only."""
    if edges is None:
        return {}
    parts = {"kept": edges.kept.index, "cut": edges.cut.index, "means": edges.means}
    return {f"edges.{part}.{name}": tensor for part, of in parts.items() for name, tensor in of.items()}


def _edges(tensors: Mapping[str, Tensor], bridge: Any, folder: Path, latents: tuple[LatentSite, ...]) -> CircuitEdges | None:
    parts: dict[str, dict[str, Tensor]] = {"kept": {}, "cut": {}, "means": {}}
    for key in (key for key in tensors if key.startswith("edges.")):
        _, part, name = (*key.split(".", 2), "", "")[:3]
        if part not in parts or name not in edge_matrices(bridge):
            raise CircuitError(f"the circuit in {folder} has edges of an unknown kind, {key!r}; find it again")
        parts[part][name] = tensors[key]
    if not any(parts.values()):
        return None
    if not parts["kept"].keys() == parts["cut"].keys() == parts["means"].keys() == set(edge_matrices(bridge)):
        raise CircuitError(f"the circuit in {folder} has edges for some matrices only; find it again")
    shapes = {name: shape for site in latents for name, shape in _virtual_shapes(bridge, site).items()}
    for name in edge_matrices(bridge):
        shape: torch.Size = shapes[name] if name in shapes else edge_module(bridge, name).weight.shape
        inside = all(_inside(parts[part][name], shape) for part in ("kept", "cut"))
        mean = parts["means"][name]
        usable = mean.is_floating_point() and bool(mean.isfinite().all())
        if not inside or not usable or mean.shape not in (shape[1:], *_latent_means(name, latents)):
            raise CircuitError(f"the circuit in {folder} has edges at {name} that the model's {tuple(shape)} matrix cannot have")
    order = edge_matrices(bridge)
    kept, cut = (EdgeSpace({name: parts[part][name] for name in order}) for part in ("kept", "cut"))
    return CircuitEdges(kept, cut, parts["means"], latents)


def _virtual_shapes(bridge: Any, latents: LatentSite) -> dict[str, torch.Size]:
    """Of the matrices of virtual weights into and out of a dictionary's nodes."""
    read, write = (f"{kind}.{latents.site.layer}" for kind in ("mlp_in", "mlp_out"))
    n_nodes = len(latents.mask)
    d_in, d_model = edge_module(bridge, read).weight.shape[1], edge_module(bridge, write).weight.shape[0]
    return {read: torch.Size([n_nodes, d_in]), write: torch.Size([d_model, n_nodes])}


def _latent_means(name: str, latents: tuple[LatentSite, ...]) -> list[torch.Size]:
    """The shape of the means of a dictionary's latents, which has none for the error node."""
    return [torch.Size([of.site.n_latents]) for of in latents if name == f"mlp_out.{of.site.layer}"]


def _inside(index: Tensor, shape: torch.Size) -> bool:
    """Whether `index [edge 2]` holds entries of a matrix, none of them twice."""
    if index.dtype != torch.int64 or index.ndim != 2 or index.shape[1] != 2:
        return False
    if len(index) == 0:
        return True
    within = bool((index >= 0).all()) and bool((index < torch.tensor(shape)).all())
    return within and len(index.unique(dim=0)) == len(index)
