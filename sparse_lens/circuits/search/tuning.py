"""Hyperparameters of a search, searched for with optuna (in place of CARBS, which arXiv:2511.13653 used)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.nodes import DEFAULT_TARGET, prepare_search, search_circuit
from sparse_lens.circuits.search.objectives import Objective, TargetKind
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import ConfigError
from sparse_lens.tasks import AnyTask

if TYPE_CHECKING:
    import optuna


def tune_search(
    bridge: Any,
    task: str | AnyTask,
    n_trials: int = 16,
    *,
    target_loss: float = DEFAULT_TARGET,
    target_kind: TargetKind = "task",
    dictionaries: Sequence[Dictionary] = (),
    config: SearchConfig | None = None,
    windows: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SearchConfig:
    """The configuration that finds the smallest circuit in `n_trials` searches at equal steps and candidates.

    Learning rate, temperature, first penalties (a common factor) and pairs per step vary around `config`, which is itself the first
    trial: the result is never worse on these prompts. Use other prompts (another seed) to compare sizes afterwards. A trial that
    misses the target counts as the whole model, plus what it misses by. Raises `ConfigError` without optuna and for no trials.
    """
    if n_trials < 1:
        raise ConfigError(f"n_trials must be at least 1, got {n_trials}")
    optuna = _optuna()
    config = config or SearchConfig()
    how: dict[str, Any] = {"objective": Objective(target_kind), "dictionaries": dictionaries, "windows": windows, "seed": seed}
    problem = prepare_search(bridge, task, config, progress=progress, **how)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(
        {
            "learning_rate": config.learning_rate,
            "temperature": config.temperature,
            "penalty_factor": 1.0,
            "pairs_per_step": config.pairs_per_step,
        }
    )

    def trial_size(trial: optuna.Trial) -> float:
        return _cost(search_circuit(problem, target_loss, suggested(trial, config), seed=seed, progress=progress))

    study.optimize(trial_size, n_trials=n_trials)
    return suggested(study.best_trial, config)


def suggested(trial: Any, config: SearchConfig) -> SearchConfig:
    """`config` with what a trial of optuna suggests; a finished trial suggests what it has tried."""
    factor = trial.suggest_float("penalty_factor", 0.1, 100.0, log=True)
    return config.model_copy(
        update={
            "learning_rate": trial.suggest_float("learning_rate", config.learning_rate / 10, config.learning_rate * 3, log=True),
            "temperature": trial.suggest_float("temperature", config.temperature / 4, config.temperature * 4, log=True),
            "penalties": tuple(penalty * factor for penalty in config.penalties),
            "pairs_per_step": trial.suggest_int(
                "pairs_per_step", max(1, config.pairs_per_step // 4), 4 * config.pairs_per_step, log=True
            ),
        }
    )


def _cost(circuit: Circuit) -> float:
    if circuit.reached:
        return float(circuit.n_nodes)
    return circuit.space.n_nodes * (1 + circuit.loss / circuit.target_loss)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("tuning a search needs optuna, which is not installed: pip install 'sparse-lens[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
