"""The drawn circuit: one mark a node, one line an edge, nothing on top of anything else, safe from hostile tokens."""

from __future__ import annotations

import itertools
import unicodedata
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparse_lens.circuits import Circuit
from sparse_lens.circuits.cards.connections import EMBEDDING, HEAD_OUT, TOKEN, Connections, Place
from sparse_lens.circuits.masking import Reference
from sparse_lens.circuits.sites import LAYER_SITES, NodeSpace, Site
from sparse_lens.dictionaries import IdentityDictionary
from sparse_lens.errors import OutputError
from sparse_lens.report.circuit.drawing import draw_circuit
from sparse_lens.report.circuit.figure import DARK, LIGHT, Figure, standing_alone
from sparse_lens.report.circuit.layout import MARK, Layout, lay_out
from sparse_lens.report.circuit.positions import MOST_POSITIONS, MOST_ROWS, PairRun, draw_positions
from sparse_lens.report.circuit.rows import Mark, circuit_rows

from .circuits import HOSTILE, edges_between

SVG = "{http://www.w3.org/2000/svg}"


def space(n_layers: int, d_model: int = 64, d_mlp: int = 128) -> NodeSpace:
    sites = []
    for layer in range(n_layers):
        for kind in LAYER_SITES:
            hook = f"blocks.{layer}.{kind}"
            sites.append(Site(kind, layer, hook, IdentityDictionary(d_mlp if kind == "mlp_neuron" else d_model, hook)))
    return NodeSpace((*sites, Site("final_resid", None, "final", IdentityDictionary(d_model, "final"))))


def circuit(n_nodes: int, n_layers: int = 2, seed: int = 0) -> Circuit:
    """A circuit of random nodes."""
    nodes = space(n_layers)
    chosen = torch.randperm(nodes.n_nodes, generator=torch.Generator().manual_seed(seed))[:n_nodes]
    mask = torch.zeros(nodes.n_nodes, dtype=torch.bool).index_fill(0, chosen, True)
    reference = {site.name: Reference(torch.zeros(site.n_latents), torch.zeros(site.n_latents)) for site in nodes.sites}
    return Circuit(mask, nodes, reference, "a task", "0123456789abcdef", 0.15, 0.1)


def drawn(shown: Circuit, connections: Connections, **options: object) -> ElementTree.Element:
    return ElementTree.fromstring(draw_circuit(shown, connections, **options).svg)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_nodes", "n_layers"), [(1, 1), (10, 2), (60, 2), (300, 2), (120, 8)])
def test_every_node_and_edge_is_drawn_once(n_nodes: int, n_layers: int) -> None:
    shown = circuit(n_nodes, n_layers)
    connections = edges_between(shown, 400)
    root = drawn(shown, connections)
    places = [(site, index) for site, indices in shown.kept().items() for index in indices]
    marks = [mark.get("data-n") for mark in root.iter() if mark.get("data-n") is not None]
    assert len(marks) == len(set(marks))
    assert set(marks) >= {f"{site}-{index}" for site, index in places}
    ends = {f"{place.site}-{place.index}" for edge in connections.edges for place in (edge.source, edge.target)}
    assert set(marks) == {f"{site}-{index}" for site, index in places} | ends
    lines = [(path.get("data-a"), path.get("data-b")) for path in root.iter(f"{SVG}path") if path.get("data-a") is not None]
    assert sorted(lines) == sorted(
        (f"{e.source.site}-{e.source.index}", f"{e.target.site}-{e.target.index}") for e in connections.edges
    )
    assert root.get("role") == "img" and f"{n_nodes} nodes" in "".join(root.itertext())


def marks_at(shown: Circuit, connections: Connections) -> tuple[Layout, list[Mark]]:
    rows = circuit_rows(shown, connections, connections.edges)
    return lay_out(rows, connections.edges), [mark for row in rows for mark in row.marks]


@pytest.mark.parametrize(("n_nodes", "n_layers"), [(10, 2), (60, 2), (300, 2), (700, 3)])
def test_nothing_overlaps_and_nothing_sticks_out(n_nodes: int, n_layers: int) -> None:
    shown = circuit(n_nodes, n_layers)
    layout, marks = marks_at(shown, edges_between(shown, 300))
    rows: dict[float, list[tuple[float, float]]] = {}
    for mark in marks:
        x, y = layout.at[mark.place]
        half = (mark.width if layout.labelled or mark.token else 8.0) / 2
        rows.setdefault(y, []).append((x - half, x + half))
        assert x - half > 100 and x + half < layout.width and y + MARK / 2 < layout.height
    for spans in rows.values():
        ordered = sorted(spans)
        assert all(second[0] - first[1] > 0.5 for first, second in itertools.pairwise(ordered))
    boxes = [(box.y, box.x, box.x + box.width) for box in layout.boxes]
    assert all(a[2] < b[1] or b[2] < a[1] for i, a in enumerate(boxes) for b in boxes[:i] if a[0] == b[0])
    assert layout.labelled == (n_nodes <= 300)


def test_a_residual_channel_is_one_lane_and_a_head_one_box() -> None:
    shown = circuit(200)
    layout, marks = marks_at(shown, edges_between(shown, 200))
    lanes: dict[int, set[float]] = {}
    for mark in marks:
        if mark.lane is not None:
            lanes.setdefault(mark.lane, set()).add(layout.at[mark.place][0])
    assert all(len(xs) == 1 for xs in lanes.values())
    assert len({x for xs in lanes.values() for x in xs}) == len(lanes) == len(layout.lanes)
    heads = {mark.box for mark in marks if mark.box is not None}
    assert len(layout.boxes) == len(heads)
    for mark in marks:
        if mark.box is not None:
            x, y = layout.at[mark.place]
            inside = [b for b in layout.boxes if b.x < x < b.x + b.width and b.y < y < b.y + b.height]
            assert [box.label for box in inside] == [f"head {mark.box[1]}"]


def test_the_computation_runs_downwards() -> None:
    shown = circuit(100)
    connections = edges_between(shown, 300)
    layout, _ = marks_at(shown, connections)
    assert all(layout.at[edge.source][1] < layout.at[edge.target][1] for edge in connections.edges)
    labels = [label for label, _ in layout.rows]
    assert labels[:3] == ["tokens", "embedding", "0 attn_in"] and labels[-2:] == ["final_resid", "answers"]
    assert labels.index("0 mlp_out") < labels.index("1 attn_in")


def test_ordering_shortens_edges() -> None:
    """A ladder whose lanes and neurons are shuffled against each other is drawn without crossings."""
    shown = circuit(0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    mask = shown.mask.clone()
    for i, neuron in enumerate(order):
        mask[shown.space.slices["mlp_in.0"].start + i] = mask[shown.space.slices["mlp_neuron.0"].start + neuron] = True
    shown = replace(shown, mask=mask)
    connections = edges_between(shown, 0, [("mlp_in", Place("mlp_in.0", i), Place("mlp_neuron.0", n)) for i, n in enumerate(order)])
    layout, _ = marks_at(shown, connections)
    reach = [abs(layout.at[e.source][0] - layout.at[e.target][0]) for e in connections.edges]
    assert max(reach) <= 1.6 * (layout.width / 20)


def test_edges_beyond_the_limit_are_counted_not_drawn() -> None:
    shown = circuit(60)
    connections = edges_between(shown, 300)
    found = draw_circuit(shown, connections, most_edges=40)
    assert found.left_out == connections.total - 40
    root = ElementTree.fromstring(found.svg)
    assert sum(path.get("data-a") is not None for path in root.iter(f"{SVG}path")) == 40
    text = "".join(root.itertext())
    assert f"the {found.left_out:,} smallest of {connections.total:,} edges are not drawn" in text


def test_colors_and_widths_say_what_they_are_said_to_say() -> None:
    shown = circuit(40)
    connections = edges_between(shown, 50)
    places = [Place(site, index) for site, indices in shown.kept().items() for index in indices]
    deltas = {places[0]: 0.5, places[1]: -0.25}
    root = drawn(shown, connections, deltas=deltas, anchors="c0")
    shades = {}
    for link in root.iter(f"{SVG}a"):
        node = link.find(f"{SVG}g")
        assert node is not None and link.get("href") == f"#c0-{(node.get('data-n') or '').replace('.', '-')}"
        over = [shape for shape in node if "through" in (shape.get("class") or "").split() and shape.get("fill-opacity")]
        shades[node.get("data-n")] = [(shape.get("class"), shape.get("fill-opacity")) for shape in over]
    assert shades[f"{places[0].site}-{places[0].index}"] == [("through positive", "1.000")]
    assert shades[f"{places[1].site}-{places[1].index}"] == [("through negative", "0.500")]
    assert len(shades) == 40 and sum(bool(found) for found in shades.values()) == 2
    lines = {(p.get("data-a"), p.get("data-b")): p for p in root.iter(f"{SVG}path") if p.get("data-a") is not None}
    for edge in connections.edges:
        line = lines[f"{edge.source.site}-{edge.source.index}", f"{edge.target.site}-{edge.target.index}"]
        assert ("positive" in (line.get("class") or "")) == (edge.weight >= 0)
        expected = 0.8 + 4.2 * edge.size / connections.edges[0].size
        assert float(line.get("stroke-width") or 0) == pytest.approx(expected, abs=0.01)


def test_no_edges_says_why() -> None:
    shown = circuit(12)
    connections = replace(edges_between(shown, 0), edges=(), total=0, reason="weights do not apply to the latents of a dictionary")
    root = drawn(shown, connections)
    assert "no edges: weights do not apply" in "".join(root.itertext())
    assert sum(mark.get("data-n") is not None for mark in root.iter()) == 12


@pytest.mark.parametrize("token", HOSTILE)
def test_hostile_tokens_are_text(token: str) -> None:
    shown = replace(circuit(30), task=token)
    connections = edges_between(shown, 80)
    ids = {place.index for edge in connections.edges for place in (edge.source, edge.target)}
    connections = replace(connections, texts=dict.fromkeys(ids, token))
    run = PairRun(torch.randn(6, 30), torch.randn(6, 30), [(token, token + "x")] * 6)
    for svg in (draw_circuit(shown, connections, anchors="c0").svg, draw_positions(shown, run)):
        root = ElementTree.fromstring(svg)
        assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
            *("svg", "title", "desc", "g", "a", "path", "rect", "circle", "line", "text")
        }
        assert not any(name.startswith("on") or name == "style" for element in root.iter() for name in element.attrib)
        assert all(link.get("href", "").startswith("#c0-") for link in root.iter(f"{SVG}a"))
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl") for c in svg)


def test_positions_show_where_prompts_differ() -> None:
    shown = circuit(5)
    clean = torch.zeros(4, 5)
    corrupt = clean.clone()
    clean[2, 1], corrupt[2, 1], corrupt[3, 4] = 2.0, -2.0, 1.0
    tokens = [("a", "a"), (" b", " b"), ("c", "d"), ("e", "e")]
    root = ElementTree.fromstring(draw_positions(shown, PairRun(clean, corrupt, tokens)))
    cells = [(r.get("class"), r.get("fill-opacity")) for r in root.iter(f"{SVG}rect") if r.get("fill-opacity")]
    assert cells == [("positive", "1.00"), ("negative", "1.00")]
    text = "".join(root.itertext())
    assert "c | d" in text and "first difference is at position 2" in text
    same = PairRun(clean, clean, tokens)
    assert "No node differs anywhere" in draw_positions(shown, same)


def test_long_prompts_and_large_circuits_are_cut() -> None:
    shown = circuit(150)
    clean, corrupt = torch.zeros(100, 150), torch.zeros(100, 150)
    clean[20] = clean[90:] = torch.arange(1, 151)
    root = ElementTree.fromstring(draw_positions(shown, PairRun(clean, corrupt, [("t", "t")] * 100)))
    assert sum(bool(r.get("fill-opacity")) for r in root.iter(f"{SVG}rect")) == 10 * MOST_ROWS
    assert sum(t.text == "t" for t in root.iter(f"{SVG}text")) == MOST_POSITIONS
    assert "The 50 nodes that differ least are not shown" in "".join(root.itertext())


def test_positions_start_shortly_before_the_first_difference() -> None:
    clean, corrupt = torch.zeros(40, 3), torch.zeros(40, 3)
    clean[30:, 1] = 1.0
    root = ElementTree.fromstring(draw_positions(circuit(3), PairRun(clean, corrupt, [(f"t{i}", f"t{i}") for i in range(40)])))
    shown = [text.text for text in root.iter(f"{SVG}text") if (text.text or "").startswith("t")]
    assert shown == [f"t{i}" for i in range(22, 40)]
    assert "first difference is at position 30" in "".join(root.itertext())


def test_a_figure_stands_alone(tmp_path: Path) -> None:
    shown = circuit(20)
    figure = Figure(standing_alone(draw_circuit(shown, edges_between(shown, 40)).svg))
    path = figure.save(tmp_path / "circuit.svg")
    assert path.read_text(encoding="utf-8") == figure._repr_svg_()
    root = ElementTree.fromstring(figure.svg)
    style = root.find(f"{SVG}style")
    assert style is not None and style.text is not None
    rules = [part.split("{")[0].strip() for part in style.text.replace("@media (prefers-color-scheme: dark) {", "").split("}")]
    assert all(selector.strip().startswith("svg.circuit") for rule in rules if rule for selector in rule.split(","))
    assert "url(" not in figure.svg and "@import" not in figure.svg
    with pytest.raises(OutputError):
        figure.save(tmp_path / "circuit.svg" / "below")


def test_the_figures_colors_are_the_pages() -> None:
    style = (Path(__file__).parents[2] / "sparse_lens" / "report" / "style.html.jinja").read_text(encoding="utf-8")
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    for colors, sheet in ((LIGHT, light), (DARK, dark)):
        for name, color in colors.items():
            assert f"--{name}: {color};" in sheet, name


def test_marks_are_wide_enough_for_their_labels() -> None:
    shown = circuit(40)
    for mark in marks_at(shown, edges_between(shown, 60))[1]:
        assert mark.width >= (8 if mark.bare else 5.8 * len(mark.label) + 4)
        assert mark.node == (mark.place.kind not in (TOKEN, "answer", EMBEDDING, HEAD_OUT))
