"""What every test runs under: shapes and types checked at run time, no network, the same random examples each time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest
import torch

# Loaded before the hook below: it compiles anew whatever is first imported from a module that it checks.
import transformer_lens  # noqa: F401
from transformers import GenerationMixin as GenerationMixin

CHECKOUT = Path(__file__).parents[1]


UNCHECKED = ("import numba", "import strict")
"""Numba compiles plain functions only; the constructor of a strict Hugging Face configuration hides its true signature."""


def checked_modules() -> list[str]:
    """The modules whose annotations are held to at run time: all but those that import one of the above."""
    folders = {"sparse_lens": CHECKOUT / "sparse_lens"}
    folders |= {f"sparse_lens.{name}": CHECKOUT / name for name in ("hooks", "comparisons")}
    names: list[str] = []
    for package, folder in folders.items():
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.stem not in ("__init__", "__main__") and not any(name in text for name in UNCHECKED):
                names.append(".".join((package, *path.relative_to(folder).with_suffix("").parts)))
    return names


# As for a static checker, an int is good where a float is asked for.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook(checked_modules(), CHECKER)

if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side: one core each
    torch.set_num_threads(1)

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("repeatable")


def pytest_runtest_setup() -> None:
    """The same random numbers in every run, whichever tests went before, and other ones than tests' own generators draw."""
    torch.manual_seed(251_113_653)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that reaches for another machine, even if the code under test swallows the error."""
    attempts: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def is_local(host: Any) -> bool:
        return host in (None, "", "localhost", "::1") or str(host).startswith("127.")

    def guarded_look_up(host: Any, *rest: Any, **options: Any) -> Any:
        if not is_local(host):
            attempts.append(str(host))
            raise OSError(f"the tests run offline, but {host!r} was looked up")
        return look_up(host, *rest, **options)

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            attempts.append(str(address))
            raise OSError(f"the tests run offline, but {address!r} was called")
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    yield
    assert not attempts, f"the code under test reached for the network: {attempts}"
