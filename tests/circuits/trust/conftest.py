"""Circuits of planted models, a task without templates, and a model with its channels in another order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from sparse_lens.circuits import Circuit, SearchConfig, model_fingerprint
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.trust import CircuitRuns
from sparse_lens.errors import DataError
from sparse_lens.hooks import wrap
from sparse_lens.models import CircuitGPTForCausalLM
from sparse_lens.tasks.batch import PromptPair, TaskBatch

from ..conftest import VOCAB, Planted, _planted_model, pairs, random_bridge

planted_model = _planted_model

__all__ = ["VOCAB", "Planted", "planted_model", "random_bridge"]

CONFIG = SearchConfig(steps=60, pairs_per_step=8, penalties=(1e-3,), evaluations=20, search_pairs=32, evaluation_pairs=16)
WORDS = [f"w{token}" for token in range(VOCAB - 1)] + ["<|endoftext|>"]


@dataclass(frozen=True)
class TokenTask:
    """The prompts of `pairs` as a task: every split is another draw, `padding` more columns stand behind every prompt."""

    name: str = "planted"
    description: str = "The last token decides."
    control: bool = False
    length: int = 5
    padding: int = 0
    without: str = ""

    def sample(self, tokenizer: Any, n: int, *, seed: int, split: str) -> TaskBatch:
        if split == self.without:
            raise DataError(f"no pairs of the split {split}")
        batch = pairs(n, self.length, seed=seed + 10 * ("search", "validation", "heldout", "rephrased").index(split))
        texts = [
            tuple(" ".join(WORDS[token] for token in row) for row in pair) for pair in zip(batch.clean, batch.corrupt, strict=True)
        ]
        named = tuple(PromptPair(clean, corrupt, "w3", "w4") for clean, corrupt in texts)
        sides = {
            name: np.pad(getattr(batch, name), ((0, 0), (0, self.padding)))
            for name in ("clean", "corrupt", "clean_fork", "corrupt_fork")
        }
        return replace(batch, pairs=named, **sides)


def speak(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the bridge a tokenizer, one word for each token, for the time of a test."""
    words = Tokenizer(WordLevel({word: token for token, word in enumerate(WORDS)}, unk_token="w0"))
    monkeypatch.setattr(bridge, "tokenizer", PreTrainedTokenizerFast(tokenizer_object=words, eos_token=WORDS[-1]))
    return bridge


def circuit_of(planted: Planted, nodes: dict[str, list[int]] | None = None, **changes: Any) -> Circuit:
    """The planted circuit, or one of other nodes, as if a search had found it."""
    mask = torch.zeros(planted.space.n_nodes, dtype=torch.bool)
    fields: dict[str, Any] = {"target_loss": 0.1, "loss": 0.01, "search": {"config": CONFIG.model_dump(mode="json"), "seeds": [0]}}
    fields |= {"task": "planted", "model": model_fingerprint(planted.bridge)} | changes
    circuit = Circuit(mask=mask, space=planted.space, reference=planted.reference, **fields)
    return replace(circuit, mask=circuit.with_nodes(planted.nodes if nodes is None else nodes).mask)


def runs_of(planted: Planted, circuit: Circuit | None = None, **changes: Any) -> CircuitRuns:
    return CircuitRuns(planted.bridge, circuit or circuit_of(planted, **changes), planted.prompts)


def padded(prompts: Prompts, more: int = 2) -> Prompts:
    """The same prompts with more columns behind them."""
    wide = {name: torch.nn.functional.pad(getattr(prompts, name), (0, more), value=5) for name in ("tokens", "other")}
    return replace(prompts, **wide)


@torch.no_grad()
def renumbered(circuit: Circuit, model: CircuitGPTForCausalLM, seed: int = 0) -> tuple[Any, Circuit, torch.Tensor]:
    """`model` (one layer) with residual channels and neurons in another order, its circuit there, and the order of the nodes."""
    core, generator = model.core, torch.Generator().manual_seed(seed)
    d_mlp, d_model = core.blocks[0].mlp.fc_in.weight.shape
    channels, neurons = torch.randperm(d_model, generator=generator), torch.randperm(d_mlp, generator=generator)
    for name, parameter in core.named_parameters():
        if name == "lm_head.bias":
            continue
        if "fc_in" in name:
            parameter.copy_(parameter[neurons][:, channels])
        elif "fc_out" in name:
            parameter.copy_(parameter[channels][:, neurons])
        else:  # norms and the output of the heads by row, everything that reads or embeds by column
            parameter.copy_(parameter[channels] if parameter.ndim == 1 or ".attn.o." in name else parameter[:, channels])
    bridge = wrap(model)
    orders = {"mlp_neuron": neurons} | dict.fromkeys(("attn_in", "attn_out", "mlp_in", "mlp_out", "final_resid"), channels)
    order, reference = [], {}
    for site in circuit.space.sites:
        own = orders.get(site.kind, torch.arange(site.n_nodes))
        order.append(circuit.space.slices[site.name].start + own)
        reference[site.name] = replace(circuit.reference[site.name], latents=circuit.reference[site.name].latents[own])
    flat = torch.cat(order)
    return bridge, replace(circuit, mask=circuit.mask[flat], reference=reference, model=model_fingerprint(bridge)), flat
