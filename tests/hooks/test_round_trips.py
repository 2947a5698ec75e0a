"""Models that are copied, converted, saved and loaded again compute the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

from sparse_lens.errors import OutputError
from sparse_lens.hooks import load
from sparse_lens.hooks.loading import find_model
from sparse_lens.models import CircuitGPTForCausalLM, load_checkpoint

pytestmark = pytest.mark.tool(
    "state_dict, deepcopy, to(), save_pretrained, Auto classes, text-generation pipeline, tokens and strings"
)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_save_pretrained(architecture: TransformerBridge, tokens: Tensor, tmp_path: Path) -> None:
    """What `save_pretrained` writes, and `push_to_hub` uploads, loads here and with the Auto classes."""
    architecture.original_model.save_pretrained(tmp_path / "saved")
    expected = architecture(tokens)
    torch.testing.assert_close(load(tmp_path / "saved")(tokens), expected)
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert isinstance(auto, CircuitGPTForCausalLM)
    torch.testing.assert_close(auto(tokens).logits, expected)
    config = AutoConfig.from_pretrained(tmp_path / "saved").to_dict() | {"_name_or_path": ""}
    assert config == architecture.original_model.config.to_dict()


@torch.no_grad()
def test_saving_over_the_folder_it_was_loaded_from(architecture: TransformerBridge, tokens: Tensor, tmp_path: Path) -> None:
    """The weights are mapped from the old file, which must not be written over in place."""
    architecture.original_model.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    expected = loaded(tokens).logits
    (tmp_path / "notes.txt").write_text("mine")
    loaded.save_pretrained(tmp_path)
    assert torch.equal(loaded(tokens).logits, expected)
    assert torch.equal(load_checkpoint(tmp_path)(tokens).logits, expected)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "notes.txt",
    ]


def test_a_file_in_the_way(architecture: TransformerBridge, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError, match="in the way"):
        architecture.original_model.save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_to(architecture: TransformerBridge, tokens: Tensor, dtype: torch.dtype) -> None:
    expected = architecture(tokens).float()
    converted = copy.deepcopy(architecture).to(dtype)
    logits, cache = converted.run_with_cache(tokens)
    assert logits.dtype == cache["blocks.0.attn.hook_z"].dtype == dtype
    same_choice = (logits.float().argmax(-1) == expected.argmax(-1)).float().mean()
    assert same_choice > (0.99 if dtype == torch.float64 else 0.7)
    assert architecture(tokens).dtype == torch.float32
    assert converted.to("cpu", torch.float64)(tokens).dtype == torch.float64


@torch.no_grad()
def test_state_dict(architecture: TransformerBridge, tokens: Tensor) -> None:
    expected, twin = architecture(tokens), copy.deepcopy(architecture)
    for parameter in twin.parameters():
        parameter.mul_(2)
    assert not torch.equal(twin(tokens), expected)
    twin.load_state_dict(architecture.state_dict())
    assert torch.equal(twin(tokens), expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped model as plain Hugging Face files, with its tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "python-sparse"
    load_checkpoint(find_model("python-sparse")).save_pretrained(folder)
    load("python-sparse").tokenizer.save_pretrained(folder)
    return folder


def test_text_generation_pipeline(saved: Path) -> None:
    writer = pipeline("text-generation", model=str(saved), tokenizer=str(saved))
    prompt = "for i in range(10):\n    "
    (found,) = writer(prompt, max_new_tokens=8, do_sample=False)
    bridge = load(saved)
    expected = bridge.generate(prompt, max_new_tokens=8, do_sample=False, verbose=False, stop_at_eos=True)
    assert found["generated_text"] == expected
    assert len(found["generated_text"]) > len(prompt)


def test_a_saved_tokenizer_is_the_same(saved: Path) -> None:
    bridge, auto = load("python-sparse"), AutoTokenizer.from_pretrained(saved)
    text = "def f(x):\n    return x['a'] + \"b\"\n"
    assert auto(text)["input_ids"] == bridge.tokenizer(text)["input_ids"] == load(saved).tokenizer(text)["input_ids"]


def test_tokens_and_strings() -> None:
    bridge = load("python-sparse")
    text = "while True:\n    return x == 1\n"
    tokens = bridge.to_tokens(text)
    assert bridge.cfg.default_prepend_bos is False
    assert bridge.to_string(tokens[0]) == text
    assert "".join(bridge.to_str_tokens(text)) == text
    assert len(bridge.to_str_tokens(text)) == tokens.shape[1]
    with_bos = bridge.to_tokens(text, prepend_bos=True)
    assert with_bos.shape[1] == tokens.shape[1] + 1
    assert int(with_bos[0, 0]) == bridge.tokenizer.eos_token_id
    assert torch.equal(with_bos[:, 1:], tokens)
    assert bridge.to_single_token(" return") == bridge.tokenizer.encode(" return")[0]
    assert bridge.get_token_position(" ==", text) == bridge.to_str_tokens(text).index(" ==")


def test_bf16_close_to_fp32() -> None:
    text = "for i in range(10):\n    print(i)\n"
    exact, half = load("python-dense"), load("python-dense", dtype=torch.bfloat16)
    assert half.cfg.dtype == torch.bfloat16
    with torch.no_grad():
        difference = (half(text).float().log_softmax(-1) - exact(text).log_softmax(-1)).abs().mean()
    assert 0 < difference < 0.1
