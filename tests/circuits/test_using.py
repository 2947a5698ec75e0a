"""Circuits in use: applied to their model, combined, changed, listed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens import patching

from sparse_lens.circuits import Circuit, mask_hooks
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.errors import CircuitError, UnknownNameError

from .conftest import VOCAB, Planted, random_bridge

TOKENS = torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def circuit(planted: Planted) -> Circuit:
    mask = torch.zeros(planted.space.n_nodes, dtype=torch.bool)
    found = Circuit(mask, planted.space, planted.reference, "planted", model_fingerprint(planted.bridge), 0.2, 0.1)
    return replace(found.with_nodes(planted.nodes), loss=0.1)


def test_applied_is_the_masked_model(planted: Planted, circuit: Circuit) -> None:
    """The same logits as by hooks; whatever runs inside sees them, `reset_hooks` included; outside nothing is left."""
    bridge, plain = planted.bridge, planted.bridge(TOKENS)
    with bridge.hooks(fwd_hooks=mask_hooks(circuit.space, circuit.mask, circuit.reference)):
        masked = bridge(TOKENS)
    assert not torch.allclose(masked, plain)
    with circuit.applied(bridge) as same:
        assert same is bridge
        bridge.reset_hooks()
        torch.testing.assert_close(bridge(TOKENS), masked)
        logits, cache = bridge.run_with_cache(TOKENS)
        torch.testing.assert_close(logits, masked)
        assert (cache["blocks.0.mlp.hook_post"][..., 0] == cache["blocks.0.mlp.hook_post"][0, 0, 0]).all()
    torch.testing.assert_close(bridge(TOKENS), plain, rtol=0, atol=0)
    torch.testing.assert_close(bridge.run_with_hooks(TOKENS, fwd_hooks=circuit.fwd_hooks()), masked)
    with pytest.raises(ZeroDivisionError), circuit.applied(bridge):
        raise ZeroDivisionError
    torch.testing.assert_close(bridge(TOKENS), plain, rtol=0, atol=0)


def test_activation_patching_runs_on_the_circuit(planted: Planted, circuit: Circuit) -> None:
    """In the planted circuit the answer is restored by the last position's MLP alone; attention, which is ablated, does nothing."""
    clean, corrupt = (torch.from_numpy(side[:8]) for side in (planted.batch.clean, planted.batch.corrupt))
    target, distractor = (torch.from_numpy(side[:8]) for side in (planted.batch.target, planted.batch.distractor))
    row = torch.arange(8)

    def score(logits: torch.Tensor) -> torch.Tensor:
        return (logits[row, -1, target] - logits[row, -1, distractor]).mean()

    with circuit.applied(planted.bridge) as bridge:
        high, cache = bridge.run_with_cache(clean)
        low = score(bridge(corrupt))
        mlp = patching.get_act_patch_mlp_out(bridge, corrupt, cache, score)
        attention = patching.get_act_patch_attn_out(bridge, corrupt, cache, score)
    assert score(high) > 1 > -1 > low
    torch.testing.assert_close(mlp[0, -1], score(high))
    torch.testing.assert_close(attention, low.expand_as(attention))


def test_sets_of_nodes(circuit: Circuit) -> None:
    """Union, intersection and difference are those of sets; what is combined has no loss of its own."""
    other = circuit.without_nodes({"mlp_in.0": [0]}).with_nodes({"attn_q.0": [2, 3]})
    assert circuit.loss == 0.1 and circuit.reached and circuit.n_nodes == 4
    assert math.isnan(other.loss) and not other.reached and other.n_nodes == 5

    def nodes(c: Circuit) -> set[tuple[str, int]]:
        return {(site, index) for site, indices in c.kept().items() for index in indices}

    assert nodes(circuit | other) == nodes(circuit) | nodes(other)
    assert nodes(circuit & other) == nodes(circuit) & nodes(other)
    assert nodes(circuit - other) == nodes(circuit) - nodes(other) == {("mlp_in.0", 0)}
    assert (circuit | other).task == "planted"
    assert (circuit | replace(other, task="second")).task == "planted | second"


def test_a_frame_has_a_row_for_each_node(circuit: Circuit) -> None:
    frame = circuit.to_frame()
    assert list(frame["site"]) == ["mlp_in.0", "mlp_neuron.0", "mlp_out.0", "final_resid"]
    assert list(frame["index"]) == [0, 1, 3, 3] and list(frame["layer"]) == [0, 0, 0, -1] and not frame["latent"].any()
    assert frame["hook"][1] == "blocks.0.mlp.hook_post"


def test_a_circuit_without_a_loss_is_saved(circuit: Circuit, planted: Planted, tmp_path: Path) -> None:
    changed = circuit.with_nodes({"attn_v.0": [1]})
    changed.save(tmp_path / "c")
    assert "NaN" not in (tmp_path / "c" / "circuit.json").read_text()
    found = Circuit.load(tmp_path / "c", planted.bridge)
    assert math.isnan(found.loss) and (found.mask == changed.mask).all()


def test_bad_input(circuit: Circuit) -> None:
    other: Any = random_bridge()
    with pytest.raises(CircuitError, match="found in the model"), circuit.applied(other):
        pass
    with pytest.raises(UnknownNameError, match=r"mlp_in\.0"):
        circuit.with_nodes({"mlp_in.1": [0]})
    with pytest.raises(CircuitError, match="nodes 0 to 7, there is no 8"):
        circuit.without_nodes({"mlp_in.0": [8]})
    with pytest.raises(CircuitError, match="different models"):
        _ = circuit | replace(circuit, model="other")
    assert np.isnan((circuit & circuit).loss)
