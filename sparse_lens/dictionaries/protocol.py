"""`Dictionary`: what neurons, rotated neurons, SAE latents and transcoder latents have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.errors import DataError


@runtime_checkable
class Dictionary(Protocol):
    """A map from the activation at one hook to latents, and from latents to the activation at a hook.

    Everything that measures, splices or searches takes a `Dictionary` and asks nothing else of it; neurons are the
    identity. Encoding and decoding are pure functions of their argument, differentiable, and keep leading axes.
    """

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latent"]:
        """Latents of the activation at `hook_in`."""
        ...

    def decode(self, f: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows d_out"]:
        """The activation at `hook_out` that the latents stand for, bias included: affine, `f @ W_dec` and a constant."""
        ...

    @property
    def W_dec(self) -> Float[Tensor, "latent d_out"]:
        """The direction that each latent writes; its dtype is the one the dictionary computes in."""
        ...

    @property
    def hook_in(self) -> str:
        """Name of the hook that is read."""
        ...

    @property
    def hook_out(self) -> str:
        """Name of the hook that is written; the same as `hook_in` but for transcoders."""
        ...

    @property
    def name(self) -> str:
        """A short name for tables, unlike that of any dictionary used beside it."""
        ...

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that change with anything that changes the function or its place."""
        ...

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        ...

    @property
    def exact(self) -> bool:
        """Whether `decode(encode(x))` is `x` but for rounding, so that there is no error node to score."""
        ...


@runtime_checkable
class Skips(Protocol):
    """A dictionary that hands something on past its latents: a skip transcoder."""

    def skip(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """What is added to `decode` at `hook_out`, given the activation at `hook_in`."""
        ...


class AtOneHook:
    """The part of a `Dictionary` that reads and writes the same hook, `hook`."""

    hook: str

    @property
    def hook_in(self) -> str:
        """The hook that is read, and written."""
        return self.hook

    @property
    def hook_out(self) -> str:
        """The hook that is written, and read."""
        return self.hook


def skipped(dictionary: Dictionary, x: Float[Tensor, "*rows d_in"]) -> Tensor | float:
    """What a dictionary writes past its latents: 0 of all but skip transcoders. It is neither latent nor error, and never ablated.

    The activation at `hook_out` is `decode(f) + skipped(dictionary, x) + error` for the latents `f` of the activation `x` at
    `hook_in`.
    """
    return dictionary.skip(x) if isinstance(dictionary, Skips) else 0.0


def check_width(dictionary: Dictionary, x: Float[Tensor, "*rows d"], d_in: int) -> Float[Tensor, "*rows d"]:
    """`x` itself, if it is as wide as the dictionary reads; raises `DataError` for the activation of another model or hook."""
    if x.shape[-1] != d_in:
        raise DataError(
            f"dictionary {dictionary.name!r} reads {d_in} channels, the activation at {dictionary.hook_in!r} has {x.shape[-1]}; "
            "is it of another model or hook?"
        )
    return x


def dictionary_hash(kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of a kind, plain fields, and tensors by shape and value, taken as float32."""
    digest = hashlib.sha256(json.dumps([kind, dict(fields)], sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()[:16]
