"""The kinds of ablation against the same written out by hand, and frozen norms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import Ablation, Circuit, mean_reference, node_space
from sparse_lens.circuits.ablation import node_values
from sparse_lens.circuits.masking import flat_channels
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.scoring import masked_differences, score_circuit
from sparse_lens.circuits.search.learning import SearchConfig
from sparse_lens.circuits.search.nodes import SearchProblem, learn_masks, select_circuit
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.errors import CircuitError

from .conftest import VOCAB, Planted, pairs, random_bridge

Model = tuple[Any, Any, Any]


@pytest.fixture(scope="module")
def model() -> Model:
    bridge = random_bridge(sink=True)
    space = node_space(bridge)
    return bridge, space, mean_reference(bridge, space, np.random.default_rng(0).integers(0, VOCAB, (20, 8)))


@dataclass(frozen=True)
class PositiveParts:
    """The positive part of each neuron as a latent; what is negative is left to the error."""

    hook_in: str = "blocks.0.mlp.hook_post"
    hook_out: str = "blocks.0.mlp.hook_post"
    name: str = "positive"
    hash: str = "positive"
    n_latents: int = 12
    exact: bool = False
    W_dec: torch.Tensor = field(default_factory=lambda: torch.eye(12))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        return f


def prompts_of_two_lengths() -> Prompts:
    short, long = both_sides(pairs(6, length=4)), both_sides(pairs(6, length=6, seed=1))
    wide = [torch.nn.functional.pad(side, (0, 2)) for side in (short.tokens, short.other)]
    parts = [(wide[0], long.tokens), (wide[1], long.other), *((getattr(short, n), getattr(long, n)) for n in ("position", "right"))]
    parts += [(short.wrong, long.wrong), (short.pair, long.pair + 6)]
    return Prompts(*[torch.cat(part) for part in parts])


def by_hand(bridge: Any, space: Any, mask: torch.Tensor, prompts: Prompts, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits with `values[site] [row pos node]` written over what the mask drops, hook by hook."""

    def write(site: Any) -> Any:
        keep = mask[space.slices[site.name]]

        def hook(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            return torch.where(keep, flat_channels(tensor, site), values[site.name]).view(tensor.shape)

        return hook

    return bridge.run_with_hooks(prompts.tokens, fwd_hooks=[(site.hook, write(site)) for site in space.sites])


def differences(logits: torch.Tensor, prompts: Prompts) -> torch.Tensor:
    row = torch.arange(len(prompts))
    at = logits[row, prompts.position]
    return at[row, prompts.right] - at[row, prompts.wrong]


def expected_values(kind: str, bridge: Any, space: Any, means: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
    _, cache = bridge.run_with_cache(prompts.other if kind == "counterfactual" else prompts.tokens)
    shape = prompts.tokens.shape
    return {
        site.name: {
            "mean": means[site.name].latents.expand(*shape, -1),
            "zero": torch.zeros(*shape, site.n_latents),
            "counterfactual": flat_channels(cache[site.hook], site),
        }[kind]
        for site in space.sites
    }


@pytest.mark.parametrize("kind", ["mean", "zero", "counterfactual"])
def test_kinds_by_hand(model: Model, kind: Any) -> None:
    bridge, space, means = model
    prompts = prompts_of_two_lengths()
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(1)) < 0.6
    expected = by_hand(bridge, space, mask, prompts, expected_values(kind, bridge, space, means, prompts))
    found = masked_differences(bridge, space, mask, Ablation(means, kind), prompts, batch_size=7)
    torch.testing.assert_close(found, differences(expected, prompts), atol=1e-5, rtol=1e-5)


def test_resampled_rows_come_from_the_batch_and_end_together(model: Model) -> None:
    """Each row has one partner's values, moved so that the two answer positions fall together; draws differ by seed."""
    bridge, space, means = model
    prompts = prompts_of_two_lengths()
    own = node_values(bridge, space, prompts.tokens)["mlp_out.0"].latents
    drawn = Ablation(means, "resample")._values(bridge, space, prompts)["mlp_out.0"].latents
    row = torch.arange(len(prompts))
    at_answer, mine = drawn[row, prompts.position], own[row, prompts.position]
    partners = [int((mine - values).abs().sum(1).argmin()) for values in at_answer]
    torch.testing.assert_close(at_answer, mine[partners])
    assert sorted({*partners}) != [0] and len({*partners}) > len(prompts) // 2
    other = Ablation(means, "resample", seed=1)._values(bridge, space, prompts)["mlp_out.0"].latents
    assert not torch.equal(drawn, other)


def test_a_dictionary_keeps_its_error_apart(model: Model) -> None:
    """Full ablation by the other prompt's values is the other prompt's output, through an inexact dictionary, too."""
    bridge, _, _ = model
    space = node_space(bridge, [PositiveParts()])
    prompts = both_sides(pairs(6))
    nothing = torch.zeros(space.n_nodes, dtype=torch.bool)
    ablation = Ablation(mean_reference(bridge, space, prompts.tokens.numpy()), "counterfactual")
    found = masked_differences(bridge, space, nothing, ablation, prompts)
    torch.testing.assert_close(found, differences(bridge(prompts.other), prompts), atol=1e-5, rtol=1e-5)


def test_frozen_norms_divide_as_in_the_whole_model(model: Model) -> None:
    """The last norm's output is the masked residual over the scale of the whole model; the full mask changes nothing."""
    bridge, space, means = model
    prompts = both_sides(pairs(6))
    _, whole = bridge.run_with_cache(prompts.tokens)
    mask = torch.ones(space.n_nodes, dtype=torch.bool)
    mask[space.slices["mlp_out.0"]] = False
    ablation = Ablation(means, "zero", frozen_norms=True)
    with bridge.hooks(fwd_hooks=ablation.hooks(bridge, space, mask, prompts)):
        _, cache = bridge.run_with_cache(prompts.tokens)
    assert not torch.allclose(cache["ln_final.hook_in"], whole["ln_final.hook_in"])
    weight = bridge.ln_final.weight
    expected = cache["ln_final.hook_in"] / whole["ln_final.hook_scale"] * weight
    torch.testing.assert_close(cache["ln_final.hook_out"], expected, atol=1e-5, rtol=1e-4)
    everything = torch.ones_like(mask)
    assert ablation.hooks(bridge, space, everything, prompts) == []


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        pytest.param("counterfactual", False, marks=pytest.mark.slow),
        pytest.param("resample", False, marks=pytest.mark.slow),
        ("zero", True),
    ],
)
def test_the_planted_circuit_is_found_under_every_kind(planted: Planted, kind: Any, frozen: bool) -> None:
    """Nothing else carries the answer, whatever stands in for the rest."""
    problem = SearchProblem(
        bridge=planted.bridge,
        space=planted.space,
        ablation=Ablation(planted.reference, kind, frozen),
        task="planted",
        search_prompts=planted.prompts,
        evaluation_prompts=planted.prompts,
        graph=weight_graph(planted.bridge, planted.batch),
    )
    config = SearchConfig(steps=120, pairs_per_step=8, penalties=(1e-3,), evaluations=24)
    circuit = select_circuit(problem, learn_masks(problem, 0.1, config), 0.1, config)
    assert circuit.reached and (circuit.ablation, circuit.frozen_norms) == (kind, frozen)
    assert {name: nodes for name, nodes in circuit.kept().items() if nodes} == planted.nodes


def test_a_circuit_remembers_its_ablation(planted: Planted, tmp_path: Path) -> None:
    mask = torch.ones(planted.space.n_nodes, dtype=torch.bool)
    circuit = Circuit(mask, planted.space, planted.reference, "planted", model_fingerprint(planted.bridge), 0.1, 0.05)
    circuit = replace(circuit, ablation="counterfactual").without_nodes({"mlp_neuron.0": [1]})
    circuit.save(tmp_path / "c")
    found = Circuit.load(tmp_path / "c", planted.bridge)
    assert (found.ablation, found.frozen_norms) == ("counterfactual", False)
    # The neuron alone tells the two prompts apart: with its value on the other prompt, the model gives the other answer.
    assert (score_circuit(planted.bridge, found, planted.prompts).accuracy.value or 0) < 0.1
    with pytest.raises(CircuitError, match="other values for every prompt"):
        found.fwd_hooks()


def test_an_unknown_kind_in_a_file(planted: Planted, tmp_path: Path) -> None:
    mask = torch.ones(planted.space.n_nodes, dtype=torch.bool)
    Circuit(mask, planted.space, planted.reference, "planted", model_fingerprint(planted.bridge), 0.1, 0.05).save(tmp_path / "c")
    record = tmp_path / "c" / "circuit.json"
    record.write_text(record.read_text().replace('"ablation": "mean"', '"ablation": "median"'))
    with pytest.raises(CircuitError, match="median"):
        Circuit.load(tmp_path / "c", planted.bridge)
