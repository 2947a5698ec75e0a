"""The tensors that a checkpoint holds: weights, the optimizer's moments, the sparsifier's masks."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_lens.errors import CheckpointError
from sparse_lens.training.run import TrainingRun


def run_state(run: TrainingRun) -> dict[str, Tensor]:
    """Every tensor that the rest of the run depends on, by name."""
    state = {f"core.{name}": tensor for name, tensor in run.model.core.state_dict().items()}
    if run.model.config.tied_unembed:
        del state["core.lm_head.weight"]
    for index, parameter in enumerate(_parameters(run.optimizer)):
        for name, value in run.optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{index}.{name}"] = value
    state |= {f"sparsifier.{name}": tensor for name, tensor in run.sparsifier.state().items()}
    if run.scaler.is_enabled():
        state["scale"] = torch.tensor(run.scaler.get_scale())
    return state


@torch.no_grad()
def load_state(run: TrainingRun, state: dict[str, Tensor]) -> None:
    """Put a `run_state` in its place; raises `CheckpointError` if it is of another model."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

    run.sparsifier.restore({name: tensor.to(run.device) for name, tensor in part("sparsifier.").items()})
    weights = part("core.")
    if run.model.config.tied_unembed:
        weights["lm_head.weight"] = weights["wte.weight"]
    try:
        run.model.core.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit the model: {error}") from error
    moments = part("optimizer.")
    for index, parameter in enumerate(_parameters(run.optimizer)):
        own = {name.split(".")[1]: tensor for name, tensor in moments.items() if name.split(".")[0] == str(index)}
        if own:
            device = {name: tensor if name == "step" else tensor.to(parameter.device) for name, tensor in own.items()}
            run.optimizer.state[parameter] = device
    if "scale" in state:
        run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": float(state["scale"])})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
