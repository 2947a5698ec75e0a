"""Edges by chance: known answers, the shuffled null against draws of its own, and parts that add up."""

from __future__ import annotations

import math

import pytest
import torch

from sparse_lens.circuits import node_space, weight_graph
from sparse_lens.circuits.edges.density import edge_density, log_ratio_parts
from sparse_lens.circuits.sites import full_mask

from ..conftest import pairs, random_bridge


def test_all_nodes_have_all_weights() -> None:
    """Of every matrix within a layer all entries are possible, and the nonzeros are the edges: chance is exact."""
    bridge = random_bridge(0, density=0.3, sink=True)
    space, graph = node_space(bridge), weight_graph(bridge, pairs(8))
    found = edge_density(space, full_mask(space), graph)
    for name in found.edges:
        if "." in name:
            assert found.possible[name] == found.entries[name] and found.edges[name] == found.nonzeros[name]
    state = bridge.state_dict()
    assert found.nonzeros["mlp_in.0"] == int((state["blocks.0.mlp.in.weight"] != 0).sum())
    nothing = edge_density(space, full_mask(space, keep=False), graph)
    assert nothing.n_edges == nothing.n_possible == 0 and nothing.expected == 0


def test_the_null_is_a_shuffle_of_the_zeros() -> None:
    """Against plain permutations of one matrix' pattern."""
    bridge = random_bridge(1, density=0.3)
    space, graph = node_space(bridge), weight_graph(bridge, pairs(8))
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(0)) < 0.5
    found = edge_density(space, mask, graph)
    generator = torch.Generator().manual_seed(1)
    pattern, between = graph.layers[0].fc_in, torch.zeros_like(graph.layers[0].fc_in)
    kept = space.split(mask)
    between[kept["mlp_neuron.0"].nonzero(), kept["mlp_in.0"].nonzero().T] = True
    assert int(between.sum()) == found.possible["mlp_in.0"]
    draws = [pattern.flatten()[torch.randperm(pattern.numel(), generator=generator)].view_as(pattern) for _ in range(400)]
    mean = sum(int((draw & between).sum()) for draw in draws) / 400
    assert mean == pytest.approx(found.possible["mlp_in.0"] * found.nonzeros["mlp_in.0"] / found.entries["mlp_in.0"], rel=0.05)
    null = found.null()
    assert null.value == pytest.approx(found.expected, rel=0.02) and null.null == found.n_edges
    assert (null.lo or 0) < found.expected < (null.hi or 0)


def test_the_parts_add_up() -> None:
    """A model against its denser self with the same nodes: no difference in pairs, and, over all nodes, no remainder."""
    sparse, dense = random_bridge(2, density=0.25), random_bridge(2, density=1.0)
    space = node_space(sparse)
    first, second = (edge_density(space, full_mask(space), weight_graph(bridge, pairs(8))) for bridge in (dense, sparse))
    parts = log_ratio_parts(first, second)
    assert parts["pairs"] == 0 and parts["density"] > 1
    assert parts["total"] == pytest.approx(math.log(first.n_edges / second.n_edges))
    assert parts["pairs"] + parts["density"] + parts["remainder"] == pytest.approx(parts["total"])
    searched = log_ratio_parts(first, second, kept=(60, 30))
    assert searched["total"] == pytest.approx(math.log(2))
    assert sum(searched[part] for part in ("pairs", "density", "remainder", "search")) == pytest.approx(math.log(2))
    assert math.isnan(
        log_ratio_parts(first, edge_density(space, full_mask(space, keep=False), weight_graph(sparse, pairs(8))))["total"]
    )
