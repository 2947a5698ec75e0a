"""sparse_lens: weight-sparse transformers in TransformerLens, and their circuits beside SAE features.

The public names are imported when they are first used: `import sparse_lens` loads neither torch nor TransformerLens.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_lens.circuits import Circuit as Circuit
    from sparse_lens.circuits import CircuitCard as CircuitCard
    from sparse_lens.circuits import CircuitScores as CircuitScores
    from sparse_lens.circuits import evaluate_circuit as evaluate_circuit
    from sparse_lens.circuits import find_circuit as find_circuit
    from sparse_lens.circuits import score_circuit as score_circuit
    from sparse_lens.comparisons import Comparison as Comparison
    from sparse_lens.comparisons import ModelPair as ModelPair
    from sparse_lens.comparisons import Report as Report
    from sparse_lens.comparisons import claims as claims
    from sparse_lens.comparisons import compare as compare
    from sparse_lens.errors import SparseLensError as SparseLensError
    from sparse_lens.hooks import available_models as available_models
    from sparse_lens.hooks import load as load
    from sparse_lens.hooks import sparsity_report as sparsity_report
    from sparse_lens.tasks import available_tasks as available_tasks
    from sparse_lens.tasks import get_task as get_task
    from sparse_lens.tasks import register_task as register_task
    from sparse_lens.training import TrainingConfig as TrainingConfig
    from sparse_lens.training import TrainingResult as TrainingResult
    from sparse_lens.training import train as train

    __version__: str

__all__ = [
    "Circuit",
    "CircuitCard",
    "CircuitScores",
    "Comparison",
    "ModelPair",
    "Report",
    "SparseLensError",
    "TrainingConfig",
    "TrainingResult",
    "__version__",
    "available_models",
    "available_tasks",
    "claims",
    "compare",
    "evaluate_circuit",
    "find_circuit",
    "get_task",
    "load",
    "register_task",
    "score_circuit",
    "sparsity_report",
    "train",
]

_HOMES = {
    "circuits": ("Circuit", "CircuitCard", "CircuitScores", "evaluate_circuit", "find_circuit", "score_circuit"),
    "comparisons": ("Comparison", "ModelPair", "Report", "claims", "compare"),
    "errors": ("SparseLensError",),
    "hooks": ("available_models", "load", "sparsity_report"),
    "tasks": ("available_tasks", "get_task", "register_task"),
    "training": ("TrainingConfig", "TrainingResult", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value = version("sparse-lens")
    elif name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
