"""The public names: these and no others, each the same object as in the package that it comes from."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

import pytest

import sparse_lens

HOMES = {
    "Circuit": "circuits",
    "CircuitCard": "circuits",
    "CircuitScores": "circuits",
    "Comparison": "comparisons",
    "ModelPair": "comparisons",
    "Report": "comparisons",
    "SparseLensError": "errors",
    "TrainingConfig": "training",
    "TrainingResult": "training",
    "available_models": "hooks",
    "available_tasks": "tasks",
    "claims": "comparisons",
    "compare": "comparisons",
    "evaluate_circuit": "circuits",
    "find_circuit": "circuits",
    "get_task": "tasks",
    "load": "hooks",
    "register_task": "tasks",
    "score_circuit": "circuits",
    "sparsity_report": "hooks",
    "train": "training",
}


def test_the_public_names_are_frozen() -> None:
    """A name joins or leaves `sparse_lens` on purpose only: here, in the design, and in the documentation."""
    assert sorted(sparse_lens.__all__) == sorted([*HOMES, "__version__"])


@pytest.mark.parametrize("name", HOMES)
def test_a_name_is_the_object_of_its_home(name: str) -> None:
    """The facade hands out what the sub-package defines, and keeps it after the first use."""
    home = import_module(f"sparse_lens.{HOMES[name]}")
    assert getattr(sparse_lens, name) is getattr(home, name)
    assert vars(sparse_lens)[name] is getattr(home, name)


def test_dir_lists_the_names_before_their_first_use() -> None:
    """Completion in a shell shows every public name."""
    assert set(sparse_lens.__all__) <= set(dir(sparse_lens))


def test_version() -> None:
    """`__version__` is the installed distribution's."""
    assert sparse_lens.__version__ == version("sparse-lens")


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module, and does not import anything on the way."""
    with pytest.raises(AttributeError, match="'sparse_lens' has no attribute 'laod'"):
        _ = sparse_lens.laod  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(sparse_lens, "claim")
