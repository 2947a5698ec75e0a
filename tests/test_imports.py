"""The order of the packages, read from the syntax trees: of the checkout, or of an unpacked wheel (SPARSE_LENS_TREE).

This file needs pytest and the standard library alone: it also runs where the package's dependencies are not installed.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
TREE = Path(os.environ.get("SPARSE_LENS_TREE", CHECKOUT)).resolve()
MAPPED = ("hooks", "comparisons")
"""Folders that stand at the top of a checkout and inside `sparse_lens` in a wheel."""

LEVELS = (
    ("errors", "results", "files", "processes"),
    ("kernels",),
    ("models", "models_shipped", "data", "tasks", "dictionaries"),
    ("training",),
    ("hooks",),
    ("circuits",),
    ("comparisons",),
    ("report",),
    ("benchmarks", "cli", "__main__"),
)
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
HEAVY = ("torch", "transformers", "transformer_lens", "sae_lens", "datasets", "numba", "pandas")


@dataclass(frozen=True)
class Import:
    """One import of a module of this package: where it stands, and the full dotted name that it binds or runs."""

    module: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def find_modules(tree: Path) -> dict[str, Path]:
    """Path of every module of the package by its dotted name."""
    roots = {"sparse_lens": tree / "sparse_lens"}
    roots |= {f"sparse_lens.{name}": tree / name for name in MAPPED if (tree / name / "__init__.py").is_file()}
    modules: dict[str, Path] = {}
    for package, folder in roots.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join((package, *parts)).removesuffix(".__init__")] = path
    return modules


def find_imports(module: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    """Every import of this package in a module, those in functions and under TYPE_CHECKING included."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [name if (name := f"{source}.{alias.name}") in modules else source for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "sparse_lens":
                yield Import(module, node.lineno, name)


def part_of(module: str) -> str:
    """The package of the order that a module belongs to; empty for `sparse_lens` itself."""
    return ".".join(module.split(".")[1:2])


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    return find_modules(TREE)


@pytest.fixture(scope="module")
def imports(modules: dict[str, Path]) -> list[Import]:
    return [found for module, path in modules.items() for found in find_imports(module, path, modules)]


def test_the_tree_is_whole(modules: dict[str, Path]) -> None:
    """Every part of the order is in the tree under test; otherwise the tests below would be hollow."""
    assert set(LEVEL_OF) <= {part_of(module) for module in modules}


def test_every_module_has_a_place_in_the_order(modules: dict[str, Path]) -> None:
    """A new module or package must be given its level in LEVELS (and in the design)."""
    assert {part_of(module) for module in modules} - {""} <= set(LEVEL_OF)


def test_imports_run_one_way(imports: list[Import]) -> None:
    """No module imports from a higher level; the facade `sparse_lens`, which imports all, is exempt."""
    upward = [
        str(found)
        for found in imports
        if part_of(found.module) and part_of(found.target)
        if LEVEL_OF[part_of(found.target)] > LEVEL_OF[part_of(found.module)]
    ]
    assert not upward


def test_nothing_below_the_top_level_imports_the_facade(imports: list[Import]) -> None:
    """`from sparse_lens import load` inside the package would be an upward import in disguise."""
    exempt = {"", *LEVELS[-1]}
    facade = [found for found in imports if found.target == "sparse_lens" and part_of(found.module) not in exempt]
    assert not [str(found) for found in facade]


def test_no_two_packages_import_each_other(imports: list[Import]) -> None:
    """Packages of one level may use one another, but in one direction only."""
    pairs = {(part_of(found.module), part_of(found.target)) for found in imports}
    mutual = {pair for pair in pairs if all(pair) and pair[0] != pair[1] and pair[::-1] in pairs}
    assert not mutual


def test_no_exported_name_equals_a_module(modules: dict[str, Path]) -> None:
    """`from package import name` must not depend on whether the module `package.name` was imported before."""
    clashes: list[str] = []
    for package, path in modules.items():
        if path.name == "__init__.py":
            children = {module.removeprefix(f"{package}.") for module in modules if module.startswith(f"{package}.")}
            clashes += [f"{package}.{name}" for name in exported_names(path) & children]
    assert not clashes


def exported_names(path: Path) -> set[str]:
    """Names that an `__init__.py` binds at its top level or under TYPE_CHECKING, or lists in `__all__`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = [*tree.body, *(inner for node in tree.body if isinstance(node, ast.If) for inner in node.body)]
    names: set[str] = set()
    for node in statements:
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            bound = {target.id for target in node.targets if isinstance(target, ast.Name)}
            names |= set(ast.literal_eval(node.value)) if "__all__" in bound else bound
    return names


def loaded_after(code: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter has loaded after `code`."""
    report = f"\nimport sys; print('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, cwd=TREE, check=True)
    return done.stdout.splitlines()[-1].removeprefix("loaded:").split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import sparse_lens` costs milliseconds: torch, TransformerLens and the others wait until they are needed."""
    assert loaded_after("import sparse_lens; dir(sparse_lens); sparse_lens.SparseLensError") == []


@pytest.mark.skipif(not (TREE / "sparse_lens" / "cli").is_dir(), reason="there is no command line yet")
@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["models", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """`sparse-lens --help` and the help of a subcommand answer at once."""
    code = (
        "import sys\nfrom sparse_lens.cli import main\n"
        f"sys.argv = {['sparse-lens', *arguments]}\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    assert not leave.code"
    )
    assert loaded_after(code) == []
