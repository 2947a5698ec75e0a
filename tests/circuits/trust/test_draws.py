"""Random nodes for controls: where they lie, and that another numbering of the channels draws the same ones."""

from __future__ import annotations

import numpy as np
import torch

from sparse_lens.circuits import Circuit, mean_reference, node_space
from sparse_lens.circuits.trust.draws import node_keys, random_like, random_outside
from sparse_lens.dictionaries import untrained_sae

from .conftest import Planted, circuit_of, planted_model, renumbered


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_random_circuits_have_the_sizes_of_the_circuit(planted: Planted) -> None:
    circuit = circuit_of(planted)
    drawn = [random_like(circuit, generator(seed)) for seed in range(20)]
    sizes = [int(part.sum()) for part in planted.space.split(circuit.mask).values()]
    assert all([int(part.sum()) for part in planted.space.split(mask).values()] == sizes for mask in drawn)
    assert len({tuple(mask.nonzero().flatten().tolist()) for mask in drawn}) > 10


def test_nodes_outside_are_at_the_circuits_sites(planted: Planted) -> None:
    circuit = circuit_of(planted)
    drawn = random_outside(circuit, generator(), 10)
    names = {index: name for name, part in planted.space.slices.items() for index in range(part.start, part.stop)}
    assert len(set(drawn)) == 10 and not any(circuit.mask[node] for node in drawn)
    assert {names[node] for node in drawn} <= set(planted.nodes)
    everything = random_outside(circuit, generator(), 1000)
    assert len(everything) == sum(
        part.stop - part.start - 1 for name, part in planted.space.slices.items() if name in planted.nodes
    )


def test_another_numbering_draws_the_same_nodes(planted: Planted) -> None:
    """Up to nodes that are zero everywhere and cannot be told apart."""
    circuit = circuit_of(planted)
    _, moved, order = renumbered(circuit, planted_model())
    means = torch.cat([circuit.reference[site.name].latents for site in planted.space.sites])
    alive = means != 0
    keys, again = node_keys(circuit, generator()), node_keys(moved, generator())
    assert torch.equal(keys[order][alive[order]], again[alive[order]])


def test_error_nodes_stay_as_they_are_where_that_is_asked(planted: Planted) -> None:
    """A dictionary of as many latents as neurons: the circuit's error node is in every draw, or in none, and sizes are the same."""
    bridge = planted.bridge
    hook, width = "blocks.0.mlp.hook_post", bridge.cfg.d_mlp
    space = node_space(bridge, [untrained_sae(width, width, 2, hook)])
    means = mean_reference(bridge, space, np.zeros((1, 4), dtype=np.int64))
    part = space.slices["mlp_neuron.0"]
    for kept in (True, False):
        mask = torch.zeros(space.n_nodes, dtype=torch.bool)
        mask[part.start : part.start + 3], mask[part.stop - 1] = True, kept
        circuit = Circuit(mask, space, means, "task", "model", 1.0, 1.0, {})
        drawn = [random_like(circuit, generator(seed), same_errors=True) for seed in range(20)]
        assert all(bool(one[part.stop - 1]) == kept and int(one.sum()) == 3 + kept for one in drawn)
        assert len({tuple(one.nonzero().flatten().tolist()) for one in drawn}) > 5
