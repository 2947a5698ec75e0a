"""Transcoders: trained by us, read by SAELens and by us alike, spliced exactly, bad input refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_lens.comparisons import ModelPair
from sparse_lens.dictionaries import (
    Dictionary,
    TranscoderDictionary,
    TranscoderTrainingConfig,
    load_saelens,
    measure_dictionary,
    skipped,
    train_transcoder,
)
from sparse_lens.errors import CheckpointError, ConfigError, DataError
from sparse_lens.hooks import load, splice

HOOKS = ("blocks.0.mlp.hook_act_in", "blocks.0.hook_mlp_out")
CONFIG = TranscoderTrainingConfig(
    d_sae=96, k=6, tokens=12_000, batch_size=256, buffer_tokens=2048, dead_window=2000, held_out_tokens=3000, lr=3e-3
)


def batches() -> Any:
    windows = ModelPair.open().windows["reference"]
    return (windows[start : start + 8] for start in range(0, len(windows), 8))


@pytest.fixture(scope="module")
def bridge() -> Any:
    return load("python-dense-matched")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "skip"])
def trained(bridge: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    config = CONFIG.model_copy(update={"skip": request.param})
    return train_transcoder(bridge, *HOOKS, batches(), config, tmp_path_factory.mktemp("t") / "transcoder", progress=False)


def test_it_learns_and_fires_as_often_as_asked(trained: Any) -> None:
    assert trained.statistics.l0 == pytest.approx(CONFIG.k, rel=0.05) and trained.statistics.fvu < 0.9
    assert isinstance(trained.dictionary, Dictionary) and (trained.dictionary.hook_in, trained.dictionary.hook_out) == HOOKS
    report = json.loads((trained.folder / "statistics.json").read_text())
    assert report["hash"] == trained.dictionary.hash and report["held_out"]["fvu"] == trained.statistics.fvu


def test_saelens_reads_it_and_says_the_same(trained: Any) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="the second reader is SAELens")
    theirs, x = sae_lens.SAE.load_from_disk(trained.folder), torch.randn(60, trained.dictionary.weights["W_enc"].shape[0])
    ours = trained.dictionary
    with torch.no_grad():
        assert (ours.encode(x) - theirs.encode(x)).abs().max() < 1e-6
        assert (ours.decode(ours.encode(x)) + ours.skip(x) - theirs(x)).abs().max() < 1e-5
    assert theirs.cfg.architecture() == ours.architecture
    assert (theirs.cfg.metadata.hook_name, theirs.cfg.metadata.hook_name_out) == HOOKS and not theirs.cfg.metadata.prepend_bos
    kind = "skip_transcoder" if "W_skip" in ours.weights else "transcoder"
    assert ours.name == f"{kind}96k6s0@{HOOKS[1]}" and load_saelens(trained.folder, name="mine").name == "mine"


def test_a_transcoder_of_saelens_is_read(tmp_path: Path) -> None:
    transcoder = pytest.importorskip("sae_lens.saes.transcoder", reason="writes the folder")
    for kind in ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"):
        config = getattr(transcoder, f"{kind}Config")(d_in=5, d_out=7, d_sae=11, apply_b_dec_to_input=False, device="cpu")
        theirs = getattr(transcoder, kind)(config)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
        theirs.save_model(tmp_path / kind)
        with pytest.raises(CheckpointError, match="hook_name"):
            load_saelens(tmp_path / kind)
        ours = load_saelens(tmp_path / kind, hook="blocks.0.a", hook_out="blocks.0.b")
        assert isinstance(ours, TranscoderDictionary)
        x = torch.randn(20, 5)
        with torch.no_grad():
            assert (ours.decode(ours.encode(x)) + skipped(ours, x) - theirs(x)).abs().max() < 1e-5


def test_explained_variance_compares_the_output_not_the_input(bridge: Any, trained: Any) -> None:
    """By hand, on one batch; the input's variance, which another evaluator takes, is another number."""
    tokens = torch.from_numpy(ModelPair.open().windows["heldout"][:6, :-1])
    _, cache = bridge.run_with_cache(tokens, names_filter=list(HOOKS))
    x, y = (cache[hook].flatten(0, 1).double() for hook in HOOKS)
    ours = trained.dictionary
    rebuilt = ours.decode(ours.encode(x.float())) + ours.skip(x.float())
    by_hand = float((y - rebuilt).pow(2).sum() / (y - y.mean(0)).pow(2).sum())
    assert measure_dictionary(bridge, ours, [tokens]).fvu == pytest.approx(by_hand, rel=1e-6)


def test_splicing_is_exact_and_the_skip_is_never_ablated(bridge: Any, trained: Any) -> None:
    tokens = torch.from_numpy(ModelPair.open().windows["heldout"][:2, :40])
    ours = trained.dictionary
    with torch.no_grad():
        plain = bridge(tokens)
        with splice(bridge, [ours]) as sites:
            assert (bridge(tokens) - plain).abs().max() == 0
        site = sites[ours.name]
        _, cache = bridge.run_with_cache(tokens, names_filter=list(HOOKS))
        whole = ours.decode(site.latents) + skipped(ours, cache[HOOKS[0]]) + site.error
        assert (whole - cache[HOOKS[1]]).abs().max() < 1e-5
        with splice(bridge, [ours], mode="edit", edit=lambda latents, error: (0 * latents, 0 * error)):
            _, emptied = bridge.run_with_cache(tokens, names_filter=HOOKS[1])
    left = ours.weights["b_dec"] + ours.skip(cache[HOOKS[0]])
    assert (emptied[HOOKS[1]] - left).abs().max() < 1e-5


def test_equal_seeds_give_equal_weights(bridge: Any, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"tokens": 1500})
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        chosen = config.model_copy(update={"seed": seed})
        before = torch.get_rng_state()
        hashes.append(train_transcoder(bridge, *HOOKS, batches(), chosen, tmp_path / name, progress=False).dictionary.hash)
        assert torch.equal(before, torch.get_rng_state())
    assert hashes[0] == hashes[1] != hashes[2]


def test_bad_input(bridge: Any, trained: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lower k"):
        train_transcoder(bridge, *HOOKS, batches(), CONFIG.model_copy(update={"k": 97}), tmp_path / "x", progress=False)
    with pytest.raises(ConfigError, match="raise it"):
        train_transcoder(
            bridge, *HOOKS, batches(), CONFIG.model_copy(update={"buffer_tokens": 300}), tmp_path / "x", progress=False
        )
    with pytest.raises(DataError, match="ended after"):
        few = CONFIG.model_copy(update={"tokens": 10**6})
        train_transcoder(bridge, *HOOKS, batches(), few, tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "cfg.json").write_text((trained.folder / "cfg.json").read_text())
    weights = load_file(trained.folder / "sae_weights.safetensors")
    save_file(weights | {"W_dec": weights["W_dec"][:, :-1].contiguous()}, damaged / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="W_dec"):
        load_saelens(damaged)
    save_file(weights | {"b_dec": weights["b_dec"] * float("nan")}, damaged / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        load_saelens(damaged)
