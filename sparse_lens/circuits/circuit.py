"""A circuit is data: the kept nodes, the ablation values, and what it was found in, by and for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_lens.circuits.masking import Reference
from sparse_lens.circuits.sites import NodeSpace, model_fingerprint, node_space
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import CircuitError
from sparse_lens.files import new_directory

_FORMAT = 1
WEIGHTS_FILE, RECORD_FILE = FILES = ("circuit.safetensors", "circuit.json")


@dataclass(frozen=True, eq=False)
class Circuit:
    """Kept nodes (`mask [node]`) of a model on a task, with the values that stand in for all others (`reference`, by site).

    `model` is the fingerprint of the model's weights, `search` says how the circuit was found (effort, seed, trace),
    `target_loss` and `loss` are two-token task losses in nats, the latter on prompts of the search templates that no mask was
    learned on. Immutable; saved as safetensors and JSON.
    """

    mask: Bool[Tensor, " node"]
    space: NodeSpace
    reference: Mapping[str, Reference]
    task: str
    model: str
    target_loss: float
    loss: float
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def n_nodes(self) -> int:
        return int(self.mask.sum())

    @property
    def reached(self) -> bool:
        """Whether the circuit meets its target loss."""
        return self.loss <= self.target_loss

    def kept(self) -> dict[str, list[int]]:
        """Indices of the kept nodes by site name; the last index of a site with a dictionary is its error node."""
        return {name: part.nonzero().flatten().tolist() for name, part in self.space.split(self.mask).items()}

    def check_model(self, bridge: Any) -> NodeSpace:
        """The circuit's node space; raises `CircuitError` if `bridge` is another model than it was found in."""
        if (found := model_fingerprint(bridge)) != self.model:
            raise CircuitError(
                f"this circuit was found in the model {self.model}, the bridge holds {found}; load the model it belongs to"
            )
        return self.space

    def save(self, path: str | Path) -> None:
        """Write `circuit.safetensors` and `circuit.json` into the folder `path`."""
        tensors = {f"mask.{name}": part.clone() for name, part in self.space.split(self.mask).items()}
        for name, reference in self.reference.items():
            tensors[f"reference.{name}"] = reference.latents.contiguous()
            tensors[f"error.{name}"] = reference.error.contiguous()
        record = {
            "format": _FORMAT,
            "task": self.task,
            "model": self.model,
            "target_loss": self.target_loss,
            "loss": self.loss,
            "nodes": self.n_nodes,
            "space": self.space.signature(),
            "search": self.search,
        }
        with new_directory(path) as folder:
            save_file(tensors, folder / WEIGHTS_FILE)
            (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, bridge: Any, dictionaries: Sequence[Dictionary] = ()) -> Circuit:
        """Read a saved circuit for `bridge`; raises `CircuitError` if file, model or dictionaries do not fit."""
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
        circuit = _assemble(cls, record, tensors, space, folder)
        circuit.check_model(bridge)
        return circuit


def _assemble(cls: type[Circuit], record: dict[str, Any], tensors: dict[str, Tensor], space: NodeSpace, folder: Path) -> Circuit:
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
    kinds = {"task": str, "model": str, "target_loss": float | int, "loss": float | int, "search": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(fields[name], kind) or isinstance(fields[name], bool)]:
        raise CircuitError(f"the circuit in {folder} has a {wrong[0]} of {fields[wrong[0]]!r}; its circuit.json is damaged")
    return cls(mask=mask, space=space, reference=reference, **fields)
