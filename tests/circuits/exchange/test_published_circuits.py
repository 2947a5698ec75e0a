"""Published circuits: files built after the schema of openai/circuit_sparsity's viewer, sound, damaged and hostile."""

from __future__ import annotations

import os
import pickle
import random
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import Circuit, score_circuit
from sparse_lens.circuits.exchange.published import PublishedEdge
from sparse_lens.circuits.exchange.published_files import read_published
from sparse_lens.errors import CheckpointError, CircuitError
from sparse_lens.models.torch_files import is_plain_tensor, read_plain

from ..conftest import VOCAB, Planted, pairs, random_bridge

CONFIG = {
    "n_layer": 2,
    "n_head": 2,
    "d_model": 8,
    "d_head": 4,
    "n_mlp": 12,
    "d_pos_emb": None,
    "vocab_size": VOCAB,
    "later_field": 1,
}


def locations(n_layers: int) -> list[str]:
    kinds = ("attn.act_in", "attn.q", "attn.k", "attn.v", "attn.resid_delta", "mlp.act_in", "mlp.post_act", "mlp.resid_delta")
    return [f"{layer}.{kind}" for layer in range(n_layers) for kind in kinds] + ["final_resid"]


def viz_data(kept: dict[str, list[int]] | None = None, *, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """A file's content; everything that the viewer reads is in it, in the form that it reads it in."""
    kept = {"0.attn.q": [5, 1], "0.mlp.act_in": [3], "0.mlp.post_act": [11, 0], "0.mlp.resid_delta": [7]} if kept is None else kept
    circuit = {name: torch.tensor(kept.get(name, []), dtype=torch.long) for name in locations(2)}
    documents = torch.tensor([[3, 4, 5, 0, 0], [3, 4, 6, 7, 0]])
    shared = ("0.mlp.act_in", "0.mlp.post_act")
    pairs_of = [
        [torch.tensor([[0.5, 0.0], [0.0, -0.25]]), [3, "bias"], [11, 0], shared],
        [torch.tensor([[0.0], [2.0]]).half(), [11, 0], [7], ("0.mlp.post_act", "0.mlp.resid_delta")],
        [torch.zeros(0), [], [], ("1.mlp.act_in", "1.mlp.post_act")],
    ]
    importances = {
        "loss": torch.tensor(0.125),
        "interv_loss": 0.25,
        "ch_interv_losses": {name: torch.arange(len(channels)) + 0.5 for name, channels in circuit.items()},
        "layer_interv_losses": {"0.attn": 0.75, "0.mlp": torch.tensor(1.5), "1.attn": 0.25, "1.mlp": 0.25},
        "pair_data": pairs_of,
        "pair_data_connections": {shared: 3},
        "task_samples": (documents, {"0.attn.q": {5: torch.ones(2, 5), 1: torch.zeros(2, 5)}}),
        "beeg_model_config": CONFIG if config is None else config,
    }
    activating = (documents[0], torch.ones(5), 2)
    return {
        "circuit_data": circuit | {"prune_config": {"k": 6, "lr": 0.1, "dtype": torch.float16, "betas": (0.9, 0.95)}},
        "importances": importances,
        "samples": {"0.attn.q": {torch.tensor(5): {0.001: ([activating], [activating, activating])}}},
        "all_loss": [(0, 3.0), (8, torch.tensor(0.5))],
        "num_total_nodes": 120,
        "prune_config": None,
    }


def save(path: Path, data: Any) -> Path:
    torch.save(data, path / "viz_data.pt")
    return path / "viz_data.pt"


def test_everything_is_read(tmp_path: Path) -> None:
    published = read_published(save(tmp_path, viz_data()))
    assert published.kept["0.attn.q"] == (5, 1) and published.kept["1.attn.q"] == () and published.n_nodes == 6
    assert (published.loss, published.interv_loss) == (0.125, 0.25)
    assert (published.halved_loss, published.halved_interv_loss) == (0.0625, 0.125)
    assert published.node_losses["0.attn.q"] == (0.5, 1.5) and published.halved_node_losses["0.attn.q"] == (0.25, 0.75)
    assert published.layer_losses["0.mlp"] == 1.5
    assert list(published.edges()) == [
        PublishedEdge(("0.mlp.act_in", 3), ("0.mlp.post_act", 11), 0.5),
        PublishedEdge(("0.mlp.act_in", "bias"), ("0.mlp.post_act", 0), -0.25),
        PublishedEdge(("0.mlp.post_act", 0), ("0.mlp.resid_delta", 7), 2.0),
    ]
    assert published.task_prompts == ((3, 4, 5), (3, 4, 6, 7))
    assert torch.equal(published.task_activations["0.attn.q"][5], torch.ones(2, 5))
    assert published.search_losses == ((0.0, 3.0), (8.0, 0.5)) and published.n_total_nodes == 120
    assert published.prune_config == {"k": 6, "lr": 0.1, "dtype": "torch.float16", "betas": [0.9, 0.95]}
    assert published.model_config["d_mlp"] == 12 and "later_field" not in published.model_config


def test_old_files_nest_the_pairs(tmp_path: Path) -> None:
    plain = read_published(save(tmp_path, viz_data()))
    data = viz_data()
    rows = data["importances"]["pair_data"]
    data["importances"]["pair_data"] = [rows[:2], [], rows[2:]]
    nested = read_published(save(tmp_path, data))
    assert list(nested.edges()) == list(plain.edges()) and len(nested.pairs) == 3


def test_what_a_file_need_not_have(tmp_path: Path) -> None:
    data = {"circuit_data": {"final_resid": torch.tensor([1])}, "importances": {"loss": 1.0, "interv_loss": 2.0}}
    published = read_published(save(tmp_path, data))
    assert published.kept == {"final_resid": (1,)} and not published.pairs and published.n_total_nodes is None


def test_planted_circuit_scores_as_if_it_had_been_found_here(planted: Planted, tmp_path: Path) -> None:
    names = {"mlp_in.0": "0.mlp.act_in", "mlp_neuron.0": "0.mlp.post_act", "mlp_out.0": "0.mlp.resid_delta"}
    kept = {names.get(name, name): channels for name, channels in planted.nodes.items()}
    data = viz_data(kept, config={})
    data["importances"]["pair_data"] = []
    published = read_published(save(tmp_path, data))
    windows = np.concatenate([planted.batch.clean, planted.batch.corrupt])
    with pytest.raises(CircuitError, match="does not have"):
        published.to_circuit(planted.bridge, task="planted", windows=windows)  # of two layers, the bridge has one
    one_layer = {name: channels for name, channels in data["circuit_data"].items() if not name.startswith("1.")}
    data["circuit_data"], data["importances"]["ch_interv_losses"] = one_layer, {}
    circuit = read_published(save(tmp_path, data)).to_circuit(planted.bridge, task="planted", windows=windows)
    assert {name: nodes for name, nodes in circuit.kept().items() if nodes} == planted.nodes
    assert circuit.loss == 0.125 and circuit.reached and circuit.search["nodes_to_choose_from"] == 120
    scores = score_circuit(planted.bridge, circuit, planted.prompts)
    assert scores.sufficiency.value is not None and scores.sufficiency.value > 0.95
    circuit.save(tmp_path / "circuit")
    loaded = Circuit.load(tmp_path / "circuit", planted.bridge)
    assert torch.equal(loaded.mask, circuit.mask) and loaded.search == circuit.search


def test_every_location_becomes_a_site(tmp_path: Path) -> None:
    bridge = random_bridge(1, d_pos_emb=3)
    kept = {name: [index % 8] for index, name in enumerate(locations(2))} | {"1.attn.act_in": [10]}
    data = viz_data(kept, config=CONFIG | {"d_pos_emb": 3})
    data["importances"]["pair_data"] = []
    published = read_published(save(tmp_path, data))
    circuit = published.to_circuit(bridge, task="any", reference={}, target_loss=0.1)
    assert circuit.n_nodes == published.n_nodes == 17
    assert circuit.kept()["attn_in.1"] == [10] and circuit.kept()["attn_out.0"] == [4] and circuit.kept()["final_resid"] == [0]
    with pytest.raises(CircuitError, match="keeps channel 10"):
        published.to_circuit(random_bridge(1), task="any", reference={})
    scored = published.to_circuit(bridge, task="any", windows=np.zeros((2, 5), dtype=np.int64))
    assert score_circuit(bridge, scored, pairs(8)).circuit_loss.value is not None


def changed(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value at a path through the tables; None takes the last name away."""

    def change(data: dict[str, Any]) -> None:
        *path, last = place.split("/")
        for name in path:
            data = data[int(name) if name.isdigit() else name]
        key = int(last) if isinstance(data, list) else last
        if value is None:
            del data[key]
        else:
            data[key] = value

    return change


def view(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor that claims to be as large as its shape and holds one entry."""
    return torch.zeros(1, dtype=dtype).expand(shape)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no circuit": (changed("circuit_data", None), "lacks 'circuit_data'"),
    "no importances": (changed("importances", None), "lacks 'importances'"),
    "no loss": (changed("importances/interv_loss", None), "lacks 'interv_loss'"),
    "circuit is a list": (changed("circuit_data", [1]), "circuit_data in .* is a list of 1"),
    "unknown location": (changed("circuit_data/0.attn.y", torch.tensor([1])), "no location"),
    "padded layer": (changed("circuit_data/00.attn.q", torch.tensor([1])), "no location"),
    "number as location": (lambda data: data["circuit_data"].update({7: 1}), "a name in circuit_data"),
    "negative": (changed("circuit_data/0.attn.q", torch.tensor([-1, 5])), "keeps channel -1"),
    "too large": (changed("circuit_data/0.attn.q", torch.tensor([8, 1])), "keeps channel 8 at 0.attn.q of 8"),
    "beyond act_in": (changed("circuit_data/0.mlp.act_in", torch.tensor([8])), "keeps channel 8"),
    "beyond the layers": (changed("circuit_data/2.mlp.act_in", torch.tensor([0])), "of 0 channels"),
    "twice": (changed("circuit_data/0.attn.q", torch.tensor([1, 1])), "twice"),
    "floats": (changed("circuit_data/0.attn.q", torch.tensor([1.0, 2.0])), "not integers"),
    "mask": (changed("circuit_data/0.attn.q", torch.tensor([True, False])), "not integers"),
    "two axes": (changed("circuit_data/0.attn.q", torch.tensor([[1, 5]])), "one axis"),
    "huge": (changed("circuit_data/0.attn.q", view((1 << 45,), torch.long)), "in the file"),
    "large repeated": (changed("circuit_data/0.attn.q", torch.arange(1 << 23)), "more than .* values"),
    "huge empty shape": (changed("circuit_data/0.attn.q", torch.zeros(1 << 40, 0, dtype=torch.long)), "one axis"),
    "sparse": (changed("circuit_data/0.attn.q", torch.tensor([1, 2]).to_sparse()), "asks for"),
    "loss is text": (changed("importances/loss", "0.1"), "not a finite number"),
    "loss is true": (changed("importances/loss", True), "not a finite number"),
    "loss is nan": (changed("importances/loss", float("nan")), "not a finite number"),
    "loss is a vector": (changed("importances/loss", torch.ones(3)), "not one number"),
    "loss is complex": (changed("importances/loss", torch.tensor(1j)), "not a finite number"),
    "losses do not fit": (changed("importances/ch_interv_losses/0.attn.q", torch.ones(3)), "3 losses for the 2 nodes"),
    "losses of nowhere": (changed("importances/ch_interv_losses/7.attn.q", [1.0]), "1 losses for the 0 nodes"),
    "pairs are a table": (changed("importances/pair_data", {"a": 1}), "not a list"),
    "pair is short": (changed("importances/pair_data/0", [torch.ones(1, 1), [3]]), "not a list of 4"),
    "pair of other shape": (changed("importances/pair_data/0/0", torch.ones(3, 2)), "as its names say"),
    "pair of integers": (changed("importances/pair_data/0/0", torch.ones(2, 2, dtype=torch.long)), "as its names say"),
    "pair is huge": (changed("importances/pair_data/0/0", view((1 << 30, 1 << 30))), "in the file"),
    "pair names text": (changed("importances/pair_data/0/1", [3, "other"]), "not an integer"),
    "pair without places": (changed("importances/pair_data/0/3", "ab"), "not a list of 2"),
    "samples of one part": (changed("importances/task_samples", (torch.ones(2, 2),)), "not a list of 2"),
    "sample is huge": (changed("importances/task_samples", (view((1 << 40, 4), torch.long), {})), "in the file"),
    "samples of floats": (changed("importances/task_samples", (torch.ones(2, 2), {})), "not integers"),
    "activations are text": (changed("importances/task_samples", ([], {"0.attn.q": {5: "a"}})), "in the file"),
    "total is negative": (changed("num_total_nodes", -4), "an integer from 0"),
    "config is absurd": (changed("importances/beeg_model_config", {"d_model": 1 << 60}), "d_model of the model"),
    "config is a list": (changed("importances/beeg_model_config", [1]), "a table"),
    "losses of the search": (changed("all_loss", [1, 2]), "all_loss"),
    "long text": (changed("prune_config", {"a": "x" * 100_000}), "at most"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_content_is_refused_with_what_was_seen(tmp_path: Path, fault: str) -> None:
    change, said = FAULTS[fault]
    data = viz_data()
    change(data)
    began = time.process_time()
    with pytest.raises(CircuitError, match=said) as caught:
        read_published(save(tmp_path, data))
    assert len(str(caught.value)) < 1000 and time.process_time() - began < 20


def test_settings_nested_without_end_are_refused(tmp_path: Path) -> None:
    nested: Any = 1
    for _ in range(50):
        nested = [nested]
    data = viz_data()
    data["prune_config"] = {"a": nested}
    with pytest.raises(CircuitError, match="nested more than"):
        read_published(save(tmp_path, data))


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, viz_data())
    whole = path.read_bytes()
    choose = random.Random(0)
    for length in [0, 1, 4, 22, 100, len(whole) - 1, *(choose.randrange(len(whole)) for _ in range(60))]:
        path.write_bytes(whole[:length])
        with pytest.raises(CircuitError, match=r"truncated|damaged"):
            read_published(path)


def test_flipped_bytes_are_refused_or_read(tmp_path: Path) -> None:
    path = save(tmp_path, viz_data())
    whole = path.read_bytes()
    choose = random.Random(1)
    refused = 0
    for _ in range(120):
        spoiled = bytearray(whole)
        for _ in range(choose.choice([1, 1, 4])):
            spoiled[choose.randrange(len(whole))] = choose.randrange(256)
        path.write_bytes(spoiled)
        try:
            read_published(path)
        except CircuitError:
            refused += 1
    assert refused > 10


class Runs:
    """Pickled, this asks the reader to run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_code_in_the_file_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    data = viz_data()
    data["prune_config"] = {"a": Runs(f"touch {witness}")}
    path = save(tmp_path, data)
    with pytest.raises(CircuitError, match="asks for 'posix system'"):
        read_published(path)
    path.write_bytes(pickle.dumps(Runs(f"touch {witness}")))
    with pytest.raises(CircuitError, match="no torch zip archive"):
        read_published(path)
    assert not witness.exists()
    torch.load(save(tmp_path, data), weights_only=False)  # else the test would prove nothing
    assert witness.exists()


def repickled(path: Path, pickled: bytes) -> Path:
    """The archive with another pickle in it."""
    with zipfile.ZipFile(path) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, pickled if name.endswith("data.pkl") else content)
    return path


def doubled(depth: int) -> tuple[Any, ...]:
    """A tuple that takes `2 ** depth` steps to hash and a few bytes to write."""
    found: tuple[Any, ...] = ()
    for _ in range(depth):
        found = (found, found)
    return found


def key_of_doubled(depth: int) -> bytes:
    # `{doubled: None}` without hashing it here: the value and the key change places in the pickle of `{0: doubled}`.
    body = pickle.dumps(doubled(depth), protocol=2)[2:-1]
    return b"\x80\x02}" + body + b"Ns."


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (key_of_doubled(60), "tuples in tuples"),
        (pickle.dumps(bytearray(4), protocol=2), "asks for"),
        (pickle.dumps({"a": 1}, protocol=4), "instruction"),
        (pickle.dumps({1 << 70: 1}, protocol=2), "more than 64 bits"),
        (b"\x80\x02}q\x00(", "damaged|plain data"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02a.", "damaged"),
        (b"\x80\x02\x85.", "damaged"),
        (b"\xff\xff\xff", "damaged"),
        (b"", "damaged"),
        (pickle.dumps(OrderedDict(a=1), protocol=2)[:-3], "damaged"),
        (pickle.dumps({1, 2}, protocol=2), "asks for"),
    ],
)
def test_pickles_that_torch_does_not_write_are_refused(tmp_path: Path, pickled: bytes, said: str) -> None:
    path = repickled(save(tmp_path, viz_data()), pickled)
    began = time.process_time()
    with pytest.raises(CheckpointError, match=said):
        read_plain(path)
    assert time.process_time() - began < 10


def test_a_shared_tuple_is_read(tmp_path: Path) -> None:
    shared = (1, (2, 3))
    assert read_plain(save(tmp_path, {"a": [shared, shared], shared: 1})) == {"a": [shared, shared], shared: 1}


def test_compressed_and_foreign_archives_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, viz_data())
    with zipfile.ZipFile(path) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, content)
    with pytest.raises(CircuitError, match="compressed"):
        read_published(path)
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("readme.txt", "nothing")
    with pytest.raises(CircuitError, match="damaged"):
        read_published(path)
    with pytest.raises(CircuitError, match="cannot be read"):
        read_published(tmp_path / "missing.pt")
    torch.save([1, 2], path)
    with pytest.raises(CircuitError, match="a table"):
        read_published(path)


def test_a_file_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "viz_data.pt"
    with path.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(CircuitError, match="is it the right file"):
        read_published(path)


def test_views_that_promise_more_than_they_hold() -> None:
    assert is_plain_tensor(torch.ones(3, 3)) and is_plain_tensor(torch.ones(3, 3)[1])
    assert not is_plain_tensor(view((1 << 40,))) and not is_plain_tensor(torch.ones(2).to_sparse()) and not is_plain_tensor([1])
