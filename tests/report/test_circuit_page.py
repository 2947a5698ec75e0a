"""The page of circuits: complete, offline, safe from hostile strings, made from a folder by the command line."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import Circuit, mean_reference, model_fingerprint, node_space, weight_graph
from sparse_lens.circuits.cards.connections import circuit_connections
from sparse_lens.circuits.edges.cutting import CircuitEdges, input_means
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.search.learning import SearchConfig
from sparse_lens.circuits.search.nodes import default_windows
from sparse_lens.cli import main
from sparse_lens.dictionaries import RotationDictionary, random_rotation
from sparse_lens.errors import CircuitError, OutputError
from sparse_lens.hooks import load
from sparse_lens.report.circuit.figure import Figure, circuit_figure, positions_figure
from sparse_lens.report.circuit.origin import evaluation_number, search_command, verdict
from sparse_lens.report.circuit.page import ShownCircuit, look_at, page_view, write_circuit_page
from sparse_lens.tasks import get_task
from sparse_lens.tasks.tokens import Encoder

from .circuits import HOSTILE
from .elements import Elements

TASK = "single_double_quote"
KEPT = {
    **{"attn_in.0": [28, 51, 153, 253], "attn_q.0": [9], "attn_k.0": [9], "attn_v.0": [11, 24]},
    **{"attn_out.0": [70, 113, 181], "final_resid": [70, 113, 181]},
}
"""Part of a circuit that a search has found in python-sparse."""


@pytest.fixture(scope="module")
def bridge() -> Any:
    return load("python-sparse")


@pytest.fixture(scope="module")
def windows(bridge: Any) -> np.ndarray:
    return default_windows(bridge)[:6]


@pytest.fixture(scope="module")
def batch(bridge: Any) -> Any:
    return get_task(TASK).sample(bridge.tokenizer, 3, seed=0, split="heldout")


@pytest.fixture(scope="module")
def circuit(bridge: Any, windows: np.ndarray) -> Circuit:
    space = node_space(bridge)
    mask = torch.zeros(space.n_nodes, dtype=torch.bool)
    for site, indices in KEPT.items():
        mask[torch.tensor(indices) + space.slices[site].start] = True
    search = {
        "config": SearchConfig().model_dump(mode="json"),
        "seeds": [0],
        "evaluations": 24,
        "source": "mask",
        "trace": [{}] * 30,
    }
    return Circuit(mask, space, mean_reference(bridge, space, windows), TASK, model_fingerprint(bridge), 0.15, 0.14, search)


@pytest.fixture(scope="module")
def with_edges(bridge: Any, circuit: Circuit, batch: Any, windows: np.ndarray) -> Circuit:
    graph = weight_graph(bridge, batch)
    edges = candidate_edges(circuit.space, circuit.mask, graph)
    keep = torch.arange(edges.n_edges) % 4 > 0
    means = input_means(bridge, windows, circuit.reference, graph.inputs)
    search = {**circuit.search, "nodes": circuit.search}
    return replace(circuit, edges=CircuitEdges(edges.chosen(keep), edges.chosen(~keep), means), search=search)


@pytest.fixture(scope="module")
def shown(bridge: Any, with_edges: Circuit, batch: Any, windows: np.ndarray) -> ShownCircuit:
    evaluation = {
        "verdict": "sufficient; looks small but also fits nonsense",
        "heldout": {"sufficiency": {"value": 0.91, "lo": 0.85, "hi": 0.95, "measurable": True}},
        "measures": {"null": {"random nodes": {"value": None, "measurable": False, "reason": "needs a search"}}},
    }
    return look_at(bridge, with_edges, batch, name="mine", model="python-sparse", evaluation=evaluation, windows=windows)


def written(shown: list[ShownCircuit], folder: Path) -> str:
    return write_circuit_page(shown, folder / "page.html", command="sparse-lens report mine").read_text(encoding="utf-8")


def test_the_page_is_complete(shown: ShownCircuit, tmp_path: Path) -> None:
    page = written([shown], tmp_path)
    elements = Elements(page)
    for site, indices in KEPT.items():
        for index in indices:
            assert f"{site} {index}" in elements.text
    for expected in ("also fits nonsense", "0.91", "0.85–0.95", "needs a search", "sparse-lens report mine", "Ablation delta"):  # noqa: RUF001
        assert expected in elements.text
    assert f"sparse-lens circuit python-sparse {TASK} --target 0.15 --edges" in elements.text
    assert sum(tag == "details" and "card" in str(attrs.get("class")) for tag, attrs in elements.found) == 14
    assert sum("data-a" in attrs for _, attrs in elements.found) == shown.connections.total > 0
    saved = json.loads(re.search(r'id="circuits">(.*?)</script>', page, re.DOTALL)[1])["circuits"][0]  # type: ignore[index]
    assert len(saved["nodes"]) == 14 and len(saved["edges"]) == shown.connections.total
    assert len(page.encode()) < 500_000


def test_the_page_loads_nothing_and_runs_its_own_script_alone(shown: ShownCircuit, tmp_path: Path) -> None:
    page = written([shown], tmp_path)
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) <= {"http://www.w3.org/2000/svg"}
    elements = Elements(page).found
    assert not {"link", "iframe", "img", "object", "embed", "base", "form", "image", "use"} & {tag for tag, _ in elements}
    assert all(str(attrs["href"]).startswith("#") for _, attrs in elements if "href" in attrs)
    assert not any("src" in attrs or "style" in attrs or any(name.startswith("on") for name in attrs) for _, attrs in elements)
    assert "url(" not in page and "@import" not in page
    scripts = re.findall(r"<script(.*?)>(.*?)</script>", page, re.DOTALL)
    assert [bool(attributes) for attributes, _ in scripts] == [True, False]
    policy = next(str(attrs["content"]) for tag, attrs in elements if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_links_lead_to_cards_and_ids_are_unique(shown: ShownCircuit, tmp_path: Path) -> None:
    page = written([shown, replace(shown, name="again")], tmp_path)
    elements = Elements(page).found
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {str(attrs["href"])[1:] for _, attrs in elements if "href" in attrs}
    assert links <= set(ids) and {f"c{i}-attn_v-0-11" for i in (0, 1)} <= links
    for figure in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        root = ElementTree.fromstring(figure)
        described = (root.get("aria-labelledby") or "").split()
        assert root.get("role") == "img" and len(described) == 2 and set(described) <= set(ids)
        desc = root.find("{http://www.w3.org/2000/svg}desc")
        assert desc is not None and desc.text
    assert "2 circuits" in Elements(page).text


def test_edges_on_cards_lead_through_the_head(shown: ShownCircuit) -> None:
    """What a value channel writes to: the edges of the head's channels that mix it; back from attn_out to the value's card."""
    cards = {card["name"]: card for card in page_view([shown], "")["circuits"][0]["cards"]}
    assert cards["attn_v.0 11"]["what"] == "channel 11 of head 0"
    targets = {edge["name"] for edge in cards["attn_v.0 11"]["leaving"]}
    assert targets and targets <= {"attn_out.0 70", "attn_out.0 113", "attn_out.0 181"}
    back = {edge["href"] for name in targets for edge in cards[name]["arriving"]}
    assert "c0-attn_v-0-11" in back
    assert cards["final_resid 70"]["stream"]["nodes"] == [("attn_out.0 70", "c0-attn_out-0-70")]
    assert cards["attn_out.0 70"]["stream"]["nodes"] == [("final_resid 70", "c0-final_resid-70")]


def test_heat_levels_follow_the_activations(shown: ShownCircuit) -> None:
    card = next(card for card in shown.cards if card.contexts)
    view = next(c for c in page_view([shown], "")["circuits"][0]["cards"] if c["name"] == f"{card.place.site} {card.place.index}")
    top = max(abs(value) for context in card.contexts for value in context.values)
    for context, drawn in zip(card.contexts, view["contexts"], strict=True):
        hot = [value for value in context.values if round(9 * abs(value) / top)]
        levels = [level for _, level, _ in drawn["parts"] if level]
        assert levels == [f"{'h' if value > 0 else 'n'}{round(9 * abs(value) / top)}" for value in hot]
    assert view["contexts"][0]["parts"] and "9" in {level[-1:] for _, level, _ in view["contexts"][0]["parts"]}


@pytest.fixture
def hostile_tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Encoder, "text", lambda self, token: HOSTILE[token % len(HOSTILE)])
    return


@pytest.mark.usefixtures("hostile_tokens")
def test_hostile_strings_are_text(bridge: Any, with_edges: Circuit, batch: Any, windows: np.ndarray, tmp_path: Path) -> None:
    """Tokens, names and every text of the circuit's own files."""
    bad = "".join(HOSTILE)
    search = {bad: bad, "list": [bad], "deep": {bad: {bad: {bad: {bad: 1}}}}}
    evaluation: dict[str, Any] = {bad: {"value": None, "reason": bad}, "verdict": [bad, 3], "sufficiency": bad, "deep": {bad: 0.5}}
    circuit = replace(with_edges, search=search)
    shown = look_at(bridge, circuit, batch, name=bad, model=bad, evaluation=evaluation, remark=bad, windows=windows)
    shown = replace(shown, circuit=replace(circuit, task=bad, model=bad))
    page = write_circuit_page([shown], tmp_path / "page.html", command=bad).read_text(encoding="utf-8")
    elements = Elements(page)
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "section",
        "footer",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "code",
    }
    allowed |= {"div", "span", "b", "a", "ul", "ol", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    allowed |= {
        "small",
        "figure",
        "figcaption",
        "details",
        "summary",
        "pre",
        "script",
        "svg",
        "desc",
        "g",
        "path",
        "rect",
        "circle",
        "line",
    }
    assert {tag for tag, _ in elements.found} <= allowed | {"text"}
    assert sum(tag == "script" for tag, _ in elements.found) == 2
    assert not any(name.startswith("on") or name in ("src", "style") for _, attrs in elements.found for name in attrs)
    assert "\\x00" in elements.text and "{{ 7*7 }}" in elements.text
    assert not any(character in page for character in "\x00\x07\x1b\u202e\u2028")
    json.loads(re.search(r'id="circuits">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]


def test_without_prompts_the_page_says_what_is_missing(bridge: Any, circuit: Circuit, windows: np.ndarray, tmp_path: Path) -> None:
    shown = look_at(bridge, circuit, name="bare", remark="The task is not known here.", windows=windows)
    text = Elements(written([shown], tmp_path)).text
    assert "not known here" in text and "none were given" in text and "Where its nodes differ" not in text
    empty = replace(circuit, mask=torch.zeros_like(circuit.mask))
    with pytest.raises(CircuitError, match="no node"):
        look_at(bridge, empty, windows=windows)
    with pytest.raises(CircuitError, match="at least one"):
        write_circuit_page([], tmp_path / "none.html")
    with pytest.raises(OutputError):
        write_circuit_page([shown], tmp_path)


def test_latents_have_cards_without_weights(bridge: Any, batch: Any, windows: np.ndarray, tmp_path: Path) -> None:
    rotation = RotationDictionary(random_rotation(1024), "blocks.0.mlp.hook_post")
    space = node_space(bridge, [rotation])
    mask = torch.zeros(space.n_nodes, dtype=torch.bool)
    mask[torch.tensor([3, 700]) + space.slices["mlp_neuron.0"].start] = True
    circuit = Circuit(mask, space, mean_reference(bridge, space, windows), TASK, model_fingerprint(bridge), 0.15, 0.14)
    shown = look_at(bridge, circuit, batch, name="latents", model="python-sparse", windows=windows)
    text = Elements(written([shown], tmp_path)).text
    assert "Weights do not apply" in text and "a latent of a dictionary" in text and "no edges: weights do not apply" in text


def test_the_command_that_finds_a_circuit_again(circuit: Circuit, with_edges: Circuit) -> None:
    plain = f"sparse-lens circuit m {TASK} --target 0.15"
    assert search_command(circuit, "m") == plain
    assert search_command(with_edges, "m") == f"{plain} --edges"
    few = {**circuit.search, "config": SearchConfig(steps=30).model_dump(mode="json"), "seeds": [2000, 2001]}
    assert search_command(replace(circuit, search=few, ablation="zero"), "m") == f"{plain} --steps 30 --ablation zero --seed 2"
    published = {**circuit.search, "config": SearchConfig.published().model_dump(mode="json")}
    assert search_command(replace(circuit, search=published), "m") == f"{plain} --published"
    other = {**circuit.search, "config": SearchConfig(temperature=0.5).model_dump(mode="json")}
    for search in (other, {}, {"derived": "a | b"}, {"config": 3, "seeds": "x"}):
        assert search_command(replace(circuit, search=search), "m") is None
    assert search_command(replace(circuit, task="my own"), "m") is None
    assert search_command(circuit, "my model; rm") == f"sparse-lens circuit 'my model; rm' {TASK} --target 0.15"


def test_an_evaluation_is_read_with_care() -> None:
    assert verdict({"verdict": "one; two"}) == ["one", "two"] and verdict({"verdict": 5}) == [] and verdict({}) == []
    found = evaluation_number({"a": {"sufficiency": {"value": 0.5, "measurable": True}}}, "sufficiency")
    assert found is not None and found.value == 0.5
    assert evaluation_number({"a": 1}, "necessity") is None
    endless: dict[str, Any] = {}
    endless["again"] = endless
    assert evaluation_number(endless, "necessity") is None


def test_figures_in_a_notebook(bridge: Any, circuit: Circuit, batch: Any, tmp_path: Path) -> None:
    for figure in (circuit_figure(circuit, bridge, batch, deltas=False), positions_figure(circuit, bridge, batch, pair=1)):
        assert isinstance(figure, Figure)
        root = ElementTree.fromstring(figure._repr_svg_())
        assert root.get("role") == "img"
    total = circuit_connections(bridge, circuit, batch).total
    drawn = circuit_figure(circuit, bridge, batch, deltas=False).svg
    assert drawn.count("data-a=") == total and drawn.count('class="node"') >= circuit.n_nodes


@pytest.fixture
def few_windows(monkeypatch: pytest.MonkeyPatch, windows: np.ndarray) -> None:
    monkeypatch.setattr("sparse_lens.circuits.cards.node_card.default_windows", lambda bridge: windows)


@pytest.mark.usefixtures("few_windows")
def test_the_command_line(circuit: Circuit, with_edges: Circuit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit.save(tmp_path / "a" / "found")
    with_edges.save(tmp_path / "b" / "found")
    page = tmp_path / "page.html"
    (tmp_path / "b" / "found" / "card.json").write_text(json.dumps({"nodes": 14, "necessity": {"value": 0.77, "measurable": True}}))
    folders = [str(tmp_path / name / "found") for name in "ab"]
    assert main(["report", *folders, "--out", str(page), "--pairs", "1"]) == 0
    assert str(page) in capsys.readouterr().out
    text = Elements(page.read_text(encoding="utf-8")).text
    assert "a/found" in text and "b/found" in text and "0.77" in text and "python-sparse" in text
    (tmp_path / "b" / "found" / "card.json").write_text(json.dumps({"nodes": 15}))
    assert main(["report", folders[1], "--out", str(page), "--pairs", "1"]) == 1
    assert "another circuit" in capsys.readouterr().err


@pytest.mark.usefixtures("few_windows")
def test_the_command_line_says_what_to_do(circuit: Circuit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(*arguments: str) -> str:
        assert main(["report", *arguments]) == 1
        return capsys.readouterr().err

    own = replace(circuit, task="my_own")
    own.save(tmp_path / "own")
    replace(circuit, model="0123456789abcdef").save(tmp_path / "other")
    assert "--model" in failing(str(tmp_path / "other"), "--out", str(tmp_path / "o.html"))
    assert "none of python-dense" in failing(str(tmp_path / "own"), "--model", "python-dense", "--out", str(tmp_path / "o.html"))
    assert "one kind at a time" in failing(str(tmp_path / "own"), str(tmp_path))
    assert "name a file" in failing(str(tmp_path / "own"), "--out", str(tmp_path))
    assert "--pairs" in failing(str(tmp_path / "own"), "--pairs", "0")
    assert "one comparison" in failing(str(tmp_path), str(tmp_path))
    assert not (tmp_path / "o.html").exists()
    assert main(["report", str(tmp_path / "own"), "--out", str(tmp_path / "o.html")]) == 0
    text = Elements((tmp_path / "o.html").read_text(encoding="utf-8")).text
    assert "my_own is not known here" in text and "--pairs-file" in text
