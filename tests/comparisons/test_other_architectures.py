"""Nothing is tied to our own architecture: a model of GPT-2's shape with an SAE that SAELens has made and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from sparse_lens.circuits import SearchConfig, both_sides, find_circuit, node_space
from sparse_lens.comparisons import compare_columns
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.concepts import label_texts, measure_concepts
from sparse_lens.comparisons.curves.circuit_curve import circuit_curve
from sparse_lens.comparisons.rows.activation import activation
from sparse_lens.comparisons.rows.correspondence import measure_correspondence
from sparse_lens.comparisons.rows.reconstruction import reconstruction, spliced_windows
from sparse_lens.comparisons.rows.superposition import measure_superposition
from sparse_lens.data import Document, load_tokenizer
from sparse_lens.dictionaries import IdentityDictionary, SAELensDictionary, load_released, load_saelens
from sparse_lens.errors import CircuitError, ConfigError, UnknownNameError
from sparse_lens.hooks import load, splice
from sparse_lens.models_shipped import pair_windows, tokenizer_folder
from sparse_lens.report import write_report
from sparse_lens.tasks import get_task
from sparse_lens.training.evaluation import window_losses

HOOK, WIDTH, TASK = "blocks.0.mlp.hook_post", 128, "with_as"

sae_lens = pytest.importorskip("sae_lens", reason="SAELens makes the SAE")


def gpt2_shaped() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    undropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=WIDTH // 4, vocab_size=1024, n_positions=128, **undropped)).eval()


def bridged(model: GPT2LMHeadModel) -> Any:
    built = build_bridge_from_module(
        model, "GPT2LMHeadModel", hf_config=model.config, tokenizer=None, device="cpu", model_name="gpt2-shaped"
    )
    built.tokenizer = load("python-dense-matched").tokenizer
    return built


@pytest.fixture(scope="module")
def bridge() -> Any:
    return bridged(gpt2_shaped())


@pytest.fixture(scope="module")
def able() -> Any:
    """The same, trained until it does one task; in seconds, as it may learn the held-out templates, too."""
    model, tokenizer = gpt2_shaped(), load("python-dense-matched").tokenizer
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    splits = [both_sides(get_task(TASK).sample(tokenizer, 128, seed=1, split=split)) for split in ("search", "heldout")]
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        prompts = splits[step % 2].rows(torch.randperm(256, generator=generator)[:32])
        logits = model(prompts.tokens).logits[torch.arange(32), prompts.position]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, prompts.right).backward()
        optimizer.step()
    return bridged(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TopK SAE, untrained, as SAELens saves it."""
    torch.manual_seed(1)
    config = sae_lens.TopKTrainingSAEConfig(d_in=WIDTH, d_sae=64, k=4)
    config.metadata.hook_name = HOOK
    folder = tmp_path_factory.mktemp("sae") / "topk"
    sae_lens.TopKTrainingSAE(config).save_inference_model(folder)
    return folder


@pytest.fixture(scope="module")
def sae(folder: Path) -> SAELensDictionary:
    found = load_saelens(folder)
    assert isinstance(found, SAELensDictionary)
    return found


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    return list(pair_windows()["heldout"][:8, :64].reshape(2, 4, 64))


def test_rows_of_neurons_and_latents(bridge: Any, sae: SAELensDictionary, batches: list[np.ndarray]) -> None:
    """The same rows for both; neurons stand for themselves exactly, a latent's L0 is at most k, both sides match themselves."""
    neurons = IdentityDictionary(WIDTH, HOOK)
    for dictionary in (neurons, sae):
        rows = reconstruction(bridge, dictionary, batches) | measure_superposition(bridge, dictionary, batches)
        assert rows["psi"].measurable and rows["explained_variance"].measurable
    assert reconstruction(bridge, neurons, batches)["explained_variance"].value == pytest.approx(1)
    assert 0 < (activation(bridge, sae, batches)["l0"].value or 0) <= 4
    own = measure_correspondence(bridge, sae, bridge, sae, batches)
    assert own.results["matched_correlation"].value == pytest.approx(1, abs=1e-5)


def test_the_splice_leaves_the_model_as_it_is(bridge: Any, sae: SAELensDictionary, batches: list[np.ndarray]) -> None:
    tokens = torch.from_numpy(batches[0])
    plain = bridge(tokens)
    with splice(bridge, [sae]):
        assert (bridge(tokens) - plain).abs().max() < 1e-5


def test_concepts_of_its_latents(bridge: Any, sae: SAELensDictionary) -> None:
    texts = [f"def f{n}(a, b):\n    return [a, {{'k': b}}, \"text {n}\"]  # note\n" * 40 for n in range(8)]
    documents = [Document("here", f"{n}.py", str(n), text) for n, text in enumerate(texts)]
    labelled = label_texts(documents, load_tokenizer(tokenizer_folder()), context=64)
    scores = measure_concepts(bridge, sae, *labelled.split())
    assert scores.results["coverage_f1"].measurable and scores.f1.shape[1] == 64


def test_a_circuit_of_neurons_and_latents(bridge: Any, sae: SAELensDictionary) -> None:
    """Nodes of a model with layer norms and biases; the latents of one layer, the channels of all other sites."""
    config = SearchConfig(steps=3, evaluations=4, search_pairs=32, evaluation_pairs=16)
    windows = pair_windows()["reference"][:16]
    circuit = find_circuit(
        bridge, "if_equals", dictionaries=[sae], target_loss=99.0, config=config, windows=windows, progress=False
    )
    assert circuit.reached and 0 <= circuit.n_nodes < circuit.space.n_nodes
    assert [site.dictionary.n_latents for site in circuit.space.sites if not site.is_identity] == [64]


@pytest.mark.slow
def test_neurons_and_latents_are_compared_on_one_axis(able: Any, sae: SAELensDictionary, tmp_path: Path) -> None:
    """Nodes, edges between them, bits, divergences, losses and rows of both, in a frame and in a report."""
    config = SearchConfig(steps=10, evaluations=4, search_pairs=32, evaluation_pairs=16)
    columns = {"gpt2 neurons": (able, ()), "gpt2 latents": (able, (sae,))}
    windows = pair_windows()["reference"][:16, :64], pair_windows()["heldout"][:4, :65]
    found = compare_columns(columns, [TASK], *windows, targets=(2.0, 0.5), config=config, heldout_pairs=32, progress=False)
    frame = found.full_frame().set_index(["section", "column", "place", "metric"])["value"].sort_index()
    for metric in ("kl_heldout", "kl_natural", "kl_random", "structural_edges", "nodes"):
        assert all(frame["curves", column, "seed 0, target 0.5", metric] >= 0 for column in columns)
    bits = {
        column: [frame["curves", column, "seed 0, target 0.5", f"{total}_bits"] for total in ("total_without_dictionary", "total")]
        for column in columns
    }
    assert bits["gpt2 neurons"][0] == bits["gpt2 neurons"][1] > 0 and 0 < bits["gpt2 latents"][0] < bits["gpt2 latents"][1]
    assert frame["matching", "gpt2 latents", "", "difference"] == pytest.approx(0, abs=1e-6)
    losses = spliced_windows(able, [sae], windows[1]).losses["spliced"], window_losses(able, windows[1])
    spliced = frame["matching", "gpt2 latents", "", "difference_spliced"]
    assert spliced == pytest.approx(float(losses[0].mean()) - float(losses[1].mean()), abs=1e-5)
    assert frame["rows", "gpt2 neurons", "layer 1", "explained_variance"] == pytest.approx(1)
    full = found.metrics["full"]
    assert "needs 3" in full["undistinguished"][0]
    page = write_report(found.metrics, tmp_path / "report")
    assert "gpt2 latents" in page.read_text() and (tmp_path / "report" / "figures" / "bits-pooled.svg").is_file()


@pytest.mark.slow
def test_an_sae_of_the_residual_stream_is_a_column(able: Any, tmp_path: Path) -> None:
    """Nodes, divergences, losses and its own rows; bits and edges are said not to be counted there."""
    torch.manual_seed(1)
    saelens_config = sae_lens.TopKTrainingSAEConfig(d_in=WIDTH // 4, d_sae=64, k=8)
    saelens_config.metadata.hook_name = "blocks.1.hook_resid_pre"
    sae_lens.TopKTrainingSAE(saelens_config).save_inference_model(tmp_path / "sae")
    sae = load_saelens(tmp_path / "sae")
    config = SearchConfig(steps=10, evaluations=4, search_pairs=32, evaluation_pairs=16)
    windows = pair_windows()["reference"][:16, :64], pair_windows()["heldout"][:4, :65]
    columns = {"neurons": (able, ()), "residual latents": (able, (sae,))}
    found = compare_columns(columns, [TASK], *windows, targets=(2.0,), config=config, heldout_pairs=32, progress=False)
    frame = found.full_frame().set_index(["section", "column", "place", "metric"]).sort_index()
    point = frame.loc["curves", "residual latents", "seed 0, target 2.0"]
    assert point["value"]["nodes"] > 0 and point["value"]["kl_heldout"] >= 0
    (curve,) = found.metrics["full"]["curves"][TASK]["residual latents"]
    assert curve["facts"]["sites"]["resid_pre.1"] == 65
    assert "mixes other sites" in curve["points"][0]["results"]["total_bits"]["reason"]
    assert set(found.metrics["full"]["rows"]["activation"]["residual latents"]) == {"resid_pre.1"}  # tables have means over places
    assert "In residual latents dictionaries see other places" in found.metrics["full"]["caveats"][-1]
    row = frame.loc["rows", "residual latents", "resid_pre.1"]["value"]
    assert 0 < row["l0"] <= 8 and row["explained_variance"] < 1 and row["psi"] >= 0
    page = write_report(found.metrics, tmp_path / "report")
    assert "residual latents" in page.read_text()


def test_columns_that_cannot_be_compared(bridge: Any) -> None:
    windows = pair_windows()["reference"][:2, :65]
    with pytest.raises(ConfigError, match="at least two"):
        compare_columns({"one": (bridge, ())}, [TASK], windows, windows)
    with pytest.raises(ConfigError, match="must be one of the columns one, two"):
        compare_columns({"one": (bridge, ()), "two": (bridge, ())}, [TASK], windows, windows, base="three")
    with pytest.raises(UnknownNameError, match="with_as"):
        compare_columns({"one": (bridge, ()), "two": (bridge, ())}, ["with_ass"], windows, windows)


def test_only_our_own_models_have_searched_edges(able: Any) -> None:
    windows = pair_windows()["reference"][:16, :64]
    column = Column("neurons", "gpt2", able, node_space(able), windows)
    config = SearchConfig(steps=3, evaluations=4, search_pairs=32, evaluation_pairs=16)
    with pytest.raises(CircuitError, match="CircuitGPT"):
        circuit_curve(column, TASK, windows[:2], windows, targets=(2.0,), edge_targets=(2.0,), config=config, heldout_pairs=32)


def test_a_released_sae_comes_through_saelens_loader(
    folder: Path, sae: SAELensDictionary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the network's part stood in for by a folder: what SAELens gives is read as from its own folder, and kept."""
    asked: list[tuple[str, str]] = []

    def from_pretrained(release: str, sae_id: str) -> Any:
        asked.append((release, sae_id))
        return sae_lens.SAE.load_from_disk(str(folder))

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", from_pretrained)
    found = load_released("a-release", "an-id", tmp_path / "kept")
    assert asked == [("a-release", "an-id")] and found.hook_in == HOOK
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found.encode(x), sae.encode(x))
    torch.testing.assert_close(load_saelens(tmp_path / "kept").decode(sae.encode(x)), sae.decode(sae.encode(x)))
