"""Bases: exact, onto the right directions, and without effect on the model."""

from __future__ import annotations

import pytest
import torch

from sparse_lens.circuits import SearchConfig, node_space
from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.bases import head_singular_vectors, principal_components, random_bases, residual_components
from sparse_lens.comparisons.circuit_sizes import prepare_setting, search_column
from sparse_lens.comparisons.column_specs import ColumnSpec, open_column
from sparse_lens.dictionaries import harvest_activations
from sparse_lens.errors import DataError
from sparse_lens.hooks import load, splice
from sparse_lens.hooks.layout import layer_matrices

TOKENS = torch.from_numpy(ModelPair.open().windows["heldout"][:8, :-1])
HOOK = "blocks.1.hook_mlp_out"


def test_principal_components_diagonalize_the_covariance_and_do_not_depend_on_the_batches() -> None:
    bridge = load("python-dense-matched")
    (whole,), (halves,) = (principal_components(bridge, [HOOK], batches) for batches in ([TOKENS], [TOKENS[:3], TOKENS[3:]]))
    assert (whole.rotation.abs() - halves.rotation.abs()).abs().max() < 1e-4
    x = next(harvest_activations(bridge, [HOOK], [TOKENS]))[HOOK]
    covariance = torch.cov(whole.encode(x).double().T, correction=0)
    variances = covariance.diagonal()
    assert (covariance - variances.diag()).abs().max() < 1e-5 * variances.max()
    assert torch.equal(variances.sort(descending=True).values, variances)
    expected = torch.cov(x.double().T, correction=0)
    assert variances[0] == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-5)


def test_singular_vectors_make_each_heads_directions_orthogonal() -> None:
    bridge = load("python-dense-matched")
    rotations = {rotation.hook: rotation.rotation for rotation in head_singular_vectors(bridge)}
    matrices, heads = layer_matrices(bridge, 0), int(bridge.cfg.n_heads)
    for hook, matrix in (("attn.hook_q", matrices.q), ("attn.hook_k", matrices.k), ("attn.hook_v", matrices.o.T)):
        rotated = rotations[f"blocks.0.{hook}"].T @ matrix
        for head in rotated.chunk(heads):
            products = head @ head.T
            assert (products - products.diagonal().diag()).abs().max() < 1e-4 * products.max()


@pytest.mark.parametrize("name", ["residual", "heads", "random"])
@pytest.mark.parametrize("model", ["python-dense-matched", "python-sparse"])
def test_a_model_in_another_basis_is_the_same_model(model: str, name: str) -> None:
    bridge = load(model)
    made = {"residual": lambda: residual_components(bridge, [TOKENS]), "heads": lambda: head_singular_vectors(bridge)}
    bases = made.get(name, lambda: random_bases(bridge))()
    space = node_space(bridge, bases)
    assert space.n_nodes == node_space(bridge).n_nodes and space.has_dictionaries
    with torch.no_grad():
        plain = bridge(TOKENS)
        with splice(bridge, bases, mode="edit", edit=lambda latents, error: (latents + 0, error)):
            assert (bridge(TOKENS) - plain).abs().max() < 2e-3


def test_without_tokens_there_are_no_components() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        principal_components(load("python-dense-matched"), [HOOK], [])


@pytest.mark.slow
def test_a_rotated_copy_of_the_sparse_model_loses_its_small_circuit() -> None:
    """The same losses in a basis that means nothing: at one target of one search the circuit takes several times the nodes, about
    as many as in the dense twin, which has as many neurons.
    """
    config = SearchConfig(steps=40, search_pairs=64, evaluation_pairs=32, evaluations=6)
    pair = ModelPair.open()
    specs = (ColumnSpec("own", "sparse"), ColumnSpec("turned", "sparse", "rotated"), ColumnSpec("twin", "dense"))
    columns = [open_column(pair.address, spec) for spec in specs]
    with torch.no_grad():
        plain, turned = columns[0].bridge(TOKENS), columns[1].bridge
        with splice(turned, random_bases(turned), mode="edit", edit=lambda latents, error: (latents + 0, error)):
            losses = [logits[:, :-1].log_softmax(-1).gather(2, TOKENS[:, 1:, None]) for logits in (plain, turned(TOKENS))]
    assert float((losses[0] - losses[1]).mean().abs()) < 1e-5
    settings = [prepare_setting(column, "single_double_quote", config, seed=0) for column in columns]
    own, rotated, twin = (search_column(setting, 0.3, config, seed=0, on_step=lambda *_: None) for setting in settings)
    assert own.circuit.reached and own.circuit.n_nodes < 150
    assert not rotated.circuit.reached or rotated.circuit.n_nodes > 3 * own.circuit.n_nodes
    sizes = rotated.circuit.n_nodes, twin.circuit.n_nodes
    assert twin.circuit.reached and max(sizes) < 3 * min(sizes)
