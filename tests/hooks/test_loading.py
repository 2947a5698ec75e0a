"""`load`: names, folders, tokenizers, registration, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformer_lens.factories import architecture_adapter_factory as factory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import AutoModelForCausalLM

from sparse_lens.errors import CheckpointError, ConfigError, UnknownNameError
from sparse_lens.hooks import CircuitGPTBridge, available_models, load, loading, register
from sparse_lens.models import load_checkpoint

WORDS = ["def", "return", "x", "y", "(", ")", ":", "=", "+", "1", "2"]


def write_tokenizer(folder: Path, extra: int = 0, end: str | None = "<|endoftext|>", **settings: Any) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS + [f"extra{i}" for i in range(extra)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if end is not None:
        tokenizer.add_special_tokens([AddedToken(end, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture
def folder(sink_reference: Any, tmp_path: Path) -> Path:
    """A copy of a fixture, to be spoiled."""
    return Path(shutil.copytree(sink_reference.folder, tmp_path / "model"))


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, sink_reference: Any) -> None:
    monkeypatch.setattr(loading, "_shipped", lambda: {"python-sparse": sink_reference.folder, "another": Path("/nowhere")})


def test_shipped_names(shipped: None, sink_reference: Any) -> None:
    assert available_models() == ["another", "python-sparse"]
    tokens = sink_reference.expected["tokens"]
    torch.testing.assert_close(load("python-sparse")(tokens), sink_reference.expected["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["python-sparce", "./nothing/here", ""])
def test_unknown_names(shipped: None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UnknownNameError, CheckpointError), match=r"unknown model|no model folder|holds neither") as caught:
        load(name)
    if name == "python-sparce":
        assert "did you mean 'python-sparse'" in str(caught.value)


def test_path_forms(folder: Path) -> None:
    tokens = torch.arange(5)[None]
    assert torch.equal(load(str(folder))(tokens), load(folder)(tokens))
    assert load(folder).cfg.model_name == "model"


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds neither"):
        load(tmp_path / "empty")
    (folder / "final_model.pt").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError):
        load(tmp_path / "file")


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = torch.load(folder / "final_model.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "final_model.pt")


SPOILT: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda state: state.pop("transformer.ln_f.weight"), "missing ln_f.weight"),
    "unknown": (lambda state: state.update(surprise=torch.ones(2)), "unexpected surprise"),
    "nan": (lambda state: state["transformer.wte.weight"][3].fill_(float("nan")), "not finite"),
    "infinite": (lambda state: state["transformer.h.0.mlp.c_fc.weight"][0].fill_(float("inf")), "not finite"),
    "shape": (lambda state: state.update({"lm_head.weight": torch.ones(40, 16)}), "promises"),
    "qkv rows": (lambda state: state.update({"transformer.h.0.attn.c_attn.weight": torch.ones(47, 16)}), "n_head"),
    "no sink": (lambda state: state.pop("transformer.h.1.attn.attn_imp.sink_logit"), "missing blocks.1.attn.sink_logit"),
    "integers": (lambda state: state.update({"transformer.ln_f.weight": torch.ones(16, dtype=torch.long)}), "no plain tensor"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_weights(folder: Path, case: str) -> None:
    change, message = SPOILT[case]
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_truncated_weights(folder: Path, share: float) -> None:
    content = (folder / "final_model.pt").read_bytes()
    (folder / "final_model.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        load(folder)


class Malicious:
    """Pickles to a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_are_not_executed(folder: Path, tmp_path: Path, legacy: bool) -> None:
    trace = tmp_path / "executed"
    state = torch.load(folder / "final_model.pt", weights_only=True)
    state["payload"] = Malicious(trace)
    torch.save(state, folder / "final_model.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError):
        load(folder)
    assert not trace.exists()
    torch.load(folder / "final_model.pt", weights_only=False)  # else the test would prove nothing
    assert trace.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("n_layer", 0), ("d_model", -16), ("n_head", "4"), ("afrac", 7), ("activation_type", "swish")),
        *(("d_mlp", 10**9), ("surprise", 1), ("unembed_rank", 4), ("afrac_loctypes", "attn_inn")),
    ],
)
def test_spoilt_configuration(folder: Path, field: str, value: Any) -> None:
    path = folder / "beeg_config.json"
    fields = json.loads(path.read_text()) | {"afrac": 0.5, field: value}
    path.write_text(json.dumps(fields))
    with pytest.raises((CheckpointError, ConfigError)):
        load(folder)


def test_configuration_that_is_not_the_weights(folder: Path) -> None:
    path = folder / "beeg_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": 3}))
    with pytest.raises(CheckpointError, match=r"missing blocks\.2"):
        load(folder)


def test_bridge_is_checked_against_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_lens.hooks import components

    forward = components.MLP.forward
    monkeypatch.setattr(components.MLP, "forward", lambda *args: forward(*args) * 1.01)
    with pytest.raises(CheckpointError, match="largest difference"):
        load(folder)


def test_loading_is_silent_and_leaves_the_random_state(folder: Path) -> None:
    write_tokenizer(folder)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register()
        load(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_tokenizer_adds_nothing(folder: Path) -> None:
    write_tokenizer(folder)
    bridge = load(folder)
    end = len(WORDS)
    tokenizer: Any = bridge.tokenizer
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (end, end, end)
    assert tokenizer.padding_side == "right"
    assert bridge.to_tokens("def x").tolist() == [[0, 2]]
    assert bridge.to_tokens("def x", prepend_bos=True).tolist() == [[end, 0, 2]]
    assert bridge.to_tokens(["def x", "return"]).tolist() == [[0, 2], [1, end]]
    assert bridge.to_str_tokens("def x") == ["def", "x"]
    assert bridge.to_single_token("return") == 1
    assert bridge.tokenizer_prepends_bos is False if hasattr(bridge, "tokenizer_prepends_bos") else True
    assert load_bos(folder, add_bos_token=True) == [[end, 0, 2]]


def load_bos(folder: Path, **settings: Any) -> list[list[int]]:
    """Tokens of a folder whose tokenizer asks for something."""
    write_tokenizer(folder, **settings)
    return load(folder).to_tokens("def x").tolist()


def test_padded_batches_are_the_single_runs(folder: Path) -> None:
    write_tokenizer(folder)
    bridge = load(folder)
    short, long = "def x", "return x + y"
    for side, last in (("left", [-1, -1]), ("right", [1, 3])):
        batch = bridge([short, long], padding_side=side)
        for row, (text, position) in enumerate(zip((short, long), last, strict=True)):
            torch.testing.assert_close(batch[row, position], bridge(text)[0, -1], atol=1e-5, rtol=0)
    together = bridge.generate([short, long], max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False)
    alone = [bridge.generate(t, max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False) for t in (short, long)]
    assert together == alone


def test_other_end_of_text_token(folder: Path) -> None:
    write_tokenizer(folder, end="<eos>", eos_token={"content": "<eos>"})
    assert load(folder).tokenizer.eos_token == "<eos>"


@pytest.mark.parametrize(("arguments", "message"), [({"extra": 40}, "ids up to"), ({"end": None}, "no token '<.endoftext.>'")])
def test_tokenizer_of_another_model(folder: Path, arguments: dict[str, Any], message: str) -> None:
    write_tokenizer(folder, **arguments)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer(folder: Path, name: str) -> None:
    write_tokenizer(folder)
    (folder / name).write_text('{"model": ')
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_hugging_face_folder(sink_reference: Any, tmp_path: Path) -> None:
    """Saved by Transformers, read back by `load`, the Auto class, `boot_transformers` and a bare `build_bridge_from_module`."""
    load_checkpoint(sink_reference.folder).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, add_bos_token=False)
    tokens, logits = sink_reference.expected["tokens"], sink_reference.expected["logits"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    bridges = [load(tmp_path), TransformerBridge.boot_transformers(str(tmp_path), device="cpu")]
    torch.testing.assert_close(model(tokens).logits, logits, atol=1e-5, rtol=0)
    bridges.append(build_bridge_from_module(model, "CircuitGPTForCausalLM", hf_config=model.config))
    for bridge in bridges:
        assert isinstance(bridge, CircuitGPTBridge)
        torch.testing.assert_close(bridge(tokens), logits, atol=1e-5, rtol=0)


def test_registration() -> None:
    adapter = factory.SUPPORTED_ARCHITECTURES["CircuitGPTForCausalLM"]
    assert adapter.__name__ == "CircuitGPTArchitectureAdapter"
    factory.ArchitectureAdapterFactory.discover_entry_points()
    assert factory.ArchitectureAdapterFactory._adapters["CircuitGPTForCausalLM"] is adapter


@pytest.mark.slow
def test_entry_point_needs_no_import(sink_reference: Any, tmp_path: Path) -> None:
    """An installed package is found by TransformerLens' factory alone, without a warning."""
    if "CircuitGPTForCausalLM" not in entry_points(group="transformer_lens.architectures").names:
        pytest.skip("the package is not installed")
    program = (
        "from sparse_lens.models import load_checkpoint\n"
        "from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module\n"
        f"model = load_checkpoint({str(sink_reference.folder)!r})\n"
        "bridge = build_bridge_from_module(model, 'CircuitGPTForCausalLM', hf_config=model.config)\n"
        "print(type(bridge).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "CircuitGPTBridge", done.stderr
