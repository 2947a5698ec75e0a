"""A realistic comparison: five tasks and four columns, with what is usually missing missing."""

from __future__ import annotations

import random
from typing import Any

import pytest

TASKS = {
    "single_double_quote": (["'", '"'], 112, 1046),
    "bracket_counting": ([")\n", "))"], 331, 2411),
    "while_return_true": ([" True", " False"], 95, 512),
    "if_equals": [[" ==", " ="], 204, 1630],
    "enumerate_range": ([" enumerate", " range"], 498, 2598),
}
FACTORS = {"sparse_neurons": 1.0, "dense_neurons": 46.0, "dense_matched_neurons": 1.0, "dense_sae": 0.8}
KINDS = {"embedding": 0.12, "v": 0.31, "attn_out": 0.14, "mlp_in": 0.22, "mlp_out": 0.16, "unembedding": 0.05}


def number(value: float, spread: float | None = None, null: float | None = None, n: int = 256) -> dict[str, Any]:
    lo, hi = (None, None) if spread is None else (value / spread, value * spread)
    return {"value": value, "lo": lo, "hi": hi, "null": null, "n": n, "seeds": 1, "measurable": True, "reason": None}


def missing(reason: str) -> dict[str, Any]:
    return {"value": None, "lo": None, "hi": None, "null": None, "n": 0, "seeds": 1, "measurable": False, "reason": reason}


def column(name: str, edges: float, rng: random.Random) -> dict[str, Any]:
    sae, nodes = name == "dense_sae", round(edges**0.72 * 2.1)
    reached, no_edges = name != "sparse_neurons", missing("edges of latents are not counted in this version")
    ratio = rng.uniform(0.9, 3.2)
    return {
        "accuracy": {**number(rng.uniform(0.93, 0.999)), "lo": 0.91, "hi": 1.0},
        "full_loss": number(rng.uniform(0.01, 0.12)),
        "circuit_loss": number(rng.uniform(0.13, 0.15)),
        "heldout_circuit_loss": number(rng.uniform(0.14, 0.19)),
        "nodes": number(nodes, 1.2),
        "edges": no_edges if sae else number(round(edges), 1.25),
        "edges_by_kind": {kind: no_edges if sae else number(round(share * edges)) for kind, share in KINDS.items()},
        "sufficiency": number(rng.uniform(0.88, 0.99)),
        "necessity": number(rng.uniform(0.5, 0.97)),
        "nonsense_nodes": number(round(nodes * ratio)) if reached else missing("the nonsense search missed its target loss"),
        "nonsense_loss": number(0.15 if reached else 0.431),
        "nonsense_reached": reached,
        "nonsense_ratio": number(ratio) if reached else missing("the nonsense search missed its target loss"),
    }


def patching_model(layers: int, heads: int, rng: random.Random) -> dict[str, Any]:
    tokens = ["x", " =", " foo", "(", '"', "hello", " world", "\\n", ",", " y", ")", "\n", "</script>", " z"]
    head_grid = [[rng.gauss(0, 0.05) for _ in range(heads)] for _ in range(layers)]
    head_grid[layers - 1][3] = 0.91
    head_grid[0][1] = -0.34
    places = [[rng.gauss(0, 0.03) for _ in tokens] for _ in range(layers)]
    places[0][4], places[layers - 1][13] = 0.42, 0.97
    rows = [
        {"component": f"head {layer}.{head}", "position": "all", "token": "", "effect": effect}
        for layer, row in enumerate(head_grid)
        for head, effect in enumerate(row)
    ]
    rows += [
        {"component": f"attention {layer}", "position": place, "token": tokens[place], "effect": effect}
        for layer, row in enumerate(places)
        for place, effect in enumerate(row)
    ]
    metric = "share of the clean logit difference restored"
    return {"metric": metric, "rows": rows, "heads": head_grid, "attn_positions": places, "mlp_positions": places, "tokens": tokens}


@pytest.fixture
def metrics() -> dict[str, Any]:
    """The content of a `metrics.json`."""
    rng = random.Random(0)
    tasks = {}
    for task, (answers, sparse, matched) in TASKS.items():
        sizes = {name: factor * (matched if name == "dense_matched_neurons" else sparse) for name, factor in FACTORS.items()}
        columns = {name: column(name, size, rng) for name, size in sizes.items()}
        tasks[task] = {"target_loss": number(0.15), "measurable": True, "answers": answers, "columns": columns}
    return {
        "schema": 1,
        "command": "sparse-lens compare --out report",
        "versions": {"sparse-lens": "0.1.0", "torch": "2.13.0", "transformer-lens": "3.9.0", "python": "3.12.3"},
        "effort": {"steps": 300, "restarts": 1, "penalties": [0.001, 0.003, 0.01], "evaluations": 640, "ablation": "mean"},
        "models": {
            name: {"name": f"python-{name}", "loss": number(loss, 1.01), "nonzeros": number(nonzeros), "parameters": number(size)}
            for name, loss, nonzeros, size in (
                ("sparse", 2.143, 61_440, 6_422_528),
                ("dense", 1.871, 6_422_528, 6_422_528),
                ("dense_matched", 2.121, 402_112, 402_112),
            )
        },
        "tasks": tasks,
        "summary": {
            "tasks_measurable": number(5, n=5),
            "edge_ratio_geomean": number(6.82, 1.3, 1.0, 5),
            "node_ratio_geomean": {**number(1.31, 1.0, 1.0, 5), "lo": 0.92, "hi": 1.84},
            "edge_ratio_geomean_dense": number(46.0, 1.2, 1.0, 5),
        },
        "patching": {
            "task": "single_double_quote",
            "models": {name: patching_model(2, heads, rng) for name, heads in (("sparse", 16), ("dense", 8), ("dense_matched", 4))},
        },
        "verdict": [
            "Nodes: the interval of the ratio includes 1, so this run does not show that sparse circuits have fewer nodes.",
            "One search seed: the spread between searches is not in the intervals.",
            "Mean ablation only: other ablations give other sizes.",
            "SAE latents: the edges of latents are not counted, so they stand in the nodes alone.",
        ],
    }
