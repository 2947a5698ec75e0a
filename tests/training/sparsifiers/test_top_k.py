"""The sparsifier: exactly k per matrix, the largest ones, a minimum alive per neuron, everything else untouched."""

from __future__ import annotations

import pytest
import torch

from sparse_lens.errors import ConfigError
from sparse_lens.models import CircuitGPTConfig, CircuitGPTCore
from sparse_lens.training import TopK
from sparse_lens.training.sparsifiers import TopKProjection, sparse_matrices

SPARSITY = TopK(density=0.15, embedding_density=0.31, anneal_start=0.0, anneal_end=0.5, min_alive=2)


def random_core(**fields: object) -> CircuitGPTCore:
    shape = {"block_size": 8, "vocab_size": 40, "n_layer": 2, "n_head": 2, "d_model": 16, "tied_unembed": False}
    core = CircuitGPTCore(CircuitGPTConfig(**(shape | fields)))  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(generator=generator)
    return core


def nonzeros(core: CircuitGPTCore, *names: str) -> int:
    return sum(int((core.get_parameter(f"{name}.weight") != 0).sum()) for name in names)


@pytest.mark.parametrize(("progress", "density", "embedding"), [(0.25, 0.575, 0.655), (0.5, 0.15, 0.31), (1.0, 0.15, 0.31)])
def test_every_matrix_keeps_exactly_its_k(progress: float, density: float, embedding: float) -> None:
    """On the way and at the end; query, key and value count as one matrix."""
    core = random_core()
    TopKProjection(core, SPARSITY, 100).project(progress)
    for layer in ("blocks.0", "blocks.1"):
        assert nonzeros(core, *(f"{layer}.attn.{part}" for part in "qkv")) == int(density * 3 * 16 * 16)
        assert nonzeros(core, f"{layer}.attn.o") == int(density * 16 * 16)
        assert nonzeros(core, f"{layer}.mlp.fc_in") == nonzeros(core, f"{layer}.mlp.fc_out") == int(density * 64 * 16)
    assert nonzeros(core, "wte") == nonzeros(core, "lm_head") == int(embedding * 40 * 16)
    assert nonzeros(core, "wpe") == int(density * 8 * 16)


def test_every_neuron_stays_alive() -> None:
    """Rows of q, k, v and the MLP input, columns of both outputs: the axes of the released script."""
    core = random_core()
    with torch.no_grad():  # without the minimum these neurons would lose everything
        for name, axis in (("attn.q", 0), ("attn.k", 0), ("attn.v", 0), ("attn.o", 1), ("mlp.fc_in", 0), ("mlp.fc_out", 1)):
            core.get_parameter(f"blocks.0.{name}.weight").select(axis, 3).mul_(1e-6)
    TopKProjection(core, SPARSITY, 100).project(1.0)
    for layer in ("blocks.0", "blocks.1"):
        for name in ("attn.q", "attn.k", "attn.v", "mlp.fc_in"):
            assert (core.get_parameter(f"{layer}.{name}.weight") != 0).sum(1).min() >= 2
        for name in ("attn.o", "mlp.fc_out"):
            assert (core.get_parameter(f"{layer}.{name}.weight") != 0).sum(0).min() >= 2


def test_what_is_kept_is_the_largest_and_unchanged() -> None:
    """Without a minimum, no dropped weight exceeds a kept one, and kept weights keep their value."""
    core = random_core()
    before = {name: parameter.detach().clone() for name, parameter in core.named_parameters()}
    TopKProjection(core, SPARSITY.model_copy(update={"min_alive": 0}), 100).project(1.0)
    stacked, old = (
        torch.cat([weights[f"blocks.1.attn.{part}.weight"] for part in "qkv"])
        for weights in (dict(core.named_parameters()), before)
    )
    kept = stacked != 0
    assert torch.equal(stacked[kept], old[kept])
    assert old[kept].abs().min() >= old[~kept].abs().max()


def test_the_rest_stays_dense() -> None:
    """Biases, norms, sink logits, the bigram table and concatenated positions are never projected."""
    core = random_core(sink=True, enable_bigram_table=True, learnable_bigram_table=True, d_pos_emb=4)
    before = {name: parameter.detach().clone() for name, parameter in core.named_parameters()}
    TopKProjection(core, SPARSITY, 100).project(1.0)
    changed = {name for name, parameter in core.named_parameters() if not torch.equal(parameter, before[name])}
    parts = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.fc_in", "mlp.fc_out")
    blocks = {f"blocks.{layer}.{part}.weight" for layer in (0, 1) for part in parts}
    assert changed == blocks | {"wte.weight", "lm_head.weight"}


def test_a_tied_embedding_is_projected_once() -> None:
    """One matrix, one density."""
    core = random_core(tied_unembed=True)
    assert len(sparse_matrices(core, SPARSITY)) == 2 * 4 + 2
    TopKProjection(core, SPARSITY, 100).project(1.0)
    assert nonzeros(core, "wte") == nonzeros(core, "lm_head") == int(0.31 * 40 * 16)


def test_the_forms_agree() -> None:
    """The numba selection and torch's keep the same weights."""
    fast, plain = random_core(), random_core()
    TopKProjection(fast, SPARSITY, 100, fast=True).project(0.4)
    TopKProjection(plain, SPARSITY, 100, fast=False).project(0.4)
    for name, parameter in fast.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name))


def test_before_the_anneal_nothing_happens() -> None:
    """At density one the weights stay as they are."""
    core, untouched = random_core(), random_core()
    TopKProjection(core, SPARSITY.model_copy(update={"anneal_start": 0.3}), 100).project(0.2)
    assert all(torch.equal(parameter, untouched.get_parameter(name)) for name, parameter in core.named_parameters())


def test_a_density_below_the_minimum() -> None:
    """Asking for more alive weights than the density leaves is the user's error, not a silent choice."""
    with pytest.raises(ConfigError, match="lower min_alive or raise the density"):
        TopKProjection(random_core(), SPARSITY.model_copy(update={"density": 0.05}), 100).project(1.0)
