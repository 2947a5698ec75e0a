"""Edges: cutting against loops over weights, known answers, and the search in sparse and dense models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import Ablation, Circuit, find_edges, mask_hooks, mean_reference, node_space, score_circuit
from sparse_lens.circuits.edges.cutting import cut_edges, edge_matrices, edge_module, input_means
from sparse_lens.circuits.edges.search import EdgeProblem, edge_attribution, learn_edges, select_edges
from sparse_lens.circuits.edges.space import EDGE_KINDS, candidate_edges, edges_on_paths
from sparse_lens.circuits.search.candidates import Candidate
from sparse_lens.circuits.search.learning import SearchConfig
from sparse_lens.circuits.search.nodes import SearchProblem
from sparse_lens.circuits.search.problems import default_windows
from sparse_lens.circuits.sites import full_mask, model_fingerprint
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.errors import CircuitError
from sparse_lens.hooks import load

from ..conftest import FIRST, NO, SECOND, VOCAB, YES, Planted, pairs, random_bridge

TOKENS = torch.randint(VOCAB, (4, 6), generator=torch.Generator().manual_seed(3))


def model(**fields: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Bridge, space, graph, ablation and means of a random model."""
    bridge = random_bridge(**({"density": 0.5, "sink": True} | fields))
    space, windows = node_space(bridge), np.random.default_rng(0).integers(0, VOCAB, (20, 8))
    reference = mean_reference(bridge, space, windows)
    return (
        bridge,
        space,
        weight_graph(bridge, pairs(8)),
        Ablation(reference),
        input_means(bridge, windows, reference, (FIRST, SECOND)),
    )


def test_all_edges_kept_is_the_model_and_nothing_stays() -> None:
    bridge, space, graph, _, means = model()
    edges = candidate_edges(space, full_mask(space), graph)
    before, state = bridge(TOKENS), {name: tensor.clone() for name, tensor in bridge.state_dict().items()}
    with cut_edges(bridge, edges, torch.ones(edges.n_edges), means):
        torch.testing.assert_close(bridge(TOKENS), before, atol=1e-6, rtol=1e-5)
    with pytest.raises(ZeroDivisionError), cut_edges(bridge, edges, torch.zeros(edges.n_edges), means):
        assert not torch.allclose(bridge(TOKENS), before)
        raise ZeroDivisionError
    assert bridge.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in bridge.state_dict().items())
    assert all(parameter.requires_grad for parameter in bridge.parameters() if parameter.ndim == 2)


@pytest.mark.parametrize("name", ["q.0", "k.1", "v.0", "output.1", "mlp_in.0", "mlp_out.1", "unembedding"])
def test_one_cut_edge_by_hand(name: str) -> None:
    """The matrix' own input, less its mean, times the weight, is taken from one output; measured at the module."""
    bridge, space, graph, _, means = model()
    edges = candidate_edges(space, full_mask(space), graph)
    keep = torch.ones(edges.n_edges)
    edges.split(keep)[name][1] = 0
    row, column = edges.index[name][1].tolist()
    seen: dict[str, torch.Tensor] = {}
    module = edge_module(bridge, name)
    weight = float(module.weight[row, column])
    handle = module.register_forward_hook(lambda _, args, output: seen.update(x=args[0], y=output))
    with cut_edges(bridge, edges, keep, means):
        bridge(TOKENS)
    cut, source = seen["y"], seen["x"]
    plain = torch.nn.functional.linear(source, module.weight, module.bias)
    handle.remove()
    expected = plain.clone()
    expected[..., row] -= weight * (source[..., column] - means[name][column])
    torch.testing.assert_close(cut, expected, atol=1e-5, rtol=1e-5)


def test_means_are_those_of_the_inputs() -> None:
    """Seen at the modules themselves; for the embedding, the average of the two tokens."""
    bridge, _, _, _, means = model()
    windows = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
    for name in edge_matrices(bridge)[1:]:
        seen: list[torch.Tensor] = []
        handle = edge_module(bridge, name).register_forward_hook(lambda _, args, out, seen=seen: seen.append(args[0]))
        bridge(torch.from_numpy(windows))
        handle.remove()
        torch.testing.assert_close(means[name], seen[0].flatten(0, 1).mean(0), atol=1e-5, rtol=1e-4)
    table = edge_module(bridge, "embedding").weight
    torch.testing.assert_close(means["embedding"], (table[FIRST] + table[SECOND]) / 2)


def test_cutting_all_edges_of_a_node_ablates_it() -> None:
    """Every edge out of a neuron cut: the same as the neuron at its mean."""
    bridge, space, graph, ablation, means = model()
    edges = candidate_edges(space, full_mask(space), graph)
    keep = torch.ones(edges.n_edges)
    edges.split(keep)["mlp_out.0"][edges.index["mlp_out.0"][:, 1] == 5] = 0
    mask = full_mask(space)
    mask[space.slices["mlp_neuron.0"].start + 5] = False
    with cut_edges(bridge, edges, keep, means):
        found = bridge(TOKENS)
    with bridge.hooks(fwd_hooks=mask_hooks(space, mask, ablation.means)):
        torch.testing.assert_close(found, bridge(TOKENS), atol=1e-5, rtol=1e-5)


def problem_of(bridge: Any, space: Any, graph: Any, ablation: Any, means: Any, mask: Any = None, batch: Any = None) -> EdgeProblem:
    from sparse_lens.circuits.prompts import both_sides

    prompts = both_sides(pairs(16) if batch is None else batch)
    nodes = SearchProblem(bridge, space, ablation, "planted", prompts, prompts, graph)
    mask = full_mask(space) if mask is None else mask
    return EdgeProblem(nodes, mask, candidate_edges(space, mask, graph), means)


def test_attribution_is_the_slope_of_cutting() -> None:
    """Against central differences in single entries of `keep`, on a smooth model; its rank agrees with brute force."""
    problem = problem_of(*model(density=1.0, activation_type="gelu"))
    found = edge_attribution(problem, n_pairs=16)
    prompts = problem.nodes.search_prompts
    generator = torch.Generator().manual_seed(0)
    for edge in torch.randint(problem.edges.n_edges, (12,), generator=generator).tolist():
        losses = []
        for step in (-0.02, 0.02):
            keep = torch.ones(problem.edges.n_edges)
            keep[edge] += step
            with torch.no_grad():
                losses.append(float(torch.nn.functional.softplus(-problem.differences(keep, prompts)).mean()))
        assert float(found[edge]) == pytest.approx(-(losses[1] - losses[0]) / 0.04, abs=2e-4)
    integrated = edge_attribution(problem, n_pairs=16, steps=4)
    assert integrated.shape == found.shape and not torch.allclose(integrated, found)


def test_dead_edges_and_nodes_are_dropped(planted: Planted) -> None:
    """Without the one edge into the neuron, no path is left to it; edges of channels that lead nowhere go, too."""
    means = input_means(planted.bridge, planted.batch.clean, planted.reference, (FIRST, SECOND))
    graph = weight_graph(planted.bridge, planted.batch)
    problem = problem_of(planted.bridge, planted.space, graph, Ablation(planted.reference), means, batch=planted.batch)
    everything = torch.ones(problem.edges.n_edges, dtype=torch.bool)
    mask, keep = edges_on_paths(planted.space, problem.mask, graph, problem.edges, everything)
    counts = problem.edges.chosen(keep).counts()
    assert counts["mlp_in"] == 1 and counts["mlp_out"] == 1 and counts["unembedding"] == 2
    fewer = everything.clone()
    problem.edges.split(fewer)["mlp_in.0"][:] = False
    mask, keep = edges_on_paths(planted.space, problem.mask, graph, problem.edges, fewer)
    assert not mask[planted.space.slices["mlp_neuron.0"]].any()
    assert problem.edges.chosen(keep).counts()["mlp_out"] == 0


def test_the_planted_edges_are_found(planted: Planted, tmp_path: Path) -> None:
    """From all nodes: the two tokens into channel 0, the weights into and out of the neuron, and both answers.

    The tokens' own channel 3 is the same for both, so its edges carry nothing and are cut.
    """
    windows = np.concatenate([planted.batch.clean, planted.batch.corrupt])
    means = input_means(planted.bridge, windows, planted.reference, (FIRST, SECOND))
    graph = weight_graph(planted.bridge, planted.batch)
    problem = problem_of(planted.bridge, planted.space, graph, Ablation(planted.reference), means, batch=planted.batch)
    circuit = Circuit(problem.mask, planted.space, planted.reference, "planted", model_fingerprint(planted.bridge), 0.1, 0.0)
    config = SearchConfig(steps=160, pairs_per_step=8, penalties=(1e-3,), evaluations=30)
    found = select_edges(problem, circuit, learn_edges(problem, 0.1, config), 0.1, config)
    assert found.reached and found.edges is not None
    index = {name: edges.tolist() for name, edges in found.edges.kept.index.items() if len(edges)}
    assert index["mlp_in.0"] == [[1, 0]] and index["mlp_out.0"] == [[3, 1]]
    assert {tuple(edge) for edge in index["embedding"]} <= {(FIRST, 0), (SECOND, 0)} and index["embedding"]
    assert {tuple(edge) for edge in index["unembedding"]} <= {(YES, 3), (NO, 3)} and index["unembedding"]
    assert {site: nodes for site, nodes in found.kept().items() if nodes} == planted.nodes
    scores = score_circuit(planted.bridge, found, planted.prompts)
    assert (scores.circuit_loss.value or 0) == pytest.approx(found.loss, abs=1e-5)
    assert (scores.necessity.value or 0) > 0.5
    frame = found.edges_frame()
    assert len(frame) == sum(found.edges.kept.counts().values()) and set(frame["kind"]) <= set(EDGE_KINDS)

    found.save(tmp_path / "c")
    again = Circuit.load(tmp_path / "c", planted.bridge)
    assert again.edges is not None and again.edges.kept.counts() == found.edges.kept.counts()
    with found.applied(planted.bridge), torch.no_grad():
        expected = planted.bridge(planted.prompts.tokens)
    with again.applied(planted.bridge), torch.no_grad():
        torch.testing.assert_close(planted.bridge(planted.prompts.tokens), expected)
    with pytest.raises(CircuitError, match="applied"):
        found.fwd_hooks()
    assert found.without_nodes({"mlp_in.0": [0]}).edges is None


@pytest.mark.parametrize("damage", ["outside", "twice", "name", "missing", "means"])
def test_damaged_edge_files(planted: Planted, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    from sparse_lens.circuits.edges.cutting import CircuitEdges

    means = input_means(planted.bridge, planted.batch.clean, planted.reference, (FIRST, SECOND))
    edges = candidate_edges(planted.space, full_mask(planted.space), weight_graph(planted.bridge, planted.batch))
    mask, fingerprint = full_mask(planted.space), model_fingerprint(planted.bridge)
    circuit = Circuit(mask, planted.space, planted.reference, "planted", fingerprint, 0.1, 0.0)
    replace(circuit, edges=CircuitEdges(edges, edges, means)).save(tmp_path / "c")
    path = tmp_path / "c" / "circuit.safetensors"
    tensors = load_file(path)
    index = tensors["edges.kept.mlp_in.0"]
    if damage == "outside":
        index[0, 0] = 99
    elif damage == "twice":
        index[1] = index[0]
    elif damage == "name":
        tensors["edges.kept.other.0"] = index.clone()
    elif damage == "missing":
        del tensors["edges.cut.mlp_in.0"]
    else:
        tensors["edges.means.mlp_in.0"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(CircuitError, match=r"find it again|cannot have"):
        Circuit.load(tmp_path / "c", planted.bridge)


def test_bad_input(planted: Planted) -> None:
    mask = full_mask(planted.space)
    circuit = Circuit(mask, planted.space, planted.reference, "if_equals", model_fingerprint(planted.bridge), 0.1, 0.0)
    with pytest.raises(CircuitError, match="found in the model"):
        find_edges(random_bridge(), circuit)
    with pytest.raises(CircuitError, match="fixed values"):
        find_edges(planted.bridge, replace(circuit, ablation="resample"))
    with pytest.raises(CircuitError, match="nodes only"):
        circuit.edges_frame()
    assert Candidate(mask, 0.0, "x").size == planted.space.n_nodes


def test_a_circuit_without_edges_has_none_to_find() -> None:
    """Where no node is needed, as for an answer that the bigram table gives, no edge leads to the answer."""
    bridge = load("python-dense-matched")
    space = node_space(bridge)
    none, means = full_mask(space, keep=False), mean_reference(bridge, space, default_windows(bridge))
    circuit = Circuit(none, space, means, "else_elif", model_fingerprint(bridge), 9.0, 0.0)
    config = SearchConfig(steps=2, search_pairs=8, evaluation_pairs=4, evaluations=2)
    found = find_edges(bridge, circuit, config=config, progress=False)
    assert found.edges is not None and found.edges.kept.n_edges == 0 and found.reached
