"""The wheel: every module and data file of the tree, the two top folders inside the package, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
FOLDERS = {"sparse_lens": "sparse_lens", "hooks": "sparse_lens/hooks", "comparisons": "sparse_lens/comparisons"}
"""Where each folder of the checkout lies in the wheel."""


def files_in_place() -> set[str]:
    """The files of the checkout's packages, named as the wheel must name them."""
    names: set[str] = set()
    for folder, place in FOLDERS.items():
        for path in (CHECKOUT / folder).rglob("*"):
            parts = path.relative_to(CHECKOUT / folder).parts
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in parts):
                names.add("/".join((place, *parts)))
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built offline from a copy, so that no earlier build leaks into it."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(CHECKOUT / folder, copy / folder)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", out, copy], check=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_file_of_the_tree_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Modules, py.typed, report templates and shipped models: all are there, each in its place inside the package."""
    assert files_in_place() - set(wheel.namelist()) == set()


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """No top-level `hooks`, no tests, no caches: only the tree's files and the wheel's own metadata."""
    extra = set(wheel.namelist()) - files_in_place()
    assert {name for name in extra if not name.split("/")[0].endswith(".dist-info")} == set()


def test_the_two_folders_are_inside_the_package(wheel: zipfile.ZipFile) -> None:
    """`sparse_lens.hooks` and `sparse_lens.comparisons` are there, generic `hooks` and `comparisons` are not."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {"sparse_lens/hooks/__init__.py", "sparse_lens/comparisons/__init__.py"} <= set(wheel.namelist())
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sparse_lens"}


def test_entry_points(wheel: zipfile.ZipFile) -> None:
    """The command line, and the architecture that TransformerLens discovers."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    parser = ConfigParser()
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parser.read_string(wheel.read(name).decode())
    assert dict(parser["console_scripts"]) == {"sparse-lens": "sparse_lens.cli:main"}
    assert dict(parser["transformer_lens.architectures"]) == {
        "CircuitGPTForCausalLM": "sparse_lens.hooks.adapter:CircuitGPTArchitectureAdapter"
    }


def test_the_list_of_packages_is_complete() -> None:
    """Setuptools packs the listed packages only: every folder with an `__init__.py` is on the list, and no other."""
    listed = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = [name.removesuffix("/__init__.py") for name in files_in_place() if name.endswith("/__init__.py")]
    assert sorted(listed) == sorted(folder.replace("/", ".") for folder in folders)


def test_constraints_name_no_local_versions() -> None:
    """`.ci/constraints.txt` pins plain releases, which every machine can install."""
    lines = (CHECKOUT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all(len(pin.split("==")) == 2 and "+" not in pin and "/" not in pin for pin in pins)
