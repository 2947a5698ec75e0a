"""A pair: the weight-sparse model, its dense partners and their dictionaries, opened as bridges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sparse_lens.data import load_tokenizer
from sparse_lens.dictionaries import Dictionary, load_saelens
from sparse_lens.errors import CheckpointError, ConfigError, UnknownNameError
from sparse_lens.hooks import load
from sparse_lens.models_shipped import DEFAULT_PAIR, PAIR_FILE, address_of, find_pair, folder_at, pair_windows
from sparse_lens.results import Result, bootstrap_mean, exact
from sparse_lens.training import window_losses

ROLES = ("sparse", "dense", "dense_matched")
"""The models of a pair: weight-sparse; dense of the same shape and tokens; dense of the same loss."""


@dataclass(frozen=True)
class ModelPair:
    """A folder with `pair.json`; models are opened when first asked for.

    `pair.json` names the folders of `sparse`, `dense` and `dense_matched`, of the `dictionaries` trained on the matched model, the
    `tasks` of the default comparison, under `seeds` the models of further training seeds by role, and under `arms` models that are
    held against the pair's, by what they are called. `replaced` puts other models, by role, in the place of its own.
    """

    folder: Path
    replaced: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def open(cls, name_or_path: str | Path = DEFAULT_PAIR) -> ModelPair:
        """A shipped pair by name, or a folder; raises `UnknownNameError` or `CheckpointError`."""
        pair = cls(find_pair(name_or_path))
        missing = [role for role in ROLES if not isinstance(pair.record.get(role), str)]
        if missing:
            raise CheckpointError(f"{pair.folder / PAIR_FILE} names no {', '.join(missing)}; a pair needs {', '.join(ROLES)}")
        for part in ("dictionaries", "tasks"):
            names = pair.record.get(part, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise CheckpointError(f"{pair.folder / PAIR_FILE}: {part} must be a list of names, got {names!r}")
        for name in [*(pair.model_name(role) for role in ROLES), *pair.record.get("dictionaries", [])]:
            pair._part(name)
        pair.training_seeds()
        pair.arms()
        return pair

    def with_models(self, **models: str | Path) -> ModelPair:
        """The same pair with the models of other folders, or shipped ones by name; another matched one leaves its dictionaries.

        A `Path` is meant as one, whatever it is called.

        A model may have a tokenizer of its own: tasks are text, and it reads the text of the pair's windows in its own tokens
        (`windows_of`). Raises `UnknownNameError` for a role that there is not, `CheckpointError` for a folder without a tokenizer.
        """
        folders = {role: (folder_at(model) if isinstance(model, str) else Path(model)) for role, model in models.items()}
        for role, folder in folders.items():
            if role not in ROLES:
                raise UnknownNameError("role", role, ROLES)
            _vocabulary(folder)
        return replace(self, replaced={**self.replaced, **folders})

    def training_seeds(self) -> list[ModelPair]:
        """The pair itself and, for each further training seed that its folder holds, the pair with the models of that seed.

        A pair with replaced models stands alone: nobody knows which seed they belong to.
        """
        further = [] if self.replaced else self.record.get("seeds", [])
        if not isinstance(further, list) or not all(_names_models(models) for models in further):
            raise CheckpointError(f"{self.folder / PAIR_FILE}: seeds must list objects from role to folder, got {further!r}")
        return [self, *(self.with_models(**{role: self._part(name) for role, name in models.items()}) for models in further)]

    def arms(self) -> dict[str, Path]:
        """Folders of the further models that the pair's folder holds to be compared with it, by name: pruned ones, say.

        A pair with replaced models has none: they are controls of its own.
        """
        arms = self.record.get("arms", {})
        if not isinstance(arms, dict) or not all(isinstance(name, str) for name in arms.values()):
            raise CheckpointError(f"{self.folder / PAIR_FILE}: arms must name a folder each, got {arms!r}")
        folders = {name: self._part(folder) for name, folder in arms.items()}
        for folder in folders.values():
            self.check_tokens(folder)
        return {} if self.replaced else folders

    def check_tokens(self, folder: str | Path) -> None:
        """Raise `ConfigError` for a model in whose tokens the pair's windows are not."""
        if _vocabulary(Path(folder)) != _vocabulary(self._part(str(self.record["sparse"]))):
            raise ConfigError(
                f"the model in {folder} has another tokenizer than the pair; put it in one of the pair's roles instead"
            )

    @property
    def address(self) -> str:
        """Text from which `at` opens the same pair elsewhere: its `address_of`, in JSON with those of replaced models."""
        if not self.replaced:
            return address_of(self.folder)
        replaced = {role: address_of(folder) for role, folder in self.replaced.items()}
        return json.dumps({"folder": address_of(self.folder), "replaced": replaced}, sort_keys=True)

    @classmethod
    def at(cls, address: str) -> ModelPair:
        """The pair of an `address`, or of a name or folder as `open` takes it."""
        if not address.startswith("{"):
            return cls.open(address)
        record = json.loads(address)
        return cls.open(record["folder"]).with_models(**record["replaced"])

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of `pair.json`."""
        path = self.folder / PAIR_FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{path} holds a {type(record).__name__}, not an object with the names of the models")
        return record

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def default_tasks(self) -> list[str] | None:
        """Tasks of the default comparison, None if the pair names none."""
        return self.record.get("tasks")

    def model_name(self, role: str) -> str:
        """Name of the model in a role."""
        if role in self.replaced:
            return self.replaced[role].absolute().name
        return str(self.record[role])

    def model_folder(self, role: str) -> Path:
        """Folder of the model in a role: inside the pair's folder, unless it was replaced."""
        return self.replaced[role] if role in self.replaced else self._part(self.model_name(role))

    def open_model(self, role: str) -> Any:
        """A bridge of its own around the model in `role`; two calls give two bridges, which may run side by side."""
        return load(self.model_folder(role))

    def dictionaries(self) -> Sequence[Dictionary]:
        """The SAEs of the matched model; none if another stands in its place."""
        if "dense_matched" in self.replaced:
            return []
        return [load_saelens(self._part(str(name))) for name in self.record.get("dictionaries", [])]

    @cached_property
    def windows(self) -> dict[str, np.ndarray]:
        """Token windows `reference` and `heldout`, `[window pos]`, in the tokens of the pair's own models."""
        return pair_windows(self.folder)

    def shares_tokens(self, role: str) -> bool:
        """Whether the model in `role` has the tokenizer of the pair's windows: only then can tokens be compared one by one."""
        return _vocabulary(self.model_folder(role)) == _vocabulary(self._part(str(self.record["sparse"])))

    def same_tokens(self, first: str, second: str) -> bool:
        """Whether the models in two roles have one tokenizer: only then can their losses be compared in nats a token."""
        return _vocabulary(self.model_folder(first)) == _vocabulary(self.model_folder(second))

    def windows_of(self, role: str) -> dict[str, np.ndarray]:
        """The pair's windows as the model in `role` reads them: the same text, cut anew into its own tokens where they differ."""
        if self.shares_tokens(role):
            return self.windows
        own, new = (load_tokenizer(folder) for folder in (self._part(str(self.record["sparse"])), self.model_folder(role)))
        length = min(self.windows["reference"].shape[1], _block_size(self.model_folder(role)))
        lengths = {"reference": length, "heldout": length + 1}
        return {name: _read_anew(self.windows[name], own, new, length) for name, length in lengths.items()}

    def _part(self, name: str) -> Path:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{self.folder / PAIR_FILE} names {name!r}, a place outside its own folder; refused")
        return self.folder / name


def _names_models(models: Any) -> bool:
    return isinstance(models, dict) and bool(models) and all(isinstance(name, str) for name in models.values())


def _vocabulary(folder: Path) -> Any:
    try:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return content["model"]["vocab"], content["added_tokens"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the model's folder {folder} has no readable tokenizer.json ({error})") from error


def _block_size(folder: Path) -> int:
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["block_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the model's folder {folder} names no block_size in its config.json ({error})") from error


def _read_anew(windows: np.ndarray, own: Tokenizer, new: Tokenizer, length: int) -> np.ndarray:
    """The text of each window in tokens of another tokenizer, no more than `length`; the 5 % of windows that come out shortest go.

    A window is a text of its own: run together they would be read across places where nothing goes on.
    """
    texts = [text.strip("\ufffd") for text in own.decode_batch(windows.tolist(), skip_special_tokens=True)]  # of a cut character
    rows = [np.array(encoding.ids, dtype=np.int64) for encoding in new.encode_batch(texts, add_special_tokens=False)]
    length = min(length, int(np.quantile([len(row) for row in rows], 0.05, method="lower")))
    if length < 2:
        raise CheckpointError("the pair's windows hold fewer than two of the model's tokens each: is this a tokenizer of text?")
    return np.stack([row[:length] for row in rows if len(row) >= length])


def model_facts(bridge: Any, heldout: np.ndarray) -> dict[str, Result]:
    """Pretraining loss on held-out real files (nats per token), parameters, nonzeros, and nonzeros of the matrices."""
    return {"loss": bootstrap_mean(window_losses(bridge, heldout))} | model_sizes(bridge)


def model_sizes(bridge: Any) -> dict[str, Result]:
    """Parameters and nonzeros of a model, and those of its matrices alone."""
    weights = dict(bridge.state_dict())
    matrices = [w for name, w in weights.items() if w.ndim == 2 and not name.startswith("bigram")]
    return {
        "parameters": exact(sum(w.numel() for w in weights.values())),
        "nonzeros": exact(sum(int((w != 0).sum()) for w in weights.values())),
        "matrix_parameters": exact(sum(w.numel() for w in matrices)),
        "matrix_nonzeros": exact(sum(int((w != 0).sum()) for w in matrices)),
    }


def facts_of_role(pair: str, role: str, windows: int | None = None) -> dict[str, Result]:
    """`model_facts` of one model of a pair given by name or folder, on the first `windows` held-out windows (all): a cell."""
    opened = ModelPair.open(pair)
    return model_facts(opened.open_model(role), opened.windows["heldout"][:windows])
