"""The tensors that a checkpoint holds: weights, the optimizer's moments, the sparsifier's masks."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_lens.errors import CheckpointError
from sparse_lens.training.run import TrainingRun
from sparse_lens.training.sharding import own, own_part, whole


def run_state(run: TrainingRun) -> dict[str, Tensor]:
    """Every tensor that the rest of the run depends on, by name."""
    state = {f"core.{name}": tensor for name, tensor in run.model.core.state_dict().items()}
    if run.model.config.tied_unembed:
        del state["core.lm_head.weight"]
    state = {name: whole(tensor) for name, tensor in state.items()}
    for index, parameter in enumerate(_parameters(run.optimizer)):
        for name, value in run.optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{index}.{name}"] = whole(value)
    state |= {f"sparsifier.{name}": tensor for name, tensor in run.sparsifier.state().items()}
    if run.scaler.is_enabled():
        state["scaler"] = torch.tensor([run.scaler.state_dict()[name] for name in _SCALER], dtype=torch.float64)
    return state


_SCALER = ("scale", "_growth_tracker")


@torch.no_grad()
def load_state(run: TrainingRun, state: dict[str, Tensor]) -> None:
    """Put a `run_state` in its place; raises `CheckpointError` if it is of another model."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

    run.sparsifier.restore({name: tensor.to(run.device) for name, tensor in part("sparsifier.").items()})
    weights, targets = part("core."), run.model.core.state_dict()
    if run.model.config.tied_unembed:
        weights["lm_head.weight"] = weights["wte.weight"]
    if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in targets.items()}:
        raise CheckpointError("the checkpoint's weights do not fit the model: other names or shapes")
    for name, target in targets.items():
        own(target).copy_(own_part(weights[name].to(run.device), target))
    moments = part("optimizer.")
    for index, parameter in enumerate(_parameters(run.optimizer)):
        found = {name.split(".")[1]: tensor for name, tensor in moments.items() if name.split(".")[0] == str(index)}
        if found:
            run.optimizer.state[parameter] = {name: _moment(name, tensor, parameter) for name, tensor in found.items()}
    run.compress()
    if "scaler" in state:
        scale, growth = state["scaler"].tolist()
        run.scaler.load_state_dict(run.scaler.state_dict() | dict(zip(_SCALER, (scale, int(growth)), strict=True)))


def _moment(name: str, tensor: Tensor, parameter: Tensor) -> Tensor:
    """One entry of the optimizer's state, laid out as its parameter is."""
    if name == "step":
        return tensor.to(parameter.device) if parameter.is_cuda else tensor  # where the fused form wants it
    moment = torch.empty_like(parameter)
    own(moment).copy_(own_part(tensor.to(parameter.device), parameter))
    return moment


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
