"""Small networks that draw a picture, pixel by pixel from its coordinates: the evolved and trained ones of arXiv:2505.11581.

The forward pass is that of akarshkumar0101/fer (`src/cppn.py`): inputs `y, x, 1.4 r, 1` on [-1, 1]², layers without bias whose
units have different activations, hue, saturation and value out.
"""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from jaxtyping import Float

from sparse_lens.errors import DataError, UnknownNameError

_MOST_BYTES, _MOST_WIDTH, _MOST_LAYERS, _MOST_HEADER = 1 << 26, 1024, 256, 1024
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_ACTIVATIONS = {
    "cache": lambda x: x,
    "identity": lambda x: x,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "relu": lambda x: x.clip(min=0),
    "sigmoid": lambda x: np.tanh(x / 2),
    "gaussian": lambda x: 2 * np.exp(-(x**2)) - 1,
}
"""By name; sigmoid and Gaussian run from -1 to 1."""

_LINEAR = ("cache", "identity")


@dataclass(frozen=True, eq=False)
class PictureNetwork:
    """Weights `[in, out]` of each layer, and the activations of a hidden layer's units in order."""

    weights: tuple[np.ndarray, ...]
    activations: tuple[str, ...]

    def draw(self, size: int = 64) -> Float[np.ndarray, "row column rgb"]:
        """The picture, colours from 0 to 1."""
        return self._finished(0, self._inputs(size), size)

    def perturbed(
        self, kind: str, size: int = 64, *, n_weights: int = 100, seed: int = 0
    ) -> Iterator[Float[np.ndarray, "row column rgb"]]:
        """The picture with each hidden unit that has outgoing weights halved, or each of `n_weights` nonzero ones grown by half.

        `kind` is `unit` or `weight`; raises `UnknownNameError` for another.
        """
        places: list[tuple[int, Any]]
        if kind == "unit":
            places = [(layer, (unit,)) for layer, w in enumerate(self.weights) if layer for unit in np.flatnonzero(w.any(1))]
        elif kind == "weight":
            every = [(layer, tuple(place)) for layer, weight in enumerate(self.weights) for place in np.argwhere(weight)]
            places = [every[place] for place in np.random.default_rng(seed).permutation(len(every))[:n_weights]]
        else:
            raise UnknownNameError("kind of unit", kind, ("unit", "weight"))
        read = [self._inputs(size)]
        for weight in self.weights[:-1]:
            read.append(self._activated(read[-1] @ weight))
        for layer, place in places:
            changed = self.weights[layer].copy()
            changed[place] *= 0.5 if kind == "unit" else 1.5
            weights = (*self.weights[:layer], changed, *self.weights[layer + 1 :])
            yield replace(self, weights=weights)._finished(layer, read[layer], size)

    def rotated(self, seed: int = 0) -> PictureNetwork:
        """The same picture from other units: those without an activation are mixed by a random rotation, undone by the next
        layer.
        """
        linear = np.isin(self.activations, _LINEAR)
        weights, generator = [weight.copy() for weight in self.weights], np.random.default_rng(seed)
        for before, after in pairwise(weights):
            rotation = np.linalg.qr(generator.standard_normal((linear.sum(), linear.sum())))[0]
            before[:, linear] = before[:, linear] @ rotation
            after[linear] = rotation.T @ after[linear]
        return replace(self, weights=tuple(weights))

    def shuffled(self, seed: int = 0) -> PictureNetwork:
        """The random-weights twin: the nonzero weights of every layer in an order of their own."""
        generator, weights = np.random.default_rng(seed), [weight.copy() for weight in self.weights]
        for weight in weights:
            weight[weight != 0] = generator.permutation(weight[weight != 0])
        return replace(self, weights=tuple(weights))

    def _inputs(self, size: int) -> Float[np.ndarray, "pixel 4"]:
        line = np.linspace(-1, 1, size)
        down, right = np.meshgrid(line, line, indexing="ij")
        return np.stack([right, down, 1.4 * np.hypot(down, right), np.ones_like(down)], axis=-1).reshape(-1, 4)

    def _finished(self, layer: int, units: Float[np.ndarray, "pixel unit"], size: int) -> Float[np.ndarray, "row column rgb"]:
        """The picture from what the given layer reads."""
        for weight in self.weights[layer:-1]:
            units = self._activated(units @ weight)
        return _rgb(units @ self.weights[-1]).reshape(size, size, 3)

    def _activated(self, units: Float[np.ndarray, "pixel unit"]) -> Float[np.ndarray, "pixel unit"]:
        """In place."""
        names = np.array(self.activations)
        for name in set(self.activations) - {*_LINEAR}:
            units[:, names == name] = _ACTIVATIONS[name](units[:, names == name])
        return units


def read_picture_network(npz_path: str | Path) -> PictureNetwork:
    """Read `W0`, `W1`, ... `[in, out]` in order of the layers and `activations`, each `name:count` of a hidden layer's units.

    Anything pickled is refused. Raises `DataError` for a file that is too large or holds no such network, `UnknownNameError` for an
    activation that is not known.
    """
    path = Path(npz_path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > _MOST_BYTES:
                raise DataError(f"{path} would unpack to {size:,} bytes, at most {_MOST_BYTES:,} are read")
            for member in archive.infolist():
                if member.filename.startswith("W") or member.filename == "activations.npy":
                    _check_header(archive, member)
        with np.load(path, allow_pickle=False) as arrays:
            n_layers = sum(name.startswith("W") for name in arrays.files)
            weights = tuple(np.asarray(arrays[f"W{layer}"], dtype=np.float64) for layer in range(n_layers))
            counts = [(name, int(count)) for name, _, count in (str(entry).partition(":") for entry in arrays["activations"])]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, TokenError, *_DAMAGED) as error:
        raise DataError(f"{path} is no picture network (npz of W0, W1, ... and activations): {error}") from error
    if min((count for _, count in counts), default=1) < 1 or sum(count for _, count in counts) > _MOST_WIDTH:
        raise DataError(f"{path} names fewer than one unit of an activation, or more than {_MOST_WIDTH} units in all")
    activations = tuple(name for name, count in counts for _ in range(count))
    for name in activations:
        if name not in _ACTIVATIONS:
            raise UnknownNameError("activation", name, _ACTIVATIONS)
    _check_shapes(path, weights, len(activations))
    return PictureNetwork(weights, activations)


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise `ValueError` for an array whose header promises more than its bytes hold, or other than real numbers and text."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file, max_header_size=_MOST_HEADER)
    if dtype.kind not in "bfiuU":
        raise ValueError(f"{member.filename} holds {dtype}, neither real numbers nor text")
    if dtype.itemsize == 0 or max((math.prod(shape) * dtype.itemsize, *shape)) > member.file_size:
        raise ValueError(f"{member.filename} says that it holds {shape} of {dtype} in {member.file_size:,} bytes")


def _check_shapes(path: Path, weights: tuple[np.ndarray, ...], width: int) -> None:
    wanted = [(4, width), *[(width, width)] * (len(weights) - 2), (width, 3)]
    seen = [weight.shape for weight in weights]
    if not 2 <= len(weights) <= _MOST_LAYERS or seen != wanted:
        raise DataError(
            f"{path} holds {len(weights)} layers of shapes {seen[:4]}... for {width} activations; the first must be [4, {width}], "
            f"the last [{width}, 3], all between [{width}, {width}], at most {_MOST_LAYERS} layers of {_MOST_WIDTH} units"
        )
    if not all(np.isfinite(weight).all() for weight in weights):
        raise DataError(f"{path} holds weights that are NaN or infinite")


def _rgb(output: Float[np.ndarray, "pixel hsv"]) -> Float[np.ndarray, "pixel rgb"]:
    """Colours of hue (mod 1, from -1), saturation (clipped) and value (its size, clipped)."""
    hue, saturation, value = (output[:, 0] + 1) % 1, output[:, 1].clip(0, 1), np.abs(output[:, 2]).clip(0, 1)
    place = (np.array([[5.0], [3.0], [1.0]]) + 6 * hue) % 6
    return (value - value * saturation * np.minimum(place, 4 - place).clip(0, 1)).T
