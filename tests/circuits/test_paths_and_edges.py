"""Dead nodes and edge counts, against a plain graph search and plain loops over the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_lens.circuits import Circuit, count_apart, count_edges, node_space, on_paths, weight_graph
from sparse_lens.circuits.sites import full_mask
from sparse_lens.errors import CircuitError

from .conftest import NO, YES, Planted, pairs, random_bridge

Node = tuple[str, int]


def plain_edges(bridge: Any, kept: dict[str, list[int]], sink: bool) -> list[tuple[Node, Node]]:
    """All arrows between kept nodes, with residual channels, heads and z channels as nodes of their own."""
    state = bridge.state_dict()
    config = bridge.model_config
    arrows: list[tuple[Node, Node]] = []
    streams = ["stream"]  # the newest version of the residual stream's channels

    def weights(name: str, sources: str, targets: str) -> None:
        matrix = state[name]
        for out in kept.get(targets, range(matrix.shape[0])):
            arrows.extend(((sources, i), (targets, out)) for i in kept.get(sources, range(matrix.shape[1])) if matrix[out, i] != 0)

    def write(site: str) -> None:
        new = f"{streams[-1]}+{site}"
        arrows.extend(((streams[-1], c), (new, c)) for c in range(config.d_model))
        arrows.extend(((site, c), (new, c)) for c in kept[site])
        streams.append(new)

    def read(site: str) -> None:
        arrows.extend(((streams[-1], c), (site, c)) for c in kept[site])

    arrows += [(("input", 0), ("stream", c)) for c in range(config.d_model) if bool((state["embed.weight"][:, c] != 0).any())]
    arrows += [(("input", 0), ("stream", c)) for c in range(config.d_model) if bool((state["pos_embed.weight"][:, c] != 0).any())]
    for i in range(config.n_layer):
        read(f"attn_in.{i}")
        for letter in "qkv":
            weights(f"blocks.{i}.attn.{letter}.weight", f"attn_in.{i}", f"attn_{letter}.{i}")
        for channel in range(config.d_attn):
            head = (f"pattern.{i}", channel // config.d_head)
            arrows += [((f"attn_{letter}.{i}", channel), head) for letter in "qk" if channel in kept[f"attn_{letter}.{i}"]]
            if channel in kept[f"attn_v.{i}"]:
                arrows += [((f"attn_v.{i}", channel), (f"z.{i}", channel)), (head, (f"attn_v.{i}", channel))]
            if sink:
                arrows.append((head, (f"z.{i}", channel)))
        weights(f"blocks.{i}.attn.o.weight", f"z.{i}", f"attn_out.{i}")
        write(f"attn_out.{i}")
        read(f"mlp_in.{i}")
        weights(f"blocks.{i}.mlp.in.weight", f"mlp_in.{i}", f"mlp_neuron.{i}")
        weights(f"blocks.{i}.mlp.out.weight", f"mlp_neuron.{i}", f"mlp_out.{i}")
        write(f"mlp_out.{i}")
    read("final_resid")
    unembedding = state["unembed.weight"]
    arrows += [(("final_resid", c), ("answer", 0)) for c in kept["final_resid"] if bool((unembedding[[YES, NO], c] != 0).any())]
    return arrows


def reachable(arrows: list[tuple[Node, Node]], start: Node) -> set[Node]:
    following: dict[Node, list[Node]] = {}
    for source, target in arrows:
        following.setdefault(source, []).append(target)
    seen, stack = {start}, [start]
    while stack:
        for node in following.get(stack.pop(), []):
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sink", [False, True])
def test_on_paths_equals_a_graph_search(seed: int, sink: bool) -> None:
    bridge = random_bridge(seed, density=0.25, sink=sink)
    space = node_space(bridge)
    graph = weight_graph(bridge, pairs(8))
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(seed)) < 0.6
    kept = {name: part.nonzero().flatten().tolist() for name, part in space.split(mask).items()}
    arrows = plain_edges(bridge, kept, sink)
    forward = reachable(arrows, ("input", 0))
    backward = reachable([(target, source) for source, target in arrows], ("answer", 0))
    expected = {(name, i) for name, indices in kept.items() for i in indices} & forward & backward
    found = space.split(on_paths(space, mask, graph))
    assert {(name, i) for name, part in found.items() for i in part.nonzero().flatten().tolist()} == expected


def test_on_paths_only_drops_and_is_stable() -> None:
    bridge = random_bridge(1, density=0.3)
    space = node_space(bridge)
    graph = weight_graph(bridge, pairs(8))
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(0)) < 0.5
    once = on_paths(space, mask, graph)
    assert bool((once <= mask).all())
    assert torch.equal(on_paths(space, once, graph), once)


def test_edges_equal_loops_over_the_weights() -> None:
    bridge = random_bridge(2, density=0.4)
    state = bridge.state_dict()
    space = node_space(bridge)
    batch = pairs(8)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(0)) < 0.5
    kept = {name: part.nonzero().flatten().tolist() for name, part in space.split(mask).items()}

    def between(name: str, outputs: list[int], inputs: list[int]) -> int:
        return sum(state[name][o, i] != 0 for o in outputs for i in inputs)

    expected = dict.fromkeys(("q", "k", "v", "output", "mlp_in", "mlp_out"), 0)
    for i in range(2):
        for letter in "qkv":
            expected[letter] += between(f"blocks.{i}.attn.{letter}.weight", kept[f"attn_{letter}.{i}"], kept[f"attn_in.{i}"])
        expected["output"] += between(f"blocks.{i}.attn.o.weight", kept[f"attn_out.{i}"], kept[f"attn_v.{i}"])
        expected["mlp_in"] += between(f"blocks.{i}.mlp.in.weight", kept[f"mlp_neuron.{i}"], kept[f"mlp_in.{i}"])
        expected["mlp_out"] += between(f"blocks.{i}.mlp.out.weight", kept[f"mlp_out.{i}"], kept[f"mlp_neuron.{i}"])
    read = sorted({c for name in kept if name.split(".")[0] in ("attn_in", "mlp_in", "final_resid") for c in kept[name]})
    expected["embedding"] = between("embed.weight", [1, 2], read)
    expected["unembedding"] = between("unembed.weight", [YES, NO], kept["final_resid"])
    assert count_edges(space, mask, weight_graph(bridge, batch)) == expected


def test_planted_circuit_has_its_known_edges(planted: Planted) -> None:
    """Four embedding edges (FIRST and SECOND, channels 0 and 3), one into the neuron, one out of it, two to the answers."""
    mask = full_mask(planted.space, keep=False)
    for name, nodes in planted.nodes.items():
        mask[planted.space.slices[name]][nodes] = True
    graph = weight_graph(planted.bridge, planted.batch)
    assert torch.equal(on_paths(planted.space, mask, graph), mask)
    counts = count_edges(planted.space, mask, graph)
    assert counts == {"embedding": 4, "q": 0, "k": 0, "v": 0, "output": 0, "mlp_in": 1, "mlp_out": 1, "unembedding": 2}


def test_edges_of_a_dictionary_outside_an_mlp_are_refused() -> None:
    from sparse_lens.dictionaries import RotationDictionary

    bridge = random_bridge()
    space = node_space(bridge, [RotationDictionary(torch.eye(8), "blocks.0.hook_mlp_out")])
    with pytest.raises(CircuitError, match="dictionaries of MLPs only"):
        count_edges(space, full_mask(space), weight_graph(bridge, pairs(4)))


def test_only_constants_that_something_reads_are_counted(planted: Planted) -> None:
    """With nothing kept, the answers still read the mean of channel 3; with everything kept, no mean is used."""
    graph = weight_graph(planted.bridge, planted.batch)
    for keep, means in ((False, 1), (True, 0)):
        mask = full_mask(planted.space, keep=keep)
        circuit = Circuit(mask, planted.space, planted.reference, "planted", "any", 0.1, 0.1)
        assert count_apart(circuit, graph)["means"] == means
