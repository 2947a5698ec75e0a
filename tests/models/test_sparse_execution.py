"""Sparse execution against its slow twin, the dense model: outputs, hook points, patching, generation, memory, and the way back."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sparse_lens.errors import CheckpointError, SparseLensError, UnknownNameError
from sparse_lens.hooks import load, wrap
from sparse_lens.kernels import CompressedRows, compress_rows
from sparse_lens.models import (
    ABSTOPK_SITES,
    PAPER_SITES,
    CircuitGPTConfig,
    CircuitGPTForCausalLM,
    dense_execution,
    is_sparse,
    load_checkpoint,
    load_sparse,
    save_packed,
    save_reference,
    sparse_loading,
    weight_bytes,
)
from sparse_lens.models.sparse_execution import CompressedEmbedding, CompressedLinear, sparse_execution

BASE = {
    "block_size": 16,
    "vocab_size": 40,
    "n_layer": 2,
    "n_head": 3,
    "d_model": 24,
    "d_head": 5,
    "d_mlp": 50,
    "tied_unembed": False,
}
PAPER = {"rms_norm": True, "afrac": 0.25, "afrac_loctypes": ",".join(PAPER_SITES)}
BIGRAM = {"enable_bigram_table": True, "learnable_bigram_table": True}
FLAVOURS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied, no biases": {"tied_unembed": True, "bias": False, "ln_bias": False},
    "paper": {**PAPER, **BIGRAM, "sink": True, "bias": False},
    "sink, concatenated positions": {"sink": True, "d_pos_emb": 6, "rms_norm": True},
    "all sites, relu": {
        **{"afrac": 0.5, "afrac_loctypes": ",".join(ABSTOPK_SITES), "sink": True, "activation_type": "relu"},
        **{"residual_activation_type": "relu", "d_pos_emb": 3, "sinusoidal_cat_pos_emb": True},
    },
    "fixed bigram": {"enable_bigram_table": True, "tied_unembed": True},
    "experts": {"n_experts": 5, "experts_per_token": 2},
}
every_flavour = pytest.mark.parametrize("fields", FLAVOURS.values(), ids=FLAVOURS.keys())


def random_model(density: float = 0.2, **fields: Any) -> CircuitGPTForCausalLM:
    """A small model whose matrices have that density, with every bias, gain and sink logit random."""
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**(BASE | fields))).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.core.named_parameters():
            gain = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(gain + 0.4 * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 2 and name != "wpe.weight":
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return model


def twins(density: float = 0.2, most: float = 0.5, **fields: Any) -> tuple[CircuitGPTForCausalLM, CircuitGPTForCausalLM]:
    """A dense model and the same one in sparse execution."""
    dense = random_model(density, **fields)
    return dense, sparse_execution(copy.deepcopy(dense), most=most)


def tokens(batch: int = 6, length: int = 12) -> Tensor:
    return torch.randint(BASE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def assert_same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit, under the same names."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@every_flavour
@torch.no_grad()
def test_it_equals_the_dense_model(fields: dict[str, Any]) -> None:
    """Many tokens, one token, padded rows, and a sequence in pieces with the key-value cache."""
    dense, sparse = twins(**fields)
    assert is_sparse(sparse) and not is_sparse(dense)
    assert {type(sparse.core.lm_head), type(sparse.core.wte)} == {CompressedLinear, CompressedEmbedding}
    for inputs in (tokens(), tokens(1, 1), tokens(1, 3)):
        assert_close(sparse.core(inputs), dense.core(inputs))
    mask = (torch.arange(12) >= torch.arange(6)[:, None]).long()
    assert_close(sparse.core(tokens(), mask)[mask == 1], dense.core(tokens(), mask)[mask == 1])
    past = DynamicCache(config=sparse.config)
    pieces = [sparse(piece, past_key_values=past, use_cache=True).logits for piece in tokens().split([4, 1, 7], dim=1)]
    assert_close(torch.cat(pieces, 1), dense.core(tokens()))


@every_flavour
@torch.no_grad()
def test_every_hook_point_sees_the_same(fields: dict[str, Any]) -> None:
    """Every activation by name, those between scores and pattern too, which are not made when nobody watches them."""
    dense, sparse = (wrap(model) for model in twins(**fields))
    expected_logits, expected = dense.run_with_cache(tokens())
    logits, cache = sparse.run_with_cache(tokens())
    assert_close(logits, expected_logits)
    assert list(cache) == list(expected) and any("hook_pattern" in name for name in cache)
    for name in expected:
        assert_close(cache[name].float(), expected[name].float())
    assert_close(sparse(tokens()), logits)


SITES = [
    *(f"blocks.1.attn.{hook}" for hook in ("hook_act_in", "hook_q", "hook_k", "hook_v", "hook_z", "hook_out")),
    *(f"blocks.1.attn.{hook}" for hook in ("hook_attn_scores", "hook_pattern", "hook_sink", "q.hook_out")),
    *("blocks.0.mlp.hook_post", "blocks.0.hook_out", "embed.hook_out", "bigram.hook_out", "unembed.hook_in"),
]


@torch.no_grad()
def test_patching() -> None:
    """An edit at any hook point changes the logits as it does in the dense model."""
    dense, sparse = (wrap(model) for model in twins(**FLAVOURS["paper"]))
    for site in SITES:
        edit = [(site, lambda tensor, hook: tensor.roll(1, dims=0) * 0.5)]
        expected = dense.run_with_hooks(tokens(), fwd_hooks=edit)
        assert_close(sparse.run_with_hooks(tokens(), fwd_hooks=edit), expected)
        assert not torch.allclose(expected, dense(tokens()), atol=1e-4), site


@torch.no_grad()
def test_the_pattern_is_made_for_whoever_watches() -> None:
    """Torch's own hooks and a module in the hook point's place count; without either it is not made."""
    bridge = wrap(twins(**FLAVOURS["paper"])[1])
    attention, seen = bridge.blocks[0].attn, []
    handle = attention.hook_pattern.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    bridge(tokens())
    handle.remove()
    bridge(tokens())
    assert seen == [(6, 3, 12, 12)]
    before = bridge(tokens())
    attention.hook_pattern = torch.nn.Identity()
    assert_close(bridge(tokens()), before)
    attention.hook_pattern = torch.nn.Threshold(2.0, 0.0)  # takes all attention away
    assert not torch.allclose(bridge(tokens()), before, atol=1e-3)


@pytest.mark.filterwarnings("ignore:while use_")
@torch.no_grad()
def test_split_inputs_and_results_of_heads() -> None:
    """TransformerLens' flags, for which the dense weight is made."""
    dense, sparse = (wrap(model) for model in twins(**FLAVOURS["plain"]))
    for bridge in (dense, sparse):
        bridge.set_use_split_qkv_input(True)
        bridge.set_use_attn_result(True)
    edit = [
        ("blocks.1.hook_q_input", lambda tensor, hook: tensor * 0.5),
        ("blocks.0.attn.hook_result", lambda tensor, hook: tensor * 2),
    ]
    assert_close(sparse.run_with_hooks(tokens(), fwd_hooks=edit), dense.run_with_hooks(tokens(), fwd_hooks=edit))


@every_flavour
def test_generation(fields: dict[str, Any]) -> None:
    """The same tokens as the dense model's, with the key-value cache and without."""
    dense, sparse = (wrap(model) for model in twins(**fields))
    settings: dict[str, Any] = {
        "max_new_tokens": 8,
        "do_sample": False,
        "verbose": False,
        "return_type": "tokens",
        "stop_at_eos": False,
    }
    expected = dense.generate(tokens(2, 4), use_past_kv_cache=False, **settings)
    for cached in (True, False):
        assert torch.equal(sparse.generate(tokens(2, 4), use_past_kv_cache=cached, **settings), expected)


def test_a_gradient_is_refused() -> None:
    """Of the loss, of an activation, of embeddings: whoever asks is told why, and no parameter offers one."""
    _, sparse = twins()
    assert not any(parameter.requires_grad for parameter in sparse.parameters())
    message = "sparse execution is for inference: a gradient was asked for"
    with pytest.raises(SparseLensError, match=message):
        sparse(tokens(), labels=tokens()).loss.backward()
    embeds = torch.randn(2, 5, 24, requires_grad=True)
    with pytest.raises(SparseLensError, match=message):
        torch.autograd.grad(sparse(inputs_embeds=embeds).logits.sum(), embeds)
    bridge, kept = wrap(sparse), []
    hooks = [
        ("blocks.0.hook_in", lambda tensor, hook: tensor.requires_grad_()),
        ("blocks.1.hook_out", lambda tensor, hook: kept.append(tensor)),
    ]
    bridge.run_with_hooks(tokens(), fwd_hooks=hooks)
    with pytest.raises(SparseLensError, match=message):
        kept[0].sum().backward()
    with pytest.raises(SparseLensError, match=r"got a torch\.func transform"):
        torch.func.vmap(sparse.core.lm_head)(torch.randn(3, 2, 24))


def test_logits_can_be_changed_in_place() -> None:
    """As those of the dense model, while gradients are enabled too."""
    logits = twins()[1].core(tokens())
    logits[:, 0] = 0
    assert not logits[:, 0].any()


@pytest.mark.parametrize("fields", [FLAVOURS["paper"], FLAVOURS["tied, no biases"]])
def test_memory_falls_with_density(fields: dict[str, Any]) -> None:
    """Six bytes a nonzero, four a row, four for each number that stayed dense; a matrix above the threshold is not compressed."""
    held = []
    for density in (0.4, 0.1, 0.01):
        model = random_model(density, **fields)
        weights = {id(weight): weight for name, weight in model.core.named_parameters() if name != "wpe.weight"}
        matrices = [weight for weight in weights.values() if weight.ndim == 2]
        rest = sum(4 * weight.numel() for weight in model.core.parameters()) - sum(4 * weight.numel() for weight in matrices)
        expected = rest + sum(6 * int(weight.count_nonzero()) + 4 * (len(weight) + 1) for weight in matrices)
        freed = weakref.ref(model.core.blocks[0].mlp.fc_in.weight)
        del weights, matrices
        held.append(weight_bytes(sparse_execution(model, most=0.6)))
        assert held[-1] == expected
        assert freed() is None
    assert held[0] > held[1] > held[2]
    dense = random_model(0.3, **fields)
    before = weight_bytes(dense)
    assert weight_bytes(sparse_execution(dense)) == before and is_sparse(dense)


@every_flavour
def test_and_back(fields: dict[str, Any]) -> None:
    """Bit for bit, tied weights tied, gradients as before; asking twice for either changes nothing."""
    dense, model = twins(**fields)
    bridge = wrap(sparse_execution(model))
    assert_same_weights(model._own_state(), dense.state_dict())
    assert_same_weights(bridge.state_dict(), wrap(copy.deepcopy(dense)).state_dict())
    dense_execution(dense_execution(bridge))
    assert not is_sparse(bridge)
    assert torch.equal(bridge(tokens()), dense(tokens()).logits)
    assert weight_bytes(bridge) == weight_bytes(dense)
    wanted = {name: parameter.requires_grad for name, parameter in dense.named_parameters()}
    found = {name.replace("_original_component.", ""): weight.requires_grad for name, weight in model.named_parameters()}
    assert found == wanted
    bridge(tokens()).sum().backward()
    assert model.core.blocks[0].mlp.fc_in.weight.grad is not None


def test_weights_can_be_read_and_not_set(tmp_path: Path) -> None:
    dense, sparse = twins()
    layer = sparse.core.blocks[0].mlp.fc_in
    assert torch.equal(layer.weight, dense.core.blocks[0].mlp.fc_in.weight)
    for value in (torch.zeros(50, 24), torch.nn.Parameter(torch.zeros(50, 24))):
        with pytest.raises(SparseLensError, match="weights cannot be set or loaded"):
            layer.weight = value
    with pytest.raises(SparseLensError, match="weights cannot be set or loaded"):
        sparse.load_state_dict(dense.state_dict())
    save_reference(sparse, tmp_path / "saved")
    assert torch.equal(load_checkpoint(tmp_path / "saved").core(tokens()), dense.core(tokens()))
    with pytest.raises(IndexError):
        sparse.core.wte(torch.tensor([40]))


def test_dropout_while_training_is_the_dense_models() -> None:
    dense, sparse = (model.train() for model in twins(dropout=0.5))
    found = []
    for model in (dense, sparse):
        torch.manual_seed(0)
        found.append(model.core(tokens()).detach())
    assert_close(found[1], found[0])


def test_what_it_does_not_fit() -> None:
    with pytest.raises(SparseLensError, match=r"in float32 on the CPU, wte\.weight is torch\.bfloat16"):
        sparse_execution(random_model().bfloat16())
    with pytest.raises(SparseLensError, match="needs a CircuitGPT model or its bridge, got Linear"):
        sparse_execution(torch.nn.Linear(2, 2))
    moved = twins()[1].bfloat16()
    with pytest.raises(SparseLensError, match=r"got torch\.bfloat16 on cpu"):
        moved.core.lm_head(torch.zeros(2, 24, dtype=torch.bfloat16))


@every_flavour
@torch.no_grad()
def test_loading(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Of a packed folder and of a mapped file the weights that `load_checkpoint` reads."""
    save_packed(random_model(**fields), tmp_path)
    random_model(**fields).save_pretrained(tmp_path / "mapped")
    for folder in (tmp_path, tmp_path / "mapped"):
        dense, sparse = load_checkpoint(folder), load_sparse(folder, most=0.5)
        assert is_sparse(sparse) and not sparse.training
        assert_same_weights(sparse.state_dict(), dense.state_dict())
        assert weight_bytes(sparse) == weight_bytes(sparse_execution(dense, most=0.5))


def test_the_dense_matrices_are_never_made(tmp_path: Path) -> None:
    """What a packed folder gives, from the mask's bits and the values alone: the nonzeros of all matrices but the positions."""
    save_packed(random_model(**FLAVOURS["paper"]), tmp_path)
    given = dict(sparse_loading.each_packed_weight(tmp_path, 0.5))
    assert {name for name, part in given.items() if isinstance(part, Tensor) and part.ndim == 2} == {"wpe.weight"}
    for name, part in load_checkpoint(tmp_path).core.named_parameters():
        if isinstance(rows := given.get(name), CompressedRows):
            expected = compress_rows(part)
            for kind in ("starts", "columns", "values"):
                assert np.array_equal(getattr(rows, kind), getattr(expected, kind))
                assert getattr(rows, kind).dtype == getattr(expected, kind).dtype


def test_a_damaged_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, superfluous, wrongly shaped and infinite tensors are named, as by `load_checkpoint`."""
    save_packed(random_model(), tmp_path)
    whole: dict[str, Any] = dict(sparse_loading.each_packed_weight(tmp_path, 0.0))
    damages: dict[str, dict[str, Any]] = {
        r"missing lm_head\.weight": {name: tensor for name, tensor in whole.items() if name != "lm_head.weight"},
        r"unexpected foreign": whole | {"foreign": torch.zeros(2)},
        r"wte\.weight .* has shape \(3, 24\)": whole | {"wte.weight": torch.zeros(3, 24)},
        r"wte\.weight .* not finite": whole | {"wte.weight": whole["wte.weight"] * float("nan")},
        r"lm_head\.bias .* not finite": whole | {"lm_head.bias": torch.full((40,), float("inf"))},
        r"holds 'wte\.weight' twice": whole | {"core.wte.weight": whole["wte.weight"]},
    }
    for message, state in damages.items():
        monkeypatch.setattr(sparse_loading, "each_packed_weight", lambda folder, most, state=state: iter(state.items()))
        with pytest.raises(CheckpointError, match=message):
            load_sparse(tmp_path)
        compressed = {name: compress_rows(part) if part.ndim == 2 else part for name, part in state.items()}
        monkeypatch.setattr(sparse_loading, "each_packed_weight", lambda folder, most, state=compressed: iter(state.items()))
        with pytest.raises(CheckpointError, match=message):
            load_sparse(tmp_path)


@torch.no_grad()
def test_the_shipped_model() -> None:
    """`load(execution="sparse")`: the bridge of the dense one, with half the memory (its bigram table is dense).

    Among these tokens AbsTopK meets no two magnitudes that float32's rounding can swap; where it does, dense and sparse execution
    differ from each other as either does from float64.
    """
    dense, sparse = load("python-sparse"), load("python-sparse", execution="sparse")
    prompt = torch.randint(dense.cfg.d_vocab, (3, 64), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sparse(prompt), dense(prompt), atol=2e-5, rtol=1e-5)
    assert is_sparse(sparse) and weight_bytes(sparse) < 0.6 * weight_bytes(dense)
    assert_same_weights(sparse.state_dict(), dense.state_dict())


def test_options_that_do_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="unknown execution 'fast'"):
        load("python-sparse", execution="fast")
    with pytest.raises(SparseLensError, match=r"float32 on the CPU, asked for was torch\.bfloat16 on cpu"):
        load("python-sparse", execution="sparse", dtype=torch.bfloat16)
