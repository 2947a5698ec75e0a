"""Random nodes for controls: where they lie, and that another numbering of the channels draws the same ones."""

from __future__ import annotations

import torch

from sparse_lens.circuits.trust.draws import node_keys, random_like, random_outside

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
