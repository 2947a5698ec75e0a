"""SAELens folders: what is read equals what SAELens reads; what is wrong is refused, and said."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_lens.dictionaries import Dictionary, load_saelens
from sparse_lens.dictionaries.latent_activations import CHOOSING
from sparse_lens.errors import CheckpointError

D_IN, D_SAE, K = 6, 15, 3
HOOK = "blocks.0.mlp.hook_post"
VECTORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}


def write_sae(folder, architecture="topk", *, dtype=torch.float32, **changes):
    """A random SAE as SAELens saves it; `changes` overwrite configuration fields."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    shapes |= dict.fromkeys(VECTORS[architecture], (D_SAE,))
    weights = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs()
    config = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": HOOK, "model_name": "tiny"},
    }
    config |= ({"k": K} if architecture in CHOOSING else {}) | changes
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
    return folder


def change_config(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps(config))


def change_weights(folder, **changes):
    weights = load_file(folder / "sae_weights.safetensors")
    weights |= changes
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(weights, folder / "sae_weights.safetensors")


def activations():
    return 2 * torch.randn(4, 7, D_IN, generator=torch.Generator().manual_seed(2)) + 0.3


def saelens_sae(folder):
    sae_lens = pytest.importorskip("sae_lens", reason="parity with sae-lens needs sae-lens")
    return sae_lens.SAE.load_from_disk(folder)


@torch.no_grad()
def assert_parity(ours, theirs):
    x = activations()
    latents = theirs.encode(x)
    assert 0 < (latents != 0).float().mean() < 1
    assert (ours.encode(x) - latents).abs().max() < 1e-6
    assert (ours.decode(latents) - theirs.decode(latents)).abs().max() < 1e-6


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("architecture", VECTORS)
def test_parity_with_saelens(tmp_path, architecture, apply_b_dec_to_input):
    folder = write_sae(tmp_path / "sae", architecture, apply_b_dec_to_input=apply_b_dec_to_input)
    assert_parity(load_saelens(folder), saelens_sae(folder))


def test_parity_in_half_precision(tmp_path):
    folder = write_sae(tmp_path / "sae", dtype=torch.float16)
    assert load_saelens(folder).W_dec.dtype == torch.float32
    assert_parity(load_saelens(folder), saelens_sae(folder))


def test_parity_with_a_scale_of_the_activations(tmp_path):
    folder = write_sae(tmp_path / "sae", "jumprelu", normalize_activations="expected_average_only_in")
    theirs = saelens_sae(folder)
    assert_parity(load_saelens(folder, activation_scale=1.0), theirs)
    theirs.fold_activation_norm_scaling_factor(1.7)
    assert_parity(load_saelens(folder, activation_scale=1.7), theirs)


def test_parity_when_the_decoder_norm_rescales(tmp_path):
    folder = write_sae(tmp_path / "sae", rescale_acts_by_decoder_norm=True)
    ours = load_saelens(folder)
    assert torch.allclose(ours.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert_parity(ours, saelens_sae(folder))


def test_parity_with_folders_from_before_saelens_6(tmp_path):
    folder = write_sae(tmp_path / "sae")
    old = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "hook_point": HOOK, "model_name": "tiny"}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(old))
    change_weights(folder, scaling_factor=torch.ones(D_IN))
    ours = load_saelens(folder)
    assert ours.hook_in == HOOK and ours.k == K
    assert_parity(ours, saelens_sae(folder))


@pytest.mark.parametrize("training", ["BatchTopK", "MatryoshkaBatchTopK"])
def test_parity_with_saes_saved_as_jumprelu(tmp_path, training):
    sae_lens = pytest.importorskip("sae_lens", reason="parity with sae-lens needs sae-lens")
    extra = {"matryoshka_widths": [5, D_SAE]} if training.startswith("Matryoshka") else {}
    config = getattr(sae_lens, f"{training}TrainingSAEConfig")(d_in=D_IN, d_sae=D_SAE, k=K, **extra)
    config.metadata.hook_name = HOOK
    torch.manual_seed(0)
    sae = getattr(sae_lens, f"{training}TrainingSAE")(config)
    sae.save_inference_model(tmp_path / "sae")
    ours = load_saelens(tmp_path / "sae")
    assert ours.architecture == "jumprelu"
    assert_parity(ours, saelens_sae(tmp_path / "sae"))


def test_the_exact_identity_is_an_abstopk_sae(tmp_path):
    """As many active as there are, unit weights, no biases: saved by SAELens and read back it changes nothing, signs and all."""
    sae_lens = pytest.importorskip("sae_lens", reason="parity with sae-lens needs sae-lens")
    config = sae_lens.AbsTopKSAEConfig(d_in=D_IN, d_sae=D_IN, k=D_IN)
    config.metadata.hook_name = HOOK
    sae = sae_lens.AbsTopKSAE(config)
    for name, parameter in sae.named_parameters():
        parameter.data = torch.eye(D_IN) if name.startswith("W") else torch.zeros(D_IN)
    sae.save_model(tmp_path / "sae")
    x = activations()
    assert torch.equal(load_saelens(tmp_path / "sae").decode(load_saelens(tmp_path / "sae").encode(x)), x)


def test_hand_computed_topk(tmp_path):
    folder = write_sae(tmp_path / "sae", d_in=2, d_sae=3, k=2)
    unit = {"W_enc": torch.tensor([[1.0, 0, -1], [0, 1, 0]]), "b_enc": torch.tensor([0.0, 0, 0.5])}
    change_weights(folder, W_dec=torch.tensor([[1.0, 0], [0, 2], [-1, 0]]), b_dec=torch.tensor([1.0, 0]), **unit)
    dictionary = load_saelens(folder)
    latents = dictionary.encode(torch.tensor([[4.0, 2], [1, -1]]))  # less b_dec: [3, 2], [0, -1]
    assert latents.tolist() == [[3, 2, 0], [0, 0, 0.5]]
    assert dictionary.decode(latents).tolist() == [[4, 4], [0.5, 0]]


@pytest.mark.parametrize("architecture", VECTORS)
def test_protocol_and_gradients(tmp_path, architecture):
    dictionary = load_saelens(write_sae(tmp_path / "sae", architecture))
    assert isinstance(dictionary, Dictionary) and not dictionary.exact
    assert dictionary.hook_in == dictionary.hook_out == HOOK and dictionary.n_latents == D_SAE
    assert dictionary.metadata["model_name"] == "tiny"
    x = activations().requires_grad_()
    latents = dictionary.encode(x)
    latents.retain_grad()
    weight = torch.randn(D_IN)
    (dictionary.decode(latents) @ weight).sum().backward()
    assert torch.allclose(latents.grad, (dictionary.W_dec @ weight).expand_as(latents), atol=1e-6)
    assert x.grad.abs().sum() > 0 and not any(tensor.requires_grad for tensor in dictionary.weights.values())


def test_gradient_is_that_of_finite_differences(tmp_path):
    for architecture in VECTORS:
        dictionary = load_saelens(write_sae(tmp_path / architecture, architecture), dtype=torch.float64)
        x = activations()[0, :3].double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, d=dictionary: d.decode(d.encode(x)), x, eps=1e-7, atol=1e-5)


def test_names_and_hooks_can_be_given(tmp_path):
    folder = write_sae(tmp_path / "sae")
    assert load_saelens(folder).name == f"topk{D_SAE}k{K}@{HOOK}"
    named = load_saelens(folder, name="mine", hook="blocks.1.mlp.hook_post")
    assert named.name == "mine" and named.hook_out == "blocks.1.mlp.hook_post"


def test_hash(tmp_path):
    folder = write_sae(tmp_path / "sae")
    dictionary = load_saelens(folder)
    assert dictionary.hash == load_saelens(write_sae(tmp_path / "copy")).hash == dictionary.to(dtype=torch.float64).hash
    assert dictionary.hash == load_saelens(folder, name="mine").hash
    others = {dictionary.hash, load_saelens(folder, hook="blocks.1.mlp.hook_post").hash}
    change_config(folder, k=K + 1)
    others.add(load_saelens(folder).hash)
    change_weights(folder, b_dec=torch.ones(D_IN))
    others.add(load_saelens(folder).hash)
    assert len(others) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal'; supported: standard, topk"),
        ({"d_sae": 16}, r"shape \(6, 15\).*promises \(6, 16\)"),
        ({"d_in": "6"}, "d_in='6'.*whole number"),
        ({"d_sae": -1}, "d_sae=-1"),
        ({"k": None}, "k=None"),
        ({"k": 99}, "k=99 of d_sae=15"),
        ({"reshape_activations": "hook_z"}, "reshape_activations='hook_z'"),
        ({"normalize_activations": "layer_norm"}, "'layer_norm'.*each token's own norm.*train with"),
        ({"normalize_activations": "constant_norm_rescale"}, "'constant_norm_rescale'.*each token's own norm"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening'; supported"),
        ({"normalize_activations": "expected_average_only_in"}, "does not hold that factor.*activation_scale="),
        ({"metadata": {}}, "no metadata.hook_name.*hook="),
        ({"architecture": "gated"}, "missing b_gate, b_mag, r_mag; unexpected b_enc"),
    ],
)
def test_wrong_configurations(tmp_path, changes, message):
    folder = write_sae(tmp_path / "sae")
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_saelens(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_enc": None}, "missing b_enc; unexpected none"),
        ({"surprise": torch.ones(2)}, "missing none; unexpected surprise"),
        ({"W_dec": torch.ones(D_IN, D_SAE)}, r"W_dec .* shape \(6, 15\), .*promises \(15, 6\)"),
        ({"b_dec": torch.full((D_IN,), torch.nan)}, "b_dec .* 6 values that are not finite"),
        ({"b_enc": torch.full((D_SAE,), torch.inf)}, "b_enc .* 15 values that are not finite"),
        ({"b_enc": torch.ones(D_SAE, dtype=torch.int64)}, "b_enc .* I64"),
        ({"scaling_factor": torch.full((D_IN,), 2.0)}, "scaling_factor"),
    ],
)
def test_wrong_weights(tmp_path, changes, message):
    folder = write_sae(tmp_path / "sae")
    change_weights(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_saelens(folder)


def test_broken_folders(tmp_path):
    with pytest.raises(CheckpointError, match="no SAE folder"):
        load_saelens(tmp_path / "nowhere")
    folder = write_sae(tmp_path / "sae")
    (folder / "sae_weights.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_saelens(folder)
    (folder / "sae_weights.safetensors").rename(folder / "sae_weights.pt")
    with pytest.raises(CheckpointError, match=r"has no sae_weights\.safetensors"):
        load_saelens(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load_saelens(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_saelens(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no cfg\.json"):
        load_saelens(folder)


def test_a_scale_that_is_not_asked_for_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="leave it out"):
        load_saelens(write_sae(tmp_path / "sae"), activation_scale=2.0)


@pytest.mark.slow
def test_reading_does_not_import_saelens(tmp_path):
    folder = str(write_sae(tmp_path / "sae"))
    code = f"import sys; from sparse_lens.dictionaries import load_saelens; load_saelens({folder!r})"
    code += "; sys.exit(any(name in sys.modules for name in ('sae_lens', 'transformer_lens', 'wandb')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
