"""Model folders: every format comes back as it was written; what is missing, superfluous, damaged or hostile is named."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_lens.errors import CheckpointError, ConfigError
from sparse_lens.models import (
    PAPER_SITES,
    CircuitGPTConfig,
    CircuitGPTForCausalLM,
    load_checkpoint,
    read_config,
    save_packed,
    save_reference,
)

BASE = {"block_size": 16, "vocab_size": 24, "n_layer": 2, "n_head": 2, "d_model": 8, "d_head": 4, "d_mlp": 12}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied layer norm": {},
    "rms without biases": {"rms_norm": True, "bias": False, "tied_unembed": False},
    "layer norm without bias": {"ln_bias": False, "d_head": 3},
    "paper": {
        **{"rms_norm": True, "tied_unembed": False, "afrac": 0.5, "afrac_loctypes": ",".join(PAPER_SITES)},
        **{"sink": True, "enable_bigram_table": True, "learnable_bigram_table": True},
    },
    "fixed bigram": {"enable_bigram_table": True},
    "concatenated positions": {"d_pos_emb": 4},
    "sinusoidal positions": {"d_pos_emb": 5, "sinusoidal_cat_pos_emb": True},
    "relu": {"activation_type": "relu", "residual_activation_type": "relu"},
}
every_variant = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())


def random_model(**fields: Any) -> CircuitGPTForCausalLM:
    """A small model in which no parameter is zero or one, so that a lost one is seen."""
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**(BASE | fields)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model.eval()


def tokens() -> Tensor:
    return torch.randint(0, BASE["vocab_size"], (2, 10), generator=torch.Generator().manual_seed(1))


def assert_same(model: CircuitGPTForCausalLM, expected: CircuitGPTForCausalLM) -> None:
    """Equal configuration, parameters, and logits, bit for bit."""
    state, wanted = model.core.state_dict(), expected.core.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    for name in BASE | {"afrac": 0, "tied_unembed": 0, "bias": 0, "rms_norm": 0, "sink": 0, "d_pos_emb": 0}:
        assert getattr(model.config, name) == getattr(expected.config, name)
    assert torch.equal(model.core(tokens()), expected.core(tokens()))
    assert not model.training


@every_variant
def test_the_reference_format(tmp_path: Path, fields: dict[str, Any]) -> None:
    """`beeg_config.json` and `final_model.pt`, written and read."""
    model = random_model(**fields)
    save_reference(model, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"beeg_config.json", "final_model.pt"}
    assert_same(load_checkpoint(tmp_path / "model"), model)


@every_variant
def test_the_packed_format(tmp_path: Path, fields: dict[str, Any]) -> None:
    """`config.json` and packed weights: the model comes back rounded to fp16 and nothing else."""
    model = random_model(**fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
        model.core.blocks[0].get_parameter("mlp.fc_in.weight")[1:].zero_()
    save_packed(model, tmp_path)
    assert_same(load_checkpoint(tmp_path), model)


@every_variant
def test_the_hugging_face_format(tmp_path: Path, fields: dict[str, Any]) -> None:
    """`save_pretrained`, read by this package and by `from_pretrained`."""
    model = random_model(**fields)
    model.save_pretrained(tmp_path)
    assert_same(load_checkpoint(tmp_path), model)
    assert_same(CircuitGPTForCausalLM.from_pretrained(tmp_path).eval(), model)


def test_shards(tmp_path: Path) -> None:
    """Weights in several files with an index; a shard outside the folder is refused."""
    model = random_model()
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    index = tmp_path / "model.safetensors.index.json"
    assert_same(load_checkpoint(tmp_path), model)
    content = json.loads(index.read_text())
    content["weight_map"]["core.wte.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="outside its own folder"):
        load_checkpoint(tmp_path)


def test_another_dtype(tmp_path: Path) -> None:
    """`dtype` converts every weight."""
    save_reference(random_model(), tmp_path / "model")
    model = load_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_what_the_reference_may_leave_out_or_add(tmp_path: Path) -> None:
    """Causal-mask buffers are dropped, a missing logits bias is zeros, and inert fields of other revisions are ignored."""
    model = random_model()
    save_reference(model, tmp_path / "model")
    weights, config = tmp_path / "model" / "final_model.pt", tmp_path / "model" / "beeg_config.json"
    state = torch.load(weights, weights_only=True)
    del state["final_logits_bias"]
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    torch.save(state, weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mup": False, "unembed_rank": None}))
    with torch.no_grad():
        model.core.lm_head.bias.zero_()
    assert_same(load_checkpoint(tmp_path / "model"), model)


State = dict[str, Tensor]
BAD_WEIGHTS: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (lambda state: state.pop("core.blocks.1.mlp.fc_in.weight"), r"missing blocks\.1\.mlp\.fc_in\.weight"),
    "superfluous": (lambda state: state.update({"core.extra": torch.ones(1)}), "unexpected extra"),
    "misshapen": (lambda state: state.update({"core.wpe.weight": torch.ones(3, 8)}), r"\(3, 8\).* promises \(16, 8\)"),
    "NaN": (lambda state: state["core.ln_f.weight"].fill_(float("nan")), r"ln_f\.weight .* not finite"),
    "infinity": (lambda state: state["core.ln_f.bias"].fill_(float("inf")), r"ln_f\.bias .* not finite"),
    "integers": (lambda state: state.update({"core.ln_f.bias": torch.ones(8, dtype=torch.long)}), r"ln_f\.bias"),
    "twice": (lambda state: state.update({"ln_f.bias": torch.ones(8)}), r"holds 'ln_f\.bias' twice"),
}


@pytest.mark.parametrize(("edit", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
def test_weights_that_do_not_fit(tmp_path: Path, edit: Callable[[State], object], message: str) -> None:
    """Strict: one tensor too few, too many, misshapen or not finite is an error that names it."""
    random_model().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    edit(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 200, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["reference", "packed", "hugging face"])
def test_truncated_weights(tmp_path: Path, kind: str, kept: float) -> None:
    """A file cut anywhere is an error that names the folder, in every format."""
    folder = tmp_path / "model"
    if kind == "reference":
        save_reference(random_model(), folder)
    else:
        folder.mkdir()
        random_model().save_pretrained(folder) if kind == "hugging face" else save_packed(random_model(), folder)
    (weights,) = [path for path in folder.iterdir() if path.suffix in (".pt", ".safetensors")]
    content = weights.read_bytes()
    weights.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(CheckpointError, match=str(folder)):
        load_checkpoint(folder)


class Hostile:
    """Unpickling this makes a folder: the harmless stand-in for any command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_no_pickle_is_executed(tmp_path: Path, form: str) -> None:
    """Code hidden in a weights file does not run; the file is refused."""
    folder, trace = tmp_path / "model", tmp_path / "executed"
    save_reference(random_model(), folder)
    if form == "bare pickle":
        (folder / "final_model.pt").write_bytes(pickle.dumps(Hostile(trace)))
    else:
        torch.save({"w": Hostile(trace)}, folder / "final_model.pt", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"final_model\.pt"):
        load_checkpoint(folder)
    assert not trace.exists()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """Torch never compresses: an archive that does may be a bomb."""
    save_reference(random_model(), tmp_path / "model")
    weights = tmp_path / "model" / "final_model.pt"
    with zipfile.ZipFile(weights) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="compressed"):
        load_checkpoint(tmp_path / "model")


def test_folders_without_a_model(tmp_path: Path) -> None:
    """Nothing there, nothing in it, or a configuration alone: each says what was expected."""
    with pytest.raises(CheckpointError, match="no model folder at"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds neither config\.json nor beeg_config\.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "beeg_config.json").write_text(json.dumps(BASE))
    with pytest.raises(CheckpointError, match="holds no weights; expected"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[1]", "null", "\udcff"])
def test_a_broken_configuration_file(tmp_path: Path, content: str) -> None:
    """No JSON, no object, no text at all."""
    (tmp_path / "beeg_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"beeg_config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": 2}, "unknown fields: n_layers"),
        ({"rtopk": True}, "unpublished feature"),
        ({"d_model": 0}, "d_model must be an integer from 1"),
        ({"n_head": 0}, "n_head must be an integer from 1"),
        ({"n_layer": -1}, "n_layer"),
        ({"vocab_size": 1 << 30}, "vocab_size must be an integer"),
        ({"d_model": "8"}, "d_model"),
        ({"d_mlp": True}, "d_mlp"),
        ({"d_model": 2.5}, "d_model"),
        ({"bias": "yes"}, "bias must be true or false"),
        ({"sink": "false"}, "sink must be true or false"),
        ({"afrac": "0.5"}, "afrac must be a number"),
        ({"dropout": None}, "dropout must lie in"),
        ({"d_pos_emb": 1.5}, "d_pos_emb must be a positive integer"),
        ({"afrac": 0.5, "afrac_loctypes": ["attn_in"]}, "afrac_loctypes must be names"),
        ({"activation_type": ["gelu"]}, "activation_type must be one of"),
        ({"activation_type": "swish"}, "activation_type must be one of gelu, relu, got 'swish'"),
        ({"residual_activation_type": "tanh"}, "residual_activation_type must be one of"),
        ({"afrac": 0.0}, "afrac must lie in"),
        ({"afrac": 1.5}, "afrac must lie in"),
        ({"afrac": 0.5, "afrac_loctypes": "attn_in,mlp_hidden"}, "got 'mlp_hidden'"),
        ({"d_pos_emb": 0}, "d_pos_emb must be a positive integer"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"n_layer": 1 << 20}, "n_layer must be an integer from 1 to 4096"),
        ({"n_layer": 1 << 12, "d_model": 1 << 20}, "more than the limit"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    """Every impossible value is named before any memory is taken; an unknown field is never dropped."""
    (tmp_path / "beeg_config.json").write_text(json.dumps(BASE | fields))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        read_config(tmp_path)


def test_the_default_widths(tmp_path: Path) -> None:
    """`d_head` and `d_mlp` follow from d_model; `n_mlp` is the old name of `d_mlp`."""
    shape = {name: value for name, value in BASE.items() if name not in ("d_head", "d_mlp")}
    (tmp_path / "beeg_config.json").write_text(json.dumps(shape))
    config = read_config(tmp_path)
    assert (config.d_head, config.d_mlp) == (4, 32)
    (tmp_path / "beeg_config.json").write_text(json.dumps(shape | {"n_mlp": 20}))
    assert read_config(tmp_path).d_mlp == 20


def test_another_architecture(tmp_path: Path) -> None:
    """A Hugging Face folder of another model is told apart by its model_type."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="model_type 'gpt2'"):
        read_config(tmp_path)
