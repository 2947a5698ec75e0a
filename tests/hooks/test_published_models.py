"""Models by released name: fetched from a stand-in on the loopback interface, loaded, and held to what is published."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_lens.errors import UnknownNameError
from sparse_lens.hooks import check_published, load
from sparse_lens.models import CircuitGPTForCausalLM, save_reference
from sparse_lens.models.downloads import describe_released

TINYPYTHON = Path(__file__).parents[3] / "shared" / "data" / "tinypython_2k"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store's folder, served; what is written into it can be fetched."""
    root = tmp_path / "store"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SPARSE_LENS_RELEASED", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("SPARSE_LENS_CACHE", str(tmp_path / "cache"))
    yield root
    server.shutdown()
    server.server_close()


@pytest.fixture
def put_model(store: Path, random_model: Callable[..., CircuitGPTForCausalLM]) -> Callable[..., CircuitGPTForCausalLM]:
    """Put a small model into the store under a released name, beside a tokenizer."""

    def put(name: str, **fields: Any) -> CircuitGPTForCausalLM:
        model = random_model(**{"vocab_size": 2048, "block_size": 64, "rms_norm": True} | fields)
        save_reference(model, store / "models" / name)
        vocabulary = {chr(33 + i): i for i in range(90)} | {"<|endoftext|>": 2047}
        (store / "tinypython").mkdir(exist_ok=True)
        if TINYPYTHON.is_dir():
            for file in ("encoder.json", "vocab.bpe"):
                (store / "tinypython" / file).write_bytes((TINYPYTHON / file).read_bytes())
        else:
            (store / "tinypython" / "encoder.json").write_text(json.dumps(vocabulary))
            (store / "tinypython" / "vocab.bpe").write_text("#version: 0.2\n")
        return model

    return put


@torch.no_grad()
def test_a_released_name_loads(put_model: Callable[..., CircuitGPTForCausalLM], tmp_path: Path) -> None:
    model = put_model("csp_sweep1_1x_3.7Mnonzero_afrac0.250", afrac=0.25, sink=True)
    bridge = load("csp_sweep1_1x_3.7Mnonzero_afrac0.250")
    tokens = torch.randint(2048, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(bridge(tokens), model.core(tokens))
    assert bridge.tokenizer.eos_token_id == 2047
    (listed,) = [m for m in describe_released() if m["name"] == "csp_sweep1_1x_3.7Mnonzero_afrac0.250"]
    assert listed["cached"] > 100_000
    assert torch.equal(load("csp_sweep1_1x_3.7Mnonzero_afrac0.250")(tokens), bridge(tokens))


def test_published_figures(put_model: Callable[..., CircuitGPTForCausalLM], store: Path) -> None:
    model = put_model("csp_yolo2", enable_bigram_table=True, learnable_bigram_table=True)
    sample = torch.zeros(20, dtype=torch.long)
    sample[:7] = torch.tensor([5, 9, 11, 80, 2, 3, 4])
    folder = store / "viz" / "csp_yolo2" / "bracket_counting_beeg" / "prune_v4" / "k_optim"
    folder.mkdir(parents=True)
    torch.save({"importances": {"task_samples": ([sample], {})}}, folder / "viz_data.pt")
    curve = store / "train_curves" / "csp_yolo2"
    curve.mkdir(parents=True)
    (curve / "progress.json").write_text('{"step": 1, "val/loss": 9.0}\n{"step": 2, "val/loss": 7.6, "lr": 0.1}\n')
    figures = {figure.what: figure for figure in check_published("csp_yolo2")}
    count = sum(p.numel() for name, p in model.named_parameters() if name != "core.lm_head.bias")
    assert figures["parameters"].found == f"{count:,}"
    assert figures["parameters"].published.startswith("419,122,688")
    assert figures["parameters"].agrees is False
    with torch.no_grad():
        last = model.core(sample[None, :7])[0, -1]
    assert figures["first bracket prompt"].agrees == bool(last[330] > last[1252])
    assert figures["density of attn.q"].found == "100.000%"
    assert figures["val/loss, last"].published == "7.600"


def test_what_is_not_in_the_store_is_said(put_model: Callable[..., CircuitGPTForCausalLM], store: Path) -> None:
    put_model("csp_yolo2")
    (store / "viz" / "csp_yolo2" / "bracket_counting_beeg" / "prune_v4" / "k_optim").mkdir(parents=True)
    (store / "viz" / "csp_yolo2" / "bracket_counting_beeg" / "prune_v4" / "k_optim" / "viz_data.pt").write_bytes(b"damaged")
    figures = {figure.what: figure for figure in check_published("csp_yolo2")}
    assert figures["bracket prompt"].agrees is None
    assert "does not hold task samples" in figures["bracket prompt"].found
    assert "cannot be fetched" in figures["validation loss"].found


def test_names_that_were_never_released() -> None:
    with pytest.raises(UnknownNameError, match="csp_yolo1"):
        check_published("csp_yollo1")
    with pytest.raises(UnknownNameError, match="python-sparse"):
        load("pyton-sparse")
