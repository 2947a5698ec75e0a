"""Reading and checking a published `viz_data.pt`, field by field; see `published.py` for what the fields are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_lens.circuits.checked import field, integer, items, mapping, named, number, text, wrong
from sparse_lens.circuits.exchange.published import BIAS, PublishedCircuit, PublishedPair
from sparse_lens.errors import CheckpointError, CircuitError
from sparse_lens.models.config import REFERENCE_FIELDS
from sparse_lens.models.torch_files import is_plain_tensor, read_plain

_LOCATION = re.compile(r"(0|[1-9][0-9]{0,3})\.(attn\.(act_in|q|k|v|resid_delta)|mlp\.(act_in|post_act|resid_delta))|final_resid")
_MOST_VALUES = 1 << 22
"""Most entries read into Python's own numbers, in one file: more than any released model has nodes."""
_ROW = 16
"""What a tensor of its own counts as."""
_MOST_DEPTH = 6


def read_published(path: str | Path) -> PublishedCircuit:
    """The circuit in a published `viz_data.pt`; no code in it is run.

    Raises `CircuitError` for a file that is missing, truncated, hostile, or does not hold what the viewer of
    openai/circuit_sparsity reads. Kept channels are in the file's order.
    """
    try:
        data = read_plain(path)
    except CheckpointError as error:
        raise CircuitError(str(error)) from error
    return _Reader(str(path)).circuit(mapping(data, str(path)))


class _Reader:
    """The checks of one file; counts what it turns into Python's own values, since views can repeat an entry without end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.left = _MOST_VALUES

    def circuit(self, data: Mapping[Any, Any]) -> PublishedCircuit:
        stored = named(field(data, "circuit_data", self.path), f"circuit_data in {self.path}")
        importances = named(field(data, "importances", self.path), f"importances in {self.path}")
        config = self._model_config(importances.get("beeg_model_config"))
        kept = self._kept(stored, config)
        prompts, activations = self._task_samples(importances.get("task_samples"))
        total = data.get("num_total_nodes")
        return PublishedCircuit(
            kept=kept,
            loss=self._number(field(importances, "loss", "importances"), "loss"),
            interv_loss=self._number(field(importances, "interv_loss", "importances"), "interv_loss"),
            node_losses=self._node_losses(importances.get("ch_interv_losses", {}), kept),
            layer_losses=self._layer_losses(importances.get("layer_interv_losses", {})),
            pairs=self._pairs(importances.get("pair_data", [])),
            task_prompts=prompts,
            task_activations=activations,
            search_losses=self._search_losses(data.get("all_loss")),
            n_total_nodes=None if total is None else self._integer(total, "num_total_nodes"),
            prune_config=self._prune_config(data.get("prune_config") or stored.get("prune_config") or {}),
            model_config=config,
        )

    def _kept(self, stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        kept: dict[str, tuple[int, ...]] = {}
        for location, channels in stored.items():
            if location == "prune_config":
                continue
            if not _LOCATION.fullmatch(location):
                raise CircuitError(
                    f"{self.path} keeps nodes at {location!r}, no location of the published format; known: "
                    "L.attn.{act_in,q,k,v,resid_delta}, L.mlp.{act_in,post_act,resid_delta}, final_resid"
                )
            kept[location] = self._channels(channels, location, _width(location, config))
        return kept

    def _channels(self, value: Any, location: str, width: int | None) -> tuple[int, ...]:
        channels = tuple(self._integers(value, f"the kept nodes at {location}"))
        beyond = [channel for channel in channels if channel < 0 or (width is not None and channel >= width)]
        if beyond:
            known = "" if width is None else f" of {width} channels"
            raise CircuitError(f"{self.path} keeps channel {beyond[0]} at {location}{known}; the file is damaged, fetch it again")
        if len(set(channels)) != len(channels):
            raise CircuitError(f"{self.path} keeps a channel at {location} twice; the file is damaged, fetch it again")
        return channels

    def _node_losses(self, value: Any, kept: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[float, ...]]:
        losses: dict[str, tuple[float, ...]] = {}
        for location, row in named(value, "ch_interv_losses").items():
            found, nodes = tuple(self._numbers(row, f"ch_interv_losses at {location}")), len(kept.get(location, ()))
            if len(found) != nodes:
                raise CircuitError(
                    f"{self.path} has {len(found)} losses for the {nodes} nodes kept at {location!r}; it is damaged, fetch it again"
                )
            losses[location] = found
        return losses

    def _layer_losses(self, value: Any) -> dict[str, float]:
        table = named(value, "layer_interv_losses")
        return {name: self._number(loss, f"layer_interv_losses of {name}", finite=False) for name, loss in table.items()}

    def _pairs(self, value: Any) -> tuple[PublishedPair, ...]:
        rows = items(value, "pair_data")
        if rows and _is_nested(rows[0]):
            # One old version of the files has a list for each process that wrote them.
            rows = [row for part in rows for row in items(part, "a part of pair_data")]
        return tuple(self._pair(row) for row in rows)

    def _pair(self, value: Any) -> PublishedPair:
        deltas, sources, targets, places = items(value, "a pair in pair_data", length=4)
        source, target = (text(name, "a pair's location") for name in items(places, "a pair's locations", length=2))
        what = f"pair_data from {source} to {target}"
        names = [self._names(part, f"the names in {what}") for part in (sources, targets)]
        tensor = self._tensor(deltas, what)
        shape = (len(names[0]), len(names[1]))
        if tensor.numel() == 0 and 0 in shape:
            tensor = torch.zeros(shape)
        if tensor.shape != shape or not tensor.is_floating_point():
            raise wrong(what, deltas, f"a tensor of floats of shape {shape}, as its names say")
        return PublishedPair(source, target, names[0], names[1], tensor)

    def _names(self, value: Any, what: str) -> tuple[int | str, ...]:
        entries = list(self._entries(value, what))
        biased = bool(entries) and isinstance(entries[-1], str) and entries[-1] == BIAS
        channels = [self._integer(entry, what) for entry in (entries[:-1] if biased else entries)]
        return (*channels, BIAS) if biased else tuple(channels)

    def _task_samples(self, value: Any) -> tuple[tuple[tuple[int, ...], ...], dict[str, dict[int, Tensor]]]:
        if value is None:
            return (), {}
        documents, table = items(value, "task_samples", length=2)
        rows = list(documents) if isinstance(documents, list | tuple) else self._rows(documents, "the documents of task_samples")
        prompts = tuple(_unpadded(self._integers(row, "a document of task_samples")) for row in rows)
        activations: dict[str, dict[int, Tensor]] = {}
        for location, channels in named(table, "the activations of task_samples").items():
            what = f"the activations of task_samples at {location}"
            found = {self._integer(channel, what): self._stacked(row, what) for channel, row in mapping(channels, what).items()}
            activations[location] = found
        return prompts, activations

    def _search_losses(self, value: Any) -> tuple[tuple[float, float], ...]:
        pairs = [items(pair, "an entry of all_loss", length=2) for pair in self._entries(value or [], "all_loss")]
        return tuple((self._number(s, "all_loss", finite=False), self._number(x, "all_loss", finite=False)) for s, x in pairs)

    def _model_config(self, value: Any) -> dict[str, Any]:
        """The fields that the architecture knows; of others the viewer drops what it does not know, too."""
        if value is None:
            return {}
        table = dict(named(value, "beeg_model_config"))
        if "n_mlp" in table:
            table["d_mlp"] = table.pop("n_mlp")
        fields = {
            name: self._plain(entry, f"beeg_model_config {name}") for name, entry in table.items() if name in REFERENCE_FIELDS
        }
        for name in ("n_layer", "n_head", "d_model", "d_head", "d_mlp", "d_pos_emb"):
            if fields.get(name) is not None:
                integer(fields[name], f"{name} of the model", most=1 << 20)
        return fields

    def _prune_config(self, value: Any) -> dict[str, Any]:
        return {name: self._plain(entry, f"prune_config {name}") for name, entry in named(value, "prune_config").items()}

    def _plain(self, value: Any, what: str, depth: int = 0) -> Any:
        """A setting as JSON can hold it; what has no JSON form (a dtype, a device) as its text."""
        self._spend(1, what)
        if depth > _MOST_DEPTH:
            raise CircuitError(f"{what} in {self.path} is nested more than {_MOST_DEPTH} deep; no published file has such settings")
        if value is None or isinstance(value, bool | int | str):
            return text(value, what) if isinstance(value, str) else value
        if isinstance(value, float):
            return value if value == value and abs(value) != float("inf") else str(value)
        if isinstance(value, Mapping):
            return {str(key): self._plain(entry, what, depth + 1) for key, entry in named(value, what).items()}
        if isinstance(value, list | tuple):
            return [self._plain(entry, what, depth + 1) for entry in value]
        if isinstance(value, Tensor):
            return [self._scalar(entry, what) for entry in self._entries(value, what)] if value.ndim else self._scalar(value, what)
        return str(value)

    def _stacked(self, value: Any, what: str) -> Tensor:
        rows = [self._tensor(row, what) for row in value] if isinstance(value, list | tuple) else None
        if rows is not None:
            self._spend(sum(row.numel() for row in rows), what)
            if not rows or any(row.ndim != 1 or row.shape != rows[0].shape for row in rows):
                raise wrong(what, value, "a tensor [prompt, position], or one list of equally long ones")
        tensor = self._tensor(value, what) if rows is None else torch.stack(rows)
        if tensor.ndim != 2:
            raise wrong(what, value, "a tensor [prompt, position]")
        return tensor

    def _rows(self, value: Any, what: str) -> list[Tensor]:
        tensor = self._tensor(value, what)
        if tensor.ndim != 2:
            raise wrong(what, value, "a tensor [document, position]")
        self._spend(_ROW * len(tensor), what)
        return list(tensor)

    def _tensor(self, value: Any, what: str) -> Tensor:
        if not is_plain_tensor(value):
            raise wrong(f"{what} in {self.path}", value, "a dense tensor with all its entries in the file")
        return value.detach()

    def _entries(self, value: Any, what: str) -> Sequence[Any]:
        """The entries of a list, or of a tensor with one axis."""
        if isinstance(value, Tensor):
            if self._tensor(value, what).ndim != 1:
                raise wrong(f"{what} in {self.path}", value, "a tensor with one axis")
            self._spend(value.numel(), what)
            return value.tolist()
        self._spend(len(items(value, f"{what} in {self.path}")), what)
        return value

    def _scalar(self, value: Any, what: str) -> Any:
        """A number, out of its tensor if it is in one."""
        if not isinstance(value, Tensor):
            return value
        if self._tensor(value, what).numel() != 1:
            raise wrong(f"{what} in {self.path}", value, "one number")
        return value.item()

    def _integers(self, value: Any, what: str) -> list[int]:
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool):
            raise wrong(f"{what} in {self.path}", value, "integers")
        return [self._integer(entry, what, least=-(1 << 53)) for entry in self._entries(value, what)]

    def _integer(self, value: Any, what: str, *, least: int = 0) -> int:
        return integer(self._scalar(value, what), f"{what} in {self.path}", least=least)

    def _numbers(self, value: Any, what: str) -> list[float]:
        return [self._number(entry, what, finite=False) for entry in self._entries(value, what)]

    def _number(self, value: Any, what: str, *, finite: bool = True) -> float:
        return number(self._scalar(value, what), f"{what} in {self.path}", finite=finite)

    def _spend(self, count: int, what: str) -> None:
        self.left -= count
        if self.left < 0:
            raise CircuitError(f"{self.path} holds more than {_MOST_VALUES} values, at {what}; no published file does, refused")


def _is_nested(row: Any) -> bool:
    """Whether an entry of pair_data is a list of pairs: a pair itself begins with its tensor."""
    return isinstance(row, list | tuple) and (not row or not isinstance(row[0], Tensor))


def _unpadded(tokens: list[int]) -> tuple[int, ...]:
    length = len(tokens)
    while length and tokens[length - 1] == 0:
        length -= 1
    return tuple(tokens[:length])


def _width(location: str, config: Mapping[str, Any]) -> int | None:
    """How many channels the location has in a model of this configuration; None if it does not say. Zero beyond the last layer."""
    layer, _, kind = location.partition(".")
    if kind and config.get("n_layer") is not None and int(layer) >= config["n_layer"]:
        return 0
    d_model, n_head = config.get("d_model"), config.get("n_head")
    if kind in ("attn.q", "attn.k", "attn.v"):
        d_head = config.get("d_head") or (d_model // n_head if d_model and n_head else None)
        return n_head * d_head if n_head and d_head else None
    if kind == "mlp.post_act":
        return config.get("d_mlp") or (4 * d_model if d_model else None)
    if d_model is None:
        return None
    return d_model + (config.get("d_pos_emb") or 0) if kind.endswith("act_in") else d_model
