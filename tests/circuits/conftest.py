"""A model with a known circuit, and tiny random models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.masking import mean_reference
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.search.nodes import SearchProblem
from sparse_lens.circuits.sites import node_space
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.hooks import wrap
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.tasks.task import PromptPair, TaskBatch

VOCAB, FIRST, SECOND, YES, NO = 12, 1, 2, 3, 4


def random_bridge(seed: int = 0, density: float = 1.0, **fields: Any) -> Any:
    """A bridge around a small model with random weights, a share `density` of them nonzero."""
    shape = {"vocab_size": VOCAB, "block_size": 8, "n_layer": 2, "n_head": 2, "d_model": 8, "d_mlp": 12, "tied_unembed": False}
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**(shape | {"rms_norm": True} | fields)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.core.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            if parameter.ndim == 2:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return wrap(model.eval())


def pairs(n: int, length: int = 5, seed: int = 0) -> TaskBatch:
    """Clean and corrupt prompts that differ in the last token alone, FIRST against SECOND; the answers are YES and NO."""
    generator = np.random.default_rng(seed)
    clean = generator.integers(5, VOCAB, (n, length))
    corrupt = clean.copy()
    first = np.arange(n) % 2 == 0
    clean[:, -1], corrupt[:, -1] = np.where(first, FIRST, SECOND), np.where(first, SECOND, FIRST)
    target, distractor = np.where(first, YES, NO), np.where(first, NO, YES)
    differ = clean != corrupt
    return TaskBatch(clean, corrupt, differ, differ, np.full(n, length), target, distractor, (PromptPair("", "", "", ""),) * n)


@dataclass(frozen=True, eq=False)
class Planted:
    """A bridge, its prompts and the only nodes that carry the answer, by site."""

    bridge: Any
    prompts: Prompts
    batch: TaskBatch
    nodes: dict[str, list[int]]
    space: Any
    reference: Any


@pytest.fixture(scope="session")
def planted() -> Planted:
    """embedding channel 0 -> mlp_in 0 -> neuron 1 -> mlp_out 3 -> final 3 -> YES against NO.

    Both tokens start channel 3 at -3, the neuron adds 6 for FIRST alone. Channel 0 is not read by the unembedding, and channels
    4 to 7 carry noise that reaches no answer.
    """
    nodes = {"mlp_in.0": [0], "mlp_neuron.0": [1], "mlp_out.0": [3], "final_resid": [3]}
    return plant(_planted_model(), nodes)


@pytest.fixture(scope="session")
def planted_twice() -> Planted:
    """The planted model with a second path of its own: channel 1 -> neuron 2 -> channel 2; `nodes` are those of both.

    Either path alone gives the answer. Logits are a third as large as in the planted model: where the loss is 0 with either
    path, no gradient says that one of them must stay.
    """
    model = _planted_model()
    core = model.core
    block: Any = core.blocks[0]
    with torch.no_grad():
        core.wte.weight[FIRST, 1], core.wte.weight[SECOND, 1] = 2.0, -2.0
        core.wte.weight[[FIRST, SECOND], 2] = -3.0
        block.mlp.fc_in.weight[2, 1] = 1.0
        block.mlp.fc_out.weight[2, 2] = 6.0
        core.lm_head.weight[YES, 2], core.lm_head.weight[NO, 2] = 3.0, -3.0
        core.lm_head.weight /= 3
    return plant(model, {"mlp_in.0": [0, 1], "mlp_neuron.0": [1, 2], "mlp_out.0": [2, 3], "final_resid": [2, 3]})


def _planted_model() -> CircuitGPTForCausalLM:
    shape = {"vocab_size": VOCAB, "block_size": 8, "n_layer": 1, "n_head": 2, "d_model": 8, "d_mlp": 6, "tied_unembed": False}
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**shape, rms_norm=True, bias=False, activation_type="relu"))
    core = model.core
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            parameter.fill_(1.0 if "ln_" in name else 0.0)
        core.wte.weight[:, 4:] = torch.randn(VOCAB, 4, generator=noise)
        core.wte.weight[FIRST, 0], core.wte.weight[SECOND, 0] = 2.0, -2.0
        block: Any = core.blocks[0]
        core.wte.weight[[FIRST, SECOND], 3] = -3.0
        block.mlp.fc_in.weight[1, 0] = 1.0
        block.mlp.fc_in.weight[3:, 4:] = torch.randn(3, 4, generator=noise)
        block.mlp.fc_out.weight[3, 1] = 6.0
        block.mlp.fc_out.weight[5, 3:] = torch.randn(3, generator=noise)
        core.lm_head.weight[YES, 3], core.lm_head.weight[NO, 3] = 3.0, -3.0
        core.lm_head.weight[5:, 4:] = torch.randn(VOCAB - 5, 4, generator=noise)
    return model


def plant(model: CircuitGPTForCausalLM, nodes: dict[str, list[int]]) -> Planted:
    """The model as a bridge, with prompts and means."""
    bridge = wrap(model.eval())
    batch = pairs(64)
    space = node_space(bridge)
    reference = mean_reference(bridge, space, np.concatenate([batch.clean, batch.corrupt]))
    return Planted(bridge, both_sides(batch), batch, nodes, space, reference)


def problem_of(planted: Planted) -> SearchProblem:
    """A search in a planted model, on the prompts that it is scored on."""
    return SearchProblem(
        bridge=planted.bridge,
        space=planted.space,
        ablation=Ablation(planted.reference),
        task="planted",
        search_prompts=planted.prompts,
        evaluation_prompts=planted.prompts,
        graph=weight_graph(planted.bridge, planted.batch),
    )
