"""How far things differ between the two prompts of a pair while the model runs as a circuit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.cards.kept_values import kept_values, running
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.masking import Hook
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.errors import CircuitError
from sparse_lens.hooks.layout import decoder_layout
from sparse_lens.tasks import TaskBatch


@torch.no_grad()
def input_differences(
    bridge: Any, circuit: Circuit, prompts: TaskBatch, *, batch_size: int = 16
) -> Mapping[str, Float[Tensor, " d_in"]]:
    """By matrix, the difference of each of its inputs between the two prompts: the largest of all positions, mean over pairs.

    Matrices as in `EdgeSpace`, without the embedding, whose inputs are tokens. Raises `CircuitError` for another model.
    """
    layout = decoder_layout(bridge)
    inner = {"q": "attn_in", "k": "attn_in", "v": "attn_in", "mlp_in": "mlp_in", "mlp_out": "mlp_neuron"}
    hooks = {
        f"{kind}.{layer}": f"blocks.{layer}.{layout.hooks[s]}" for layer in range(layout.n_layers) for kind, s in inner.items()
    }
    hooks |= {f"output.{layer}": f"blocks.{layer}.attn.hook_z" for layer in range(layout.n_layers)}
    hooks["unembedding"] = "ln_final.hook_out"
    sums: dict[str, Tensor] = {}
    for clean, corrupt in _sides(prompts, batch_size):
        first, second = (_recorded(bridge, circuit, side, set(hooks.values())) for side in (clean, corrupt))
        inside = torch.arange(clean.tokens.shape[1]) <= clean.position[:, None]
        for hook, values in first.items():
            distance = ((values - second[hook]).abs() * inside[..., None]).amax(1)
            sums[hook] = sums.get(hook, torch.zeros(())) + distance.sum(0)
    return {name: sums[hook] / len(prompts) for name, hook in hooks.items()}


@torch.no_grad()
def pair_values(
    bridge: Any, circuit: Circuit, prompts: TaskBatch, pair: int = 0
) -> tuple[Float[Tensor, "pos kept"], Float[Tensor, "pos kept"]]:
    """The kept nodes' values on the clean and the corrupt prompt of one pair, run as the circuit.

    Under resample ablation the other prompt of the pair is the only partner. Raises `CircuitError` for a pair that there is not.
    """
    if not 0 <= pair < len(prompts):
        raise CircuitError(f"these prompts have pairs 0 to {len(prompts) - 1}, there is no {pair}")
    rows = both_sides(prompts)
    rows = rows.rows((rows.pair == pair).nonzero().flatten())
    with running(bridge, circuit, rows):
        values = kept_values(bridge, circuit.space, circuit.mask, rows.tokens)
    return values[0], values[1]  # the clean prompt precedes the corrupt one: both are equally long, and rows keep their order


def _sides(prompts: TaskBatch, batch_size: int) -> Iterator[tuple[Prompts, Prompts]]:
    """Clean and corrupt prompts of some pairs at a time, in one order."""
    rows, n = both_sides(prompts), len(prompts)
    order = rows.pair.argsort(stable=True)  # the clean prompt of a pair precedes the corrupt one: both are equally long
    for start in range(0, n, batch_size):
        chosen = order[2 * start : 2 * (start + batch_size)]
        yield rows.rows(chosen[::2]), rows.rows(chosen[1::2])


def _recorded(bridge: Any, circuit: Circuit, prompts: Prompts, names: set[str]) -> dict[str, Float[Tensor, "row pos d"]]:
    found: dict[str, Tensor] = {}

    def record(name: str) -> Hook:
        def hook(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens passes it by name
            found[name] = tensor.flatten(2).float()

        return hook

    with running(bridge, circuit, prompts), bridge.hooks(fwd_hooks=[(name, record(name)) for name in sorted(names)]):
        bridge(prompts.tokens)
    return found
