"""SAEs train on a bridge, offline, into folders that both readers read."""

import builtins
import json

import pytest
import torch

from sparse_lens.dictionaries import SAETrainingConfig, train_sae
from sparse_lens.dictionaries.naming import trained_name
from sparse_lens.errors import ConfigError, DataError, SparseLensError, UnknownNameError

HOOK = "blocks.0.mlp.hook_post"
CONFIG = SAETrainingConfig(
    d_sae=32, k=4, tokens=4000, batch_size=100, buffer_tokens=1000, dead_window=1000, held_out_tokens=512, lr=3e-3
)


@pytest.fixture(scope="module")
def bridge():
    pytest.importorskip("sae_lens", reason="training an SAE needs sae-lens")
    from sparse_lens.hooks import wrap
    from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM

    torch.manual_seed(0)
    config = CircuitGPTConfig(vocab_size=20, block_size=16, n_layer=1, n_head=2, d_head=8, d_model=16, d_mlp=24)
    return wrap(CircuitGPTForCausalLM(config).eval(), name="tiny")


def batches(n=200):
    generator = torch.Generator().manual_seed(3)
    return (torch.randint(20, (4, 16), generator=generator) for _ in range(n))


def test_an_sae_trains_and_is_read_by_both(bridge, tmp_path, capfd):
    import sae_lens

    trained = train_sae(bridge, HOOK, batches(), CONFIG, tmp_path / "sae", progress=False)
    assert capfd.readouterr() == ("", "")
    assert trained.statistics.n_tokens == 512 and trained.statistics.dead is None
    assert 1 <= trained.statistics.l0 <= CONFIG.k and trained.statistics.fvu < 0.75
    assert trained.dictionary.hook_in == HOOK and trained.dictionary.metadata["model_name"] == "tiny"
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    x = torch.rand(50, 24)
    with torch.no_grad():
        assert (trained.dictionary.encode(x) - theirs.encode(x)).abs().max() < 1e-6
        assert (trained.dictionary.decode(trained.dictionary.encode(x)) - theirs(x)).abs().max() < 1e-6
    report = json.loads((tmp_path / "sae" / "statistics.json").read_text())
    assert report["hash"] == trained.dictionary.hash and report["held_out"]["fvu"] == trained.statistics.fvu
    assert SAETrainingConfig(**report["config"]) == CONFIG
    assert theirs.cfg.metadata.hook_name == HOOK and theirs.cfg.normalize_activations == "none"


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "jumprelu"])
def test_every_kind_trains_and_is_read_by_both(bridge, tmp_path, architecture):
    """One threshold is fitted after training: as many fire on held-out tokens as were asked for."""
    import sae_lens

    tokens = 10_000 if architecture == "jumprelu" else CONFIG.tokens  # it needs longer
    config = CONFIG.model_copy(update={"architecture": architecture, "tokens": tokens})
    trained = train_sae(bridge, HOOK, batches(), config, tmp_path / "sae", progress=False)
    theirs, x = sae_lens.SAE.load_from_disk(tmp_path / "sae"), torch.rand(50, 24)
    with torch.no_grad():
        assert (trained.dictionary.encode(x) - theirs.encode(x)).abs().max() < 1e-6
        assert (trained.dictionary.decode(trained.dictionary.encode(x)) - theirs(x)).abs().max() < 1e-6
    if architecture != "jumprelu":
        assert trained.statistics.l0 == pytest.approx(CONFIG.k, rel=0.05)
    assert trained.statistics.fvu < 0.9


def test_a_frozen_decoder_stays_random(bridge, tmp_path):
    """Its rows are those that the seed gives, whatever was trained on: two lengths of training agree but for scale."""
    rows = []
    for tokens in (500, 4000):
        config = CONFIG.model_copy(update={"tokens": tokens, "frozen_decoder": True})
        rows.append(train_sae(bridge, HOOK, batches(), config, tmp_path / str(tokens), progress=False).dictionary.W_dec)
    assert torch.nn.functional.cosine_similarity(*rows).min() > 1 - 1e-6


def test_equal_seeds_give_equal_weights(bridge, tmp_path):
    config = CONFIG.model_copy(update={"tokens": 600})
    before = torch.get_rng_state()
    first = train_sae(bridge, HOOK, batches(), config, tmp_path / "a", progress=False)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    again = train_sae(bridge, HOOK, batches(), config, tmp_path / "b", progress=False)
    other = config.model_copy(update={"seed": 1})
    other = train_sae(bridge, HOOK, batches(), other, tmp_path / "c", progress=False)
    assert first.dictionary.hash == again.dictionary.hash != other.dictionary.hash


def test_half_precision_halves_the_file(bridge, tmp_path):
    import sae_lens

    config = CONFIG.model_copy(update={"tokens": 600})
    full = train_sae(bridge, HOOK, batches(), config, tmp_path / "full", progress=False)
    half = train_sae(bridge, HOOK, batches(), config.model_copy(update={"half": True}), tmp_path / "half", progress=False)
    sizes = [(trained.folder / "sae_weights.safetensors").stat().st_size for trained in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert torch.equal(half.dictionary.W_dec, full.dictionary.W_dec.half().float())
    assert half.statistics.fvu == pytest.approx(full.statistics.fvu, abs=1e-3)
    theirs, x = sae_lens.SAE.load_from_disk(half.folder), torch.rand(50, 24)
    with torch.no_grad():
        assert (half.dictionary.encode(x) - theirs.encode(x)).abs().max() < 1e-6


def test_tokens_that_run_out(bridge, tmp_path):
    with pytest.raises(DataError, match=r"ended after \d+ of 4000 .* at least 4100"):
        train_sae(bridge, HOOK, batches(30), CONFIG, tmp_path / "sae", progress=False)
    with pytest.raises(DataError, match="ended after 128, held_out_tokens=512"):
        train_sae(bridge, HOOK, batches(2), CONFIG, tmp_path / "sae", progress=False)
    with pytest.raises(DataError, match="no tokens to train"):
        train_sae(bridge, HOOK, batches(0), CONFIG, tmp_path / "sae", held_out=batches(1), progress=False)
    assert not list(tmp_path.iterdir())


def test_impossible_configurations(bridge, tmp_path):
    for changes, message in (({"k": 99}, "k=99"), ({"buffer_tokens": 10}, "buffer_tokens=10")):
        with pytest.raises(ConfigError, match=message):
            train_sae(bridge, HOOK, batches(), CONFIG.model_copy(update=changes), tmp_path / "sae", progress=False)
    with pytest.raises(UnknownNameError, match="unknown hook"):
        train_sae(bridge, "blocks.9.mlp.hook_post", batches(), CONFIG, tmp_path / "sae", progress=False)


def test_without_sae_lens_the_extra_is_named(monkeypatch, tmp_path):
    class Bridge:
        hook_dict, cfg = {}, None

        def __call__(self, *args, **kwargs): ...

    real_import = builtins.__import__

    def no_sae_lens(name, *rest, **named):
        if name.startswith("sae_lens"):
            raise ImportError("No module named 'sae_lens'")
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_sae_lens)
    with pytest.raises(SparseLensError, match=r'pip install "sparse-lens\[sae\]"'):
        train_sae(Bridge(), HOOK, batches(), CONFIG, tmp_path / "sae")


def test_seeds_and_kinds_have_names_of_their_own(bridge, tmp_path):
    config = CONFIG.model_copy(update={"tokens": 600})
    changes = ({}, {"seed": 1}, {"frozen_decoder": True}, {"architecture": "batchtopk"})
    names = [
        train_sae(bridge, HOOK, batches(), config.model_copy(update=c), tmp_path / str(i), progress=False).dictionary.name
        for i, c in enumerate(changes)
    ]
    expected = ("topk32k4s0", "topk32k4s1", "frozen_topk32k4s0", "batchtopk32k4s0")
    assert names == [f"{name}@{HOOK}" for name in expected]


def test_names_do_not_repeat_what_a_folder_makes_up():
    known = {"training_architecture": "topk", "k": 4, "seed": 0}
    assert trained_name(known, 32) == "topk32k4s0"
    for change in ({"training_architecture": "<script>"}, {"k": "4"}, {"seed": True}, {"seed": None}):
        assert trained_name(known | change, 32) is None
    assert trained_name({}, 32) is None
